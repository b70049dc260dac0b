"""Records of the videos of a data root: LVOS, DAVIS, YouTube-VOS, MOSE and plain folders through one function.

Nothing is decoded here and nothing is written: folders are listed, metas are read, and what the files say is kept.
Imports neither torch nor OpenCV, so that evaluation can use it alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from common.errors import UserError, UserErrors, nearest
from datasets.meta import FrameRange, ObjectRecord, read_captions, read_meta, read_video_attributes

__all__ = ["FORMATS", "FrameRange", "ObjectRecord", "Video", "VideoSet", "list_splits", "name_order", "open_videos"]

FORMATS = ("davis", "lvos", "youtube", "plain")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MASK_FOLDERS = ("Annotations", "Annotations_convert")  # the second: what LVOS-api's convert tool writes
_VALIDATION = ("val", "valid", "validation")  # one split under three names


@dataclass(frozen=True)
class Video:
    """One video: its frames in order, its mask files, its objects as the meta lists them.

    ``frames``: stems, sorted by number. With images these are the images; where there are none (evaluation needs
    none) they are the masks. ``masks``: stems that have a mask file, sorted. ``objects``: in the meta's order, ()
    without a meta. ``binary``: masks of DAVIS-2016, where every non-zero value is object 1.
    """

    name: str
    frames: tuple[str, ...]
    image_folder: Path | None
    mask_folder: Path | None
    masks: tuple[str, ...] = ()
    objects: tuple[ObjectRecord, ...] = ()
    attributes: tuple[str, ...] = ()
    image_suffix: str = ".jpg"
    binary: bool = False

    def image_path(self, stem: str) -> Path:
        """Path of the image of frame ``stem``; UserError where the video has no images."""
        if self.image_folder is None:
            raise UserError(f"{self.name}: the video has no folder of images; add JPEGImages/{self.name}")
        return self.image_folder / f"{stem}{self.image_suffix}"

    def mask_path(self, stem: str) -> Path:
        """Path of the mask of frame ``stem`` (which need not exist); UserError where the video has no masks."""
        if self.mask_folder is None:
            raise UserError(f"{self.name}: the video has no folder of masks; add Annotations/{self.name}")
        return self.mask_folder / f"{stem}.png"


@dataclass(frozen=True)
class VideoSet:
    """The videos of one split.

    ``objects``: which objects are given, ``late`` (each where its id first appears) or ``first`` (those of the first
    mask only). ``split_name``: the folder or list as found (``valid`` for ``val``). ``notes``: lines that a command
    should print, such as "ROOT is one split by itself".
    """

    root: Path
    split: str
    format: str
    videos: tuple[Video, ...]
    meta: Path | None
    objects: str
    split_name: str
    notes: tuple[str, ...] = ()
    images: Path | None = field(default=None, repr=False)  # JPEGImages folder, whether it exists or not
    annotations: Path | None = field(default=None, repr=False)  # Annotations folder


def name_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key of frame stems: the numbers in them count by value, so that ``frame9`` is before ``frame10``."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def open_videos(
    root: str | Path,
    split: str,
    *,
    format: str | None = None,
    objects: str | None = None,
    videos: Sequence[str] | None = None,
    need_images: bool = True,
) -> VideoSet:
    """List the videos of ``split`` under ``root``.

    Layouts, tried in this order: ``ImageSets/2017|2016/SPLIT.txt`` with ``JPEGImages/480p`` and ``Annotations/480p``
    (DAVIS; ``2016/val`` names the list of one year); ``SPLIT/{JPEGImages,Annotations}`` with or without a meta (LVOS,
    YouTube-VOS, MOSE); and ``{JPEGImages,Annotations}``, one split by itself. ``val`` and ``valid`` are the same, in
    any case of letters.

    Args:
        root: the data root; it is only read.
        split: name of the split.
        format: one of ``FORMATS`` instead of the search; None or "auto" searches.
        objects: "late" or "first"; None or "auto": "first" with a DAVIS list, else "late".
        videos: names to keep, in the set's order; None keeps all.
        need_images: False accepts videos without images (evaluation) and never refuses what is missing on disk.

    Raises:
        UserError, UserErrors: nothing there, two folders that match, a broken meta, videos without frames.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; --data, or data.root of train.py, must name an existing data root")
    format = None if format in (None, "auto") else format
    if format is not None and format not in FORMATS:
        raise UserError(f"data.format: '{format}' is unknown; {nearest(format, FORMATS)}")
    if objects not in (None, "auto", "late", "first"):
        raise UserError(f"data.objects: '{objects}' is unknown; valid names: auto, first, late")
    found = _davis(root, split) if format in (None, "davis") else None
    if found is None and format in (None, "lvos", "youtube", "plain"):
        found = _split_folder(root, split, format) or _single(root, split, format)
    if found is None:
        raise UserError(_nothing_found(root, split, format))
    if objects in ("late", "first"):
        found = replace(found, objects=objects)
    return _choose(found, videos, need_images)


