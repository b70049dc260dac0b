"""Checks of a split before work starts: what is missing, unreadable, mis-sized, in colour, or unlike its meta.

The fast form reads a few bytes of every file and decodes few masks; the deep form decodes everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.headers import cut_short, read_header
from datasets.readers import IGNORE, read_image, read_labels
from datasets.records import Video, VideoSet

_FEW_MASKS = 1000  # the fast form decodes all masks of a split that has no more than these
_IDENTITIES = 10  # objects that the identity bank holds at once


class Problems(list[str]):
    """What a check found, one line each: work on this data would stop, or be wrong.

    ``warnings``: doubts that work can live with (masks are trusted before the meta). ``notes``: good to know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.notes: list[str] = []


def check_videos(found: VideoSet, *, deep: bool = False, advance: Callable[[int], None] | None = None) -> Problems:
    """Check every video of a split; everything that is wrong is listed at once.

    ``deep`` decodes every image and mask. The fast form looks at the first and last bytes of every file (kind, size,
    mode, whole or cut short) and decodes the masks that start objects, or all of a small split, for their ids.
    ``advance(n)`` is called when ``n`` more frames are checked.
    """
    problems = Problems()
    problems.notes += found.notes
    if not found.videos:
        problems.append(f"{found.images}: no video folders; put one folder of frames a video there")
    all_ids = deep or sum(len(video.masks) for video in found.videos) <= _FEW_MASKS
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda video: _check_video(video, found, deep, all_ids), found.videos)
        for video, part in zip(found.videos, parts, strict=True):
            problems += part
            problems.warnings += part.warnings
            problems.notes += part.notes
            if advance:
                advance(len(video.frames))
    return problems


def _check_video(video: Video, found: VideoSet, deep: bool, all_ids: bool) -> Problems:
    problems = Problems()
    if video.image_folder is None and not video.masks:
        problems.append(f"{video.name}: the {'meta' if video.objects else 'list'} names this video, but it has "
                        "neither images nor masks; add its folders or remove the name")
        return problems
    if video.image_folder is None:
        problems.append(f"{found.images or 'JPEGImages'}: no folder {video.name}, but there are masks of this "
                        "video; add its images or remove the masks")
    if found.meta and not video.objects:
        problems.warnings.append(f"{found.meta}: video {video.name} is on disk but not in the meta; it is not scored")
    size = _check_images(video, deep, problems)
    readable = _check_masks(video, size, problems)
    _check_presence(video, found, problems)
    _check_ids(video, found, readable, all_ids, problems)
    _check_ranges(video, found, problems)
    return problems


# ---- files


def _check_images(video: Video, deep: bool, problems: Problems) -> tuple[int, int] | None:
    """Check each image; returns the (width, height) that most of them have, None without images."""
    return None if video.image_folder is None else check_images(map(video.image_path, video.frames), problems, deep)


def check_images(paths: Iterable[Path], problems: list[str], deep: bool = False) -> tuple[int, int] | None:
    """Check the frames of one video, adding to ``problems``; returns the (width, height) that most of them have."""
    sizes: dict[Path, tuple[int, int]] = {}
    for path in paths:
        try:
            header = read_header(path)
            sizes[path] = header.width, header.height
            if cut_short(path):
                raise UserError(f"{path}: the image file is cut short; restore the file")
            if deep:
                read_image(path)
        except UserError as error:
            problems.append(str(error))
    if not sizes:
        return None
    usual = Counter(sizes.values()).most_common(1)[0][0]
    problems += [f"{path}: the image is {_by(size)}, the other frames of its video {_by(usual)}; make them equal"
                 for path, size in sizes.items() if size != usual]
    return usual


def _check_masks(video: Video, size: tuple[int, int] | None, problems: Problems) -> list[str]:
    """Check each mask file by its header; returns the stems of those that look sound."""
    sound = []
    for stem in video.masks:
        path = video.mask_path(stem)
        try:
            header = read_header(path)
            if cut_short(path):
                raise UserError(f"{path}: the mask is cut short; restore the file")
        except UserError as error:
            problems.append(str(error))
            continue
        here = header.width, header.height
        size = size or here
        if header.kind != "PNG":
            problems.append(f"{path}: a {header.kind} file under this name; masks must be palette or grey PNG")
        elif header.mode not in ("palette", "greyscale", *(("greyscale with alpha",) if video.binary else ())):
            problems.append(f"{path}: {header.mode} colours instead of a palette; convert the mask to a "
                            "palette or grey PNG with one index an object")
        elif here != size:
            problems.append(f"{path}: the mask is {_by(here)}, its video {_by(size)}; make them equal")
        else:
            sound.append(stem)
    return sound


