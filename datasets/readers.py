"""Readers and writers of frames and label maps, and the labels that inference may see.

A label map is ``(H, W)`` uint8: pixel value = object id, 0 = background, 255 = ignore (never an object).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import written_whole
from datasets.records import Video

IGNORE = 255


def read_image(path: str | Path) -> np.ndarray:
    """Decode an image to ``(H, W, 3)`` uint8 RGB; UserError where it is missing, truncated or no image."""
    import cv2  # the evaluator imports this file without needing it

    path = Path(path)
    data = _bytes(path)
    image = None
    if data and _is_whole(data):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise UserError(f"{path}: the image is corrupt or cut short ({len(data)} bytes); fetch it again")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_labels(path: str | Path) -> np.ndarray:
    """Decode a mask to its ``(H, W)`` uint8 label map.

    Palette PNGs give their indices, greyscale ones (8 and 16 bit) their values, 1-bit ones 0 and 1.
    UserError where it is missing, corrupt, colour (RGB) or lossy (JPEG), or holds a value above 255.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: there is no such mask; add it")
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise UserError(f"{path}: the mask is a {image.format} file; ids survive only in PNG: save it as a "
                                "palette PNG (pixel value = object id)")
            if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
                raise UserError(f"{path}: the mask is a colour image (mode {image.mode}); save it as a palette or "
                                "greyscale PNG whose pixel values are object ids")
            labels = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: the mask is corrupt or cut short; fetch or write it again") from error
    if labels.dtype not in (np.uint8, np.bool_) and (labels.max(initial=0) > 255 or labels.min(initial=0) < 0):
        raise UserError(f"{path}: the mask holds the value {labels.max()}; ids go from 1 to 254, renumber them")
    return labels.astype(np.uint8, copy=False)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: there is no such image; add it") from error


def _is_whole(data: bytes) -> bool:
    """Whether a JPEG or PNG has its end: OpenCV would fill the missing rows of a cut one with grey."""
    if data[:2] == b"\xff\xd8":
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")  # end of image after the last start of scan
    if data[:4] == b"\x89PNG":
        return b"IEND" in data[-64:]
    return True


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a ``(H, W)`` uint8 label map as a palette PNG with the DAVIS palette; the file is whole or absent."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))  # mode L; a palette makes it P
    image.putpalette(palette().tobytes())
    with written_whole(path) as beside:
        image.save(beside, format="PNG")


def palette() -> np.ndarray:
    """The DAVIS palette, ``(256, 3)`` uint8: bits of the id, three at a time, become the high bits of R, G, B."""
    ids = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            colours[:, channel] |= ((ids >> channel & 1) << 7 - level).astype(np.uint8)
        ids = ids >> 3
    return colours


# ---- the labels that inference may see


def given_labels(video: Video, objects: str = "late", warnings: list[str] | None = None) -> dict[str, np.ndarray]:
    """The annotations that inference may see: each object's pixels in the frame where it first appears.

    Returns frame stem -> ``(H, W)`` uint8, in order, with nothing but the objects that are new in that frame
    (ignore pixels become 0). Frames without a new object are not in it; no object at all gives an empty dict.

    ``objects``: ``late`` gives each object where its id first appears; ``first`` only those of the first mask that
    has any (the DAVIS rule). Full annotations and those that hold first appearances only (YouTube-VOS, LVOS-api's
    and Cutie's conversions) give the same. Where the meta says at which frames objects start, only those masks and
    the ones before them are decoded; where files and meta disagree, the files are right, all masks are read, and a
    line is appended to ``warnings``.

    Raises UserError for a mask that cannot be read.
    """
    warnings = [] if warnings is None else warnings
    frames = set(video.frames)
    stems = [stem for stem in video.masks if stem in frames]
    if len(stems) < len(video.masks):
        warnings.append(f"{video.mask_folder}: {len(video.masks) - len(stems)} masks belong to no frame and are "
                        "not used")
    if objects == "first":
        return _first_appearances(video, stems, stop_at_first=True)
    candidates = _starts_by_meta(video, stems)
    if candidates is not None:
        maps = {stem: _objects_of(video, stem) for stem in candidates}
        problem = _disagreement(video, stems, maps)
        if problem is None:
            return _first_appearances(video, candidates, maps=maps)
        warnings.append(f"{video.mask_folder}: {problem}; the masks are trusted, and all of them read")
    given = _first_appearances(video, stems)
    seen = {int(label) for labels in given.values() for label in np.unique(labels)} - {0}
    for record in video.objects:
        if record.id not in seen and 0 < record.id < IGNORE:
            warnings.append(f"{video.mask_folder}: object {record.key} of the meta is in no mask")
    return given


def first_appearance_ids(given: dict[str, np.ndarray]) -> list[int]:
    """Object ids in order of first appearance (within a frame ascending), as AOT numbers them."""
    return [int(label) for labels in given.values() for label in np.unique(labels) if label]


def _first_appearances(
    video: Video, stems: list[str], maps: dict[str, np.ndarray] | None = None, stop_at_first: bool = False,
) -> dict[str, np.ndarray]:
    given: dict[str, np.ndarray] = {}
    seen = np.zeros(256, bool)
    seen[[0, IGNORE]] = True
    for stem in stems:
        labels = maps[stem] if maps else _objects_of(video, stem)
        present = np.zeros(256, bool)
        present[np.unique(labels)] = True
        new = present & ~seen
        if new.any():
            given[stem] = np.where(new[labels], labels, 0).astype(np.uint8)
            seen |= new
            if stop_at_first:
                break
    return given


def _objects_of(video: Video, stem: str) -> np.ndarray:
    labels = read_labels(video.mask_path(stem))
    return ((labels > 0) & (labels != IGNORE)).astype(np.uint8) if video.merged else labels


def _starts_by_meta(video: Video, stems: list[str]) -> list[str] | None:
    """The masks to read if the meta is right: the first, each object's start and the one before; None: all."""
    if not video.objects or len(stems) <= 2 * len(video.objects) + 1:
        return None
    place = {stem: index for index, stem in enumerate(stems)}
    numbers = {int(stem): index for stem, index in place.items() if stem.isdigit()}
    wanted = {0}
    for record in video.objects:
        start = place.get(record.frames[0]) if record.frames else numbers.get(record.range.start) \
            if record.range else None
        if start is None:
            return None
        wanted |= {start, max(start - 1, 0)}
    return [stems[index] for index in sorted(wanted)]


def _disagreement(video: Video, stems: list[str], maps: dict[str, np.ndarray]) -> str | None:
    first: dict[int, str] = {}
    for stem, labels in maps.items():
        for label in np.unique(labels):
            first.setdefault(int(label), stem)
    listed = {record.id for record in video.objects}
    extra = sorted(set(first) - listed - {0, IGNORE})
    if extra:
        return f"object {extra[0]} is in {first[extra[0]]}.png but not in the meta"
    for record in video.objects:
        if record.id in (0, IGNORE):
            continue
        start = record.frames[0] if record.frames else str(record.range.start) if record.range else ""
        found = first.get(record.id)
        if found is None or (found != start and int(found) != int(start)):
            where = f"is in {found}.png already" if found and int(found) < int(start) else "is not there"
            return f"the meta starts object {record.key} at frame {start}, but it {where}"
    return None
