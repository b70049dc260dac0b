"""Metas of LVOS and YouTube-VOS: which objects a video has, from when to when; attributes and captions beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, UserErrors


@dataclass(frozen=True)
class FrameRange:
    """Frame numbers between which an object is annotated, as the meta says (strings or numbers, made int).

    ``end`` is inclusive in one reading and the last frame + step in another: trust files (facts: LVOS, 3.4).
    """

    start: int
    end: int
    frame_nums: int


@dataclass(frozen=True)
class ObjectRecord:
    """One object of a meta. ``key`` is the meta's own string, ``id`` the number in the masks.

    ``range`` for LVOS; ``frames`` (stems) for YouTube-VOS; either may be missing.
    """

    id: int
    key: str
    range: FrameRange | None = None
    caption: str | None = None
    frames: tuple[str, ...] = ()

    @property
    def start(self) -> int | None:
        """Number of the first frame of the object according to the meta; None where it does not say."""
        if self.range is not None:
            return self.range.start
        return min((int(stem) for stem in self.frames if stem.isdecimal()), default=None)


def read_json(path: Path) -> Any:
    """Parsed JSON of ``path``; UserError for what is no JSON or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore the file, or remove it") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download or repair the file") from error


def read_meta(path: Path) -> dict[str, tuple[ObjectRecord, ...]]:
    """Objects of every video of a meta, in the meta's order.

    Accepts ``videos -> name -> objects -> id -> {frame_range: {start, end, frame_nums}}`` (LVOS) and
    ``... -> id -> {category, frames: [stem, ...]}`` (YouTube-VOS). UserErrors names every key that is wrong at once;
    UserError for what is no meta at all.
    """
    content = read_json(path)
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict):
        raise UserError(f"{path}: no table 'videos'; this is no meta of LVOS or YouTube-VOS")
    problems: list[str] = []
    result = {}
    for name, video in videos.items():
        objects = video.get("objects") if isinstance(video, dict) else None
        if not isinstance(objects, dict):
            problems.append(f"videos.{name}.objects is missing or no table")
            continue
        result[name] = tuple(_object(f"videos.{name}.objects.{key}", key, item, problems)
                             for key, item in objects.items())
    if problems:
        raise UserErrors([f"{path}: {problem}; repair the meta" for problem in problems])
    return result


def _object(where: str, key: str, item: Any, problems: list[str]) -> ObjectRecord:
    """One object; what is wrong with it goes into ``problems``, and stands in the record as 0 or nothing."""
    number = _integer(where, key, problems)
    if not isinstance(item, dict):
        problems.append(f"{where} is no table")
        return ObjectRecord(number, key)
    span, frames = item.get("frame_range"), item.get("frames")
    if frames is not None and not isinstance(frames, list):
        problems.append(f"{where}.frames is no list")
        frames = None
    return ObjectRecord(
        id=number,
        key=key,
        range=None if span is None else _range(f"{where}.frame_range", span, problems),
        caption=_caption(item),
        frames=tuple(str(stem) for stem in frames or ()),
    )


def _range(where: str, span: Any, problems: list[str]) -> FrameRange | None:
    if not isinstance(span, dict):
        problems.append(f"{where} is no table")
        return None
    return FrameRange(*(_integer(f"{where}.{name}", span.get(name), problems)
                        for name in ("start", "end", "frame_nums")))


def _integer(where: str, value: Any, problems: list[str]) -> int:
    """``value`` as the whole number that it is or spells; 0 where it is none."""
    if value is None:
        problems.append(f"{where} is missing")
        return 0
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float) and value != number):
        problems.append(f"{where} is {value!r}, not a whole number")
        return 0
    return number


def read_video_attributes(paths: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Attributes of every video, from files of several schemas; a video that no file names is left out.

    Accepts tables or lists of videos (under ``videos`` or ``sequences``, or at the top), each with ``attributes``: a
    list of names, or a table of name -> true/false. Files of other kinds give nothing: attributes are optional.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        for name, video in _videos_of(read_json(path)):
            attributes = video.get("attributes")
            if isinstance(attributes, dict):
                attributes = [key for key, value in attributes.items() if value]
            if isinstance(attributes, list):
                found[name] = tuple(str(attribute) for attribute in attributes)
    return found


def read_captions(paths: Iterable[Path]) -> dict[tuple[str, str], str]:
    """Captions by (video, object key), from ``objects -> id -> caption`` or ``expressions -> n -> {exp, obj_id}``."""
    found: dict[tuple[str, str], str] = {}
    for path in paths:
        for name, video in _videos_of(read_json(path)):
            objects, expressions = video.get("objects"), video.get("expressions")
            for key, item in objects.items() if isinstance(objects, dict) else ():
                if caption := item if isinstance(item, str) else _caption(item):
                    found.setdefault((name, str(key)), caption)
            for item in expressions.values() if isinstance(expressions, dict) else ():
                if isinstance(item, dict) and "obj_id" in item and (caption := _caption(item)):
                    ids = item["obj_id"] if isinstance(item["obj_id"], list) else [item["obj_id"]]
                    for key in ids:
                        found.setdefault((name, str(key)), caption)
    return found


def _caption(item: Any) -> str | None:
    for key in ("caption", "expression", "exp", "captions", "expressions"):
        value = item.get(key) if isinstance(item, dict) else None
        if isinstance(value, list):
            value = next((text for text in value if isinstance(text, str)), None)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return None


def _videos_of(content: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    if isinstance(content, dict):
        content = next((content[key] for key in ("videos", "sequences") if key in content), content)
    if isinstance(content, dict):
        return [(str(name), video) for name, video in content.items() if isinstance(video, dict)]
    if isinstance(content, list):
        return [(str(video["name"]), video) for video in content if isinstance(video, dict) and "name" in video]
    return []