def list_splits(root: str | Path) -> list[str]:
    """Names of the splits under ``root`` as ``open_videos`` takes them; one empty name where the root is a split."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name an existing data root")
    years = {year: [path.stem for path in sorted((root / "ImageSets" / year).glob("[!.]*.txt"))]
             for year in ("2017", "2016")}
    listed = years["2017"] + [f"2016/{name}" if name in years["2017"] else name for name in years["2016"]]
    folders = [entry.name for entry in sorted(root.iterdir()) if entry.is_dir() and _has_layout(entry)]
    splits = list(dict.fromkeys(listed + folders))
    return splits or ([""] if _has_layout(root) else [])


# Layouts: each returns a set with all its videos, or None where the layout is not there.


def _davis(root: Path, split: str) -> VideoSet | None:
    chosen, slash, name = split.partition("/")
    years, split_name = ((chosen,), name) if slash else (("2017", "2016"), split)
    for year in years:
        folder = root / "ImageSets" / year
        if not folder.is_dir():
            continue
        lists = {path.stem: path for path in sorted(folder.glob("[!.]*.txt"))}
        name = _matching(split_name, lists, folder)
        if name is None:
            continue
        names = _list_of_videos(lists[name])
        images, annotations = _resolution(root / "JPEGImages"), _resolution(root / "Annotations")
        listed = _each(names, partial(_video, images=images, annotations=annotations, binary=year == "2016"))
        return VideoSet(root, split, "davis", listed, None, "first", name, (), images, annotations)
    return None


def _list_of_videos(path: Path) -> list[str]:
    # A line is a name, or (lists of 2016) "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png".
    names: dict[str, None] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of videos ({error}); restore the file") from None
    for line in lines:
        if line := line.strip():
            first = line.split()[0]
            names[first.split("/")[-2] if "/" in first else first] = None
    if not names:
        raise UserError(f"{path}: the list of videos is empty; add one name a line")
    return list(names)


def _resolution(folder: Path) -> Path:
    for name in ("480p", "Full-Resolution", "1080p"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _split_folder(root: Path, split: str, format: str | None) -> VideoSet | None:
    folders = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    name = _matching(split, folders, root)
    if name is None or not _has_layout(folders[name]):
        return None
    return _folder_set(root, split, folders[name], split_names(split, name), format)


def _single(root: Path, split: str, format: str | None) -> VideoSet | None:
    if not _has_layout(root) or (root / "Annotations" / "480p").is_dir():
        return None
    found = _folder_set(root, split, root, split_names(split, split), format)
    note = f"{root} holds JPEGImages and Annotations: it is one split by itself, whatever --split says ('{split}')"
    return replace(found, split_name="", notes=(note,))


def _has_layout(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("JPEGImages", *MASK_FOLDERS))


def _folder_set(root: Path, split: str, folder: Path, names: Sequence[str], format: str | None) -> VideoSet:
    images = folder / "JPEGImages"
    annotations = next((folder / name for name in MASK_FOLDERS if (folder / name).is_dir()), folder / MASK_FOLDERS[0])
    meta = None if format == "plain" else _find_meta(folder, root, names)
    objects = read_meta(meta) if meta else {}
    extra = [] if format == "plain" else _extra_files(folder, root, meta)
    attributes, captions = read_video_attributes([*extra, meta] if meta else extra), read_captions(extra)
    on_disk = _folders(images) | _folders(annotations)

    def make(name: str) -> Video:
        records = tuple(
            replace(record, caption=record.caption or captions.get((name, record.key)))
            for record in objects.get(name, ())
        )
        return _video(name, images, annotations, records, attributes.get(name, ()))

    videos = _each(sorted(on_disk | set(objects)), make)
    youtube = any(record.frames for records in objects.values() for record in records)
    kind = format or ("youtube" if youtube else "lvos" if meta else "plain")
    return VideoSet(root, split, kind, videos, meta, "late", folder.name, (), images, annotations)


def _each(names: Iterable[str], make: Callable[[str], Video]) -> tuple[Video, ...]:
    """The videos of these names; UserErrors with what is wrong with any."""
    videos, problems = [], []
    for name in names:
        try:
            videos.append(make(name))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserErrors(problems)
    return tuple(videos)


def _video(
    name: str,
    images: Path,
    annotations: Path,
    objects: tuple[ObjectRecord, ...] = (),
    attributes: tuple[str, ...] = (),
    binary: bool = False,
) -> Video:
    image_folder = images / name if (images / name).is_dir() else None
    mask_folder = annotations / name if (annotations / name).is_dir() else None
    pictures = _files(image_folder, IMAGE_SUFFIXES) if image_folder else []
    drawn = _files(mask_folder, (".png",)) if mask_folder else []
    if odd := [f"{stem}{suffix}" for stem, suffix in drawn if suffix != ".png"]:
        raise UserError(f"{mask_folder}: {odd[0]} ({len(odd)} such): masks end in .png, in small letters; rename them")
    masks = tuple(stem for stem, _ in drawn)
    suffixes = sorted({suffix for _, suffix in pictures})
    if len(suffixes) > 1:
        raise UserError(f"{image_folder}: images of several kinds ({', '.join(suffixes)}); keep one kind a video")
    frames = tuple(stem for stem, _ in pictures) or masks
    suffix = suffixes[0] if suffixes else ".jpg"
    return Video(name, frames, image_folder, mask_folder, masks, objects, attributes, suffix, binary)


# Files and names.


def _files(folder: Path, suffixes: Iterable[str]) -> list[tuple[str, str]]:
    """(stem, suffix) of a folder's files with one of ``suffixes`` in any case of letters, hidden ones left out."""
    found = []
    for entry in os.scandir(folder):
        stem, suffix = os.path.splitext(entry.name)
        if suffix.lower() in suffixes and not entry.name.startswith("."):
            found.append((stem, suffix))
    return sorted(found, key=lambda pair: name_order(pair[0]))


