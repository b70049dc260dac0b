"""Metas of a split: objects and frame ranges (LVOS), frame lists (YouTube-VOS), attributes and captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from datasets.names import same_split, sorted_stems

CAPTION_KEYS = ("caption", "expression", "exp", "description", "captions", "expressions")


@dataclass(frozen=True)
class FrameRange:
    """Frames of one object as the meta states them: frame numbers, not indices. Files are trusted before it."""

    start: int
    end: int  # the official evaluator leaves it out (exclusive)
    frame_nums: int


@dataclass(frozen=True)
class ObjectRecord:
    """One object of a video as its meta lists it."""

    id: int  # pixel value
    key: str  # the meta's own spelling of the id
    range: FrameRange | None = None  # LVOS
    caption: str | None = None  # LVOS expression meta
    frames: tuple[str, ...] = ()  # YouTube-VOS: stems of the frames in which it is annotated
    category: str | None = None  # YouTube-VOS


@dataclass(frozen=True)
class VideoMeta:
    """What the metas say of one video."""

    objects: tuple[ObjectRecord, ...] = ()
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitMeta:
    """What the metas of one split say."""

    path: Path | None  # the file with the objects
    format: str  # lvos, youtube or plain
    videos: Mapping[str, VideoMeta]
    notes: tuple[str, ...] = ()


def read_meta(folder: Path, beside: Path | None, split: str, names: Iterable[str]) -> SplitMeta | None:
    """Read the metas of a split; None where there is none.

    ``folder``: the split's own folder; ``beside``: the folder one level up, None where the root is the split.
    ``names``: the video folders that were found, to recognise a file whose name does not say its split.
    """
    names = set(names)
    inside, outside = _json_files(folder), _json_files(beside) if beside else []
    path = _meta_path(folder, inside, outside, split, names)
    videos: dict[str, VideoMeta] = {}
    format = "plain"
    notes: list[str] = []
    if path is not None:
        videos, format = _objects(path)
        if not _says_split(path.stem, split) and path.stem.lower() != "meta":
            notes.append(f"{path}: read as the meta of split '{split}', since it names its videos")
    for file in _side_files(inside + outside, split, "attr"):
        for name, attributes in _attributes(_load(file)).items():
            videos[name] = replace(videos.get(name, VideoMeta()), attributes=attributes)
    for file in _side_files(inside + outside, split, "expression", "caption"):
        for name, captions in _captions(_load(file)).items():
            about = videos.get(name, VideoMeta())
            objects = tuple(replace(record, caption=captions.get(record.id, record.caption))
                            for record in about.objects)
            videos[name] = replace(about, objects=objects)
    if path is None and not any(about.attributes for about in videos.values()):
        return None
    return SplitMeta(path, format, videos, tuple(notes))


# ---- which file


def _json_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and path.name[0] != ".")


def _meta_path(folder: Path, inside: list[Path], outside: list[Path], split: str, names: set[str]) -> Path | None:
    side = ("attr", "expression", "caption")
    inside, outside = ([path for path in files if "meta" in path.stem.lower()
                        and not any(word in path.stem.lower() for word in side)] for files in (inside, outside))
    by_name = [path for path in inside if _says_split(path.stem, split)]
    plain = [path for path in inside if path.stem.lower() == "meta"]
    above = [path for path in outside if _says_split(path.stem, split)]
    # A name that says another split, or none, is believed only where its content names these videos.
    other = [path for path in inside + outside if path not in by_name + plain + above and _names_any(path, names)]
    for candidates in (by_name, plain, above, other):
        distinct = {path.read_bytes(): path for path in reversed(candidates)}
        if len(distinct) > 1:
            both = " and ".join(f"'{path.name}'" for path in candidates)
            raise UserError(f"{folder}: {both} could both be the meta of split '{split}', and they differ; "
                            "remove one of them")
        if distinct:
            return next(iter(distinct.values()))
    return None


def _says_split(stem: str, split: str) -> bool:
    """``val_meta``, ``valid_meta``, ``Val_Meta``; MOSE writes ``meta_valid``."""
    stem = stem.lower()
    for part in (stem.removesuffix("_meta"), stem.removeprefix("meta_")):
        if part != stem and same_split(part, split):
            return True
    return False


def _names_any(path: Path, names: set[str]) -> bool:
    videos = _load(path).get("videos")
    return isinstance(videos, dict) and bool(names & set(videos))


def _side_files(files: list[Path], split: str, *words: str) -> list[Path]:
    """Attribute or caption files: those that say this split before those that say none; the first folder wins."""
    found = [path for path in files if any(word in path.stem.lower() for word in words)]
    said = [path for path in found if any(same_split(part, split) for part in path.stem.split("_"))]
    unsaid = [path for path in found if not any(part.lower() in ("train", "val", "valid", "test")
                                                for part in path.stem.split("_"))]
    return (said or unsaid)[:1]


# ---- what it says


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: the meta cannot be read ({error}); fetch it again") from error
    if not isinstance(content, dict):
        content = {"videos": content}
    return content


def _objects(path: Path) -> tuple[dict[str, VideoMeta], str]:
    content = _load(path)
    listed = content.get("videos")
    if not isinstance(listed, dict):
        raise UserError(f"{path}: the meta has no 'videos'; expected videos -> name -> objects -> id")
    videos: dict[str, VideoMeta] = {}
    formats = set()
    for name, about in listed.items():
        objects = about.get("objects") if isinstance(about, dict) else None
        if not isinstance(objects, dict):
            raise UserError(f"{path}: video {name} has no 'objects'; expected videos -> {name} -> objects -> id")
        records = tuple(_object(path, name, key, entry) for key, entry in objects.items())
        formats |= {"youtube" if record.frames else "lvos" if record.range else "plain" for record in records}
        videos[name] = VideoMeta(records, _names(about.get("attributes"), content.get("attributes")))
    format = "lvos" if "lvos" in formats else "youtube" if "youtube" in formats else "plain"
    return videos, format


def _object(path: Path, video: str, key: str, entry: Any) -> ObjectRecord:
    where = f"{path}: videos.{video}.objects.{key}"
    entry = entry if isinstance(entry, dict) else {}
    try:
        number = int(key)
    except ValueError as error:
        raise UserError(f"{where}: an object's key is its id, a whole number; correct it") from error
    span = entry.get("frame_range")
    span_record = None
    if span is not None:
        try:
            span_record = FrameRange(*(int(span[part]) for part in ("start", "end", "frame_nums")))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}.frame_range: needs start, end and frame_nums as whole numbers; correct it") \
                from error
    frames = entry.get("frames") or ()
    return ObjectRecord(
        id=number, key=key, range=span_record, caption=_caption(entry),
        frames=tuple(sorted_stems(str(stem) for stem in frames)), category=entry.get("category"),
    )


def _attributes(content: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Attributes by video. Schemas met: videos or sequences as a mapping, or as a list of entries with a name."""
    known = content.get("attributes")
    listed = next((content[key] for key in ("videos", "sequences") if key in content), content)
    if isinstance(listed, list):
        listed = {entry["name"]: entry for entry in listed if isinstance(entry, dict) and "name" in entry}
    return {name: _names(about.get("attributes") if isinstance(about, dict) else about, known)
            for name, about in listed.items()
            if (isinstance(about, dict) and "attributes" in about) or (listed is content and isinstance(about, list)
                                                                       and name not in ("attributes", "sets"))}