def _check_presence(video: Video, found: VideoSet, problems: Problems) -> None:
    if not video.masks:
        where = video.mask_folder or f"Annotations/{video.name}"
        problems.append(f"{where}: no .png masks; add at least the mask of the frame where the first object appears")
        return
    frames, masks = set(video.frames), set(video.masks)
    if video.image_folder is not None:
        problems += [f"{video.image_folder / stem}{video.image_suffix}: the image is missing, but there is a mask of "
                     "this frame; restore the image or remove the mask" for stem in video.masks if stem not in frames]
    starts = {record.start for record in video.objects}
    expected = _annotated_frames(video, found)
    missing = [stem for stem in expected if stem not in masks]
    throughout = len(missing) * 2 < len(expected)  # else only first appearances are annotated, or every n-th frame
    for stem in missing:
        needed = int(stem) in starts if starts and stem.isdecimal() else found.objects == "first" and \
            stem == video.frames[0]
        if needed:
            problems.append(f"{video.mask_path(stem)}: the mask is missing, and objects are given in this frame; "
                            "restore the file")
        elif throughout:
            problems.warnings.append(f"{video.mask_path(stem)}: the mask is missing while most frames of the video "
                                     "have one; restore the file")


def _annotated_frames(video: Video, found: VideoSet) -> list[str]:
    """Frames that should have a mask if the video is annotated throughout."""
    ranges = [record.range for record in video.objects if record.range]
    if ranges:
        first, past = min(span.start for span in ranges), max(span.end for span in ranges)
        return [stem for stem in video.frames if stem.isdecimal() and first <= int(stem) < past]
    frames = list(video.frames)
    if found.objects == "first" or video.masks[0] not in frames:
        return frames
    return frames[frames.index(video.masks[0]):]  # late objects: frames before the first mask need none


# ---- what the masks and the meta say


def _check_ids(video: Video, found: VideoSet, stems: list[str], all_ids: bool, problems: Problems) -> None:
    """Decode masks for their ids: all of them, or the first ones and those at which the meta starts an object."""
    if not stems:
        return
    starts = {record.start for record in video.objects}
    wanted = stems if all_ids else [stem for index, stem in enumerate(stems)
                                    if index == 0 or (stem.isdecimal() and int(stem) in starts)]
    first_seen: dict[int, str] = {}
    for stem in wanted:
        for label in _ids(video, stem, problems):
            first_seen.setdefault(label, stem)
    if not first_seen and not all_ids:  # nothing at the expected places: look on until an object shows
        for stem in stems:
            if ids := _ids(video, stem, problems):
                first_seen = {label: stem for label in ids}
                break
    if not first_seen:
        problems.append(f"{video.mask_folder}: no mask shows an object (all are empty or white, and 255 belongs to "
                        "nothing); give the objects the values 1, 2, ..., or leave the video out")
        return
    if found.objects == "first" and stems[0] not in first_seen.values():
        problems.append(f"{video.mask_path(stems[0])}: shows no object, but those of the first mask are what is given "
                        "(data.objects=first); set data.objects=late, or leave the video out")
    if found.meta and video.objects:
        listed = {record.id for record in video.objects}
        problems.warnings += [f"{video.mask_path(stem)}: id {label} is not in the meta {found.meta.name}; it is not "
                            "scored" for label, stem in sorted(first_seen.items()) if label not in listed]
        if all_ids:
            problems.warnings += [f"{found.meta}: object {record.key} of video {video.name} is in no mask"
                                  for record in video.objects
                                  if record.id not in first_seen and 0 < record.id < IGNORE]
    if max(first_seen) > _IDENTITIES:
        problems.notes.append(f"{video.mask_folder}: ids up to {max(first_seen)}; more than {_IDENTITIES} objects are "
                              "segmented in groups")


def _ids(video: Video, stem: str, problems: Problems) -> list[int]:
    try:
        labels = read_labels(video.mask_path(stem), video.binary)
    except UserError as error:
        problems.append(str(error))
        return []
    return [label for label in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
            if 0 < label < IGNORE]


def _check_ranges(video: Video, found: VideoSet, problems: Problems) -> None:
    numbers = [int(stem) for stem in video.frames if stem.isdecimal()]
    stems = set(video.frames)
    for record in video.objects:
        where = f"{found.meta}: object {record.key} of video {video.name}"
        missing = [stem for stem in record.frames if stem not in stems]
        if missing:
            problems.append(f"{where} is annotated in frame {missing[0]} ({len(missing)} such), which has no "
                            "image; restore it")
        if not 0 < record.id < IGNORE:
            problems.warnings.append(f"{where} has the id {record.id}, which no mask can hold; ids are 1 to 254")
        span = record.range
        if span is None:
            continue
        if span.end < span.start or span.frame_nums < 2:
            problems.warnings.append(f"{where}: start {span.start}, end {span.end}, frame_nums {span.frame_nums}: the "
                                     "evaluator needs a range of two frames and more; mend the meta")
            continue
        if span.start not in numbers:
            problems.warnings.append(f"{where} starts at frame {span.start}, which does not exist; the masks are used")
        # `end` is read both as exclusive and as the last frame itself.
        counts = {_between(numbers, span.start, span.end), _between(numbers, span.start, span.end + 1)}
        if span.frame_nums > max(counts):
            problems.warnings.append(f"{where}: frame_nums is {span.frame_nums}, but only {max(counts)} frames lie in "
                                     f"{span.start}..{span.end}; the official evaluator counts zeros for the rest")
        elif span.frame_nums < min(counts):
            problems.warnings.append(f"{where}: frame_nums is {span.frame_nums}, but {min(counts)} frames lie in "
                                     f"{span.start}..{span.end}; the official evaluator stops with an error there")


def _between(numbers: Iterable[int], first: int, past: int) -> int:
    return sum(first <= number < past for number in numbers)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