def _folders(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    return {entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")}


def split_names(split: str, found: str) -> tuple[str, ...]:
    """Names, in small letters, under which a split that is asked for, and was found as ``found``, may be written."""
    names = [found.lower(), split.lower()]
    if set(names) & set(_VALIDATION):
        names += _VALIDATION
    return tuple(dict.fromkeys(names))


def _matching(split: str, present: Iterable[str], where: Path) -> str | None:
    """The one of ``present`` that is ``split`` in any case of letters (``val`` = ``valid``); two are an error."""
    wanted = set(split_names(split, split))
    matches = [name for name in present if name.lower() in wanted]
    if len(matches) > 1 and len({os.path.realpath(where / name) for name in matches}) > 1:
        raise UserError(f"{where}: '{split}' matches both '{matches[0]}' and '{matches[1]}'; remove or rename one")
    return matches[0] if matches else None


def _find_meta(folder: Path, root: Path, names: Sequence[str]) -> Path | None:
    """The split's meta: inside the folder or beside it, under every spelling seen in the wild."""
    spellings = [f"{name}_meta.json" for name in names] + [f"meta_{name}.json" for name in names] + ["meta.json"]
    for place in dict.fromkeys((folder, root)):
        present = {entry.name.lower(): entry for entry in sorted(place.glob("[!.]*.json"))}
        matches = [present[spelling] for spelling in spellings if spelling in present]
        if len(matches) > 1 and len({match.read_bytes() for match in matches}) > 1:
            raise UserError(f"{place}: '{matches[0].name}' and '{matches[1].name}' differ; keep the one that is right")
        if matches:
            return matches[0]
        # LVOS-api's README shows train_meta.json under every split: a lone stranger inside the split is its meta.
        strangers = [path for name, path in present.items() if name.endswith("_meta.json") and not _is_extra(name)]
        if place == folder != root and len(strangers) == 1:
            return strangers[0]
    return None


def _extra_files(folder: Path, root: Path, meta: Path | None) -> list[Path]:
    """Files with attributes or captions: other JSON inside the split, and beside it what is called so.

    Those of other splits do no harm: what they say is looked up by the video's name.
    """
    inside = [path for path in sorted(folder.glob("[!.]*.json")) if path != meta]
    beside = [path for path in sorted(root.glob("[!.]*.json")) if path != meta and _is_extra(path.name)]
    return list(dict.fromkeys(inside + beside))


def _is_extra(name: str) -> bool:
    return any(word in name.lower() for word in ("expression", "caption", "attribut"))


# The choice of videos, and what may not be missing.


def _choose(found: VideoSet, wanted: Sequence[str] | None, need_images: bool) -> VideoSet:
    videos = found.videos
    if wanted is not None:
        known = {video.name for video in videos}
        unknown = [name for name in wanted if name not in known]
        if unknown:
            where = found.images or found.root
            raise UserErrors([f"video '{name}' is not in {where}; {nearest(name, known)}" for name in unknown])
        videos = tuple(video for video in videos if video.name in set(wanted))
    if need_images:
        _need_images(replace(found, videos=videos))
    return replace(found, videos=videos)


def _need_images(found: VideoSet) -> None:
    if found.images is None or not found.images.is_dir():
        raise UserError(f"{found.images}: no such folder; put one folder of JPEG frames a video there")
    if not found.videos:
        raise UserError(f"{found.images}: no videos; put one folder of JPEG frames a video there")
    problems = []
    for video in found.videos:
        if video.image_folder is None:
            problems.append(f"{found.images / video.name}: no such folder, but the list, the meta or the masks name "
                            "this video; add its frames or remove the video")
        elif not any(video.image_path(stem).is_file() for stem in video.frames[:1]):
            problems.append(f"{video.image_folder}: no frames in it; add its JPEG files")
    if problems:
        raise UserErrors(problems)


def _nothing_found(root: Path, split: str, format: str | None) -> str:
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    layout = {
        "davis": f"ImageSets/2017/{split}.txt",
        None: f"ImageSets/2017/{split}.txt, {split}/JPEGImages or JPEGImages",
    }.get(format, f"{split}/JPEGImages or JPEGImages")
    here = ", ".join(folders[:8]) + (" ..." if len(folders) > 8 else "") if folders else "no folders"
    return f"{root}: split '{split}' not found (looked for {layout}; here are: {here}); check --data and --split "\
           "(train.py: data.root and data.split)"