def _names(value: Any, known: Any) -> tuple[str, ...]:
    """Attribute names from a list, a comma-separated text, a mapping to 0 or 1, or indices into the known ones."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, dict):
        value = [name for name, held in value.items() if held not in (0, "0", False, None)]
    if not isinstance(value, list):
        return ()
    known = known if isinstance(known, list) else []
    return tuple(str(known[item]) if isinstance(item, int) and 0 <= item < len(known) else str(item)
                 for item in value)


def _captions(content: dict[str, Any]) -> dict[str, dict[int, str]]:
    """Captions by video and object id: under ``objects``, or as expressions that name their ``obj_id``."""
    captions: dict[str, dict[int, str]] = {}
    listed = content.get("videos", content)
    for name, about in listed.items() if isinstance(listed, dict) else ():
        if not isinstance(about, dict):
            continue
        found: dict[int, list[str]] = {}
        for key, entry in (about.get("objects") or {}).items():
            text = entry if isinstance(entry, str) else _caption(entry) if isinstance(entry, dict) else None
            if text and key.isdigit():
                found.setdefault(int(key), []).append(text)
        expressions = about.get("expressions") or {}
        for entry in expressions.values() if isinstance(expressions, dict) else expressions:
            text = _caption(entry) if isinstance(entry, dict) else None
            if text and str(entry.get("obj_id", "")).isdigit():
                found.setdefault(int(entry["obj_id"]), []).append(text)
        captions[name] = {number: "; ".join(texts) for number, texts in found.items()}
    return captions


def _caption(entry: Mapping[str, Any]) -> str | None:
    for key in CAPTION_KEYS:
        value = entry.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return "; ".join(value)
    return None
