"""Read, inherit, override, check and write the configuration."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from common.errors import UserError, UserErrors, nearest
from configs.schema import Config

FOLDER = Path(__file__).resolve().parent


def model_names() -> list[str]:
    """Names of the variants that ship: the files of configs/models."""
    return sorted(path.stem for path in (FOLDER / "models").glob("*.yaml"))


def model_config_path(name: str) -> Path:
    """The configuration file of a variant. Raises UserError with the nearest name."""
    if name not in model_names():
        raise UserError(f"--model {name}: no such variant; {nearest(name, model_names())}")
    return FOLDER / "models" / f"{name}.yaml"


def load_config(path: str | Path | None = None, overrides: Iterable[str] = (), tree: Mapping | None = None,
                model: str | None = None) -> Config:
    """Return the checked configuration.

    Args:
        path: a YAML file; its ``base:`` (relative to the file) is read first. None: the defaults.
        overrides: ``key.sub=value`` strings, values in YAML syntax; they win.
        tree: a plain tree (as kept inside weights) instead of a file.
        model: the variant to take in place of the one on which the file is based.
    Raises:
        UserError(s): one line a problem, with key, file and nearest valid name.
    """
    variant = model_config_path(model) if model is not None else None
    values: dict[str, Any] = dict(tree) if tree is not None else _read(Path(path), variant) if path is not None else {}
    where = str(path) if path is not None else "the configuration"
    overrides = list(overrides)
    if overrides:
        where = f"{where} and the command line"
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UserError(f"{text}: not a setting; write key.sub=value")
        try:
            parsed = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
            raise UserError(f"{key}: {value!r} is not valid YAML ({_what(error)}); quote the value") from error
        values = _merge(values, _nest(key.split("."), parsed))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserErrors([_explain(problem, where) for problem in error.errors()]) from error


def dump_config(config: Config) -> str:
    """The complete tree as YAML text that :func:`load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number, as people write it (YAML 1.1 wants 1.0e-4), and refuses doubled keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: list[Any] = []
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
                continue
            if (name := self.construct_object(key, deep=True)) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} occurs twice", key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"))


def differences(config: Config, earlier: Config) -> list[str]:
    """What ``config`` says otherwise than ``earlier``: lines like ``train.lr: 0.1 (was 0.2)``."""
    now, before = (_flat(one.model_dump()) for one in (config, earlier))
    return [f"{key}: {value} (was {before[key]})" for key, value in now.items() if value != before[key]]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _read(path: Path, variant: Path | None = None, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file and those below it; ``variant`` stands in for the file of configs/models among them."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        named = f" (`base` of {seen[-1]} names it, from its own folder)" if seen else ""
        ours = next(FOLDER.glob(f"*/{path.stem}.yaml"), None)
        hint = f"did you mean configs/{ours.relative_to(FOLDER)}?" if ours else "see configs/models and configs/recipes"
        raise UserError(f"{path}: no such configuration file{named}; {hint}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that there is not
        raise UserError(f"{path}: not valid YAML ({_what(error)}); mend the file") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no keys; write `key: value` lines")
    base = values.pop("base", None)
    train = values.get("train")
    if isinstance(train, dict) and isinstance(train.get("after"), str):
        train["after"] = str(path.resolve().parent / train["after"])  # beside this file, whoever inherits it
    if base is None:
        if variant is not None:
            raise UserError(f"{path}: is based on no file of configs/models, which --model could replace; name one as "
                            "its `base`")
        return values
    parent = (path.parent / str(base)).resolve()
    if variant is not None and parent.parent == FOLDER / "models":
        parent, variant = variant, None
    if parent in seen:
        raise UserError(f"{path}: `base` leads back to {parent}; break the circle")
    return _merge(_read(parent, variant, (*seen, path.resolve())), values)


def _merge(below: Mapping, above: Mapping) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _nest(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def _what(error: Exception) -> str:
    """What is wrong in a YAML text, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())[:160]


def _explain(problem: Any, where: str) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        beside = {name: ".".join([*location[:-1], name]) for name in _keys_beside(location)}
        elsewhere = {name: f"{section}.{name}" for section, field in Config.model_fields.items()
                     if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
                     for name in field.annotation.model_fields}
        known = beside if location[-1] not in elsewhere else elsewhere  # right, but said of another section
        return f"{key}: unknown key in {where}; {nearest(location[-1], known, called=known.__getitem__)}"
    return f"{key}: {problem['msg'].lower()}, not {problem['input']!r} (in {where})"


def _keys_beside(location: list[str]) -> list[str]:
    """The valid keys of the section that holds the last part of ``location``."""
    section: Any = Config
    for part in location[:-1]:
        if not part.isdigit():
            section = _section_type(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_type(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    return next(_section_type(part) for part in typing.get_args(annotation) if part is not type(None))
