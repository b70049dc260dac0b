"""Pixels from disk and to disk: images, label maps, and the label maps that inference may see."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import UserError
from common.files import written_whole
from datasets.records import Video

IGNORE = 255  # void: never an object
_READ_ALL = 24  # a folder of at most so many masks is read whole; beyond, the meta says where to look


def _davis_palette() -> list[int]:
    # Bits 0, 1, 2 of the index are the highest bits of red, green, blue; bits 3, 4, 5 the next ones; and so on.
    palette = []
    for index in range(256):
        for channel in range(3):
            palette.append(sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)))
    return palette


DAVIS_PALETTE = _davis_palette()  # 768 numbers: R, G, B of 256 indices


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB. UserError for a missing, corrupt or truncated file.

    A JPEG is turned as its EXIF says, a PNG never is (versions of OpenCV differ there, and masks are PNG, too).
    """
    path = Path(path)
    data = _bytes(path, "image")
    flags = cv2.IMREAD_COLOR if data[:2] == b"\xff\xd8" else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise UserError(f"{path}: not a readable image; restore or remove the file")
    # OpenCV fills the missing rows of a JPEG file that was cut short with grey and says nothing.
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9", len(data) // 2) < 0:
        raise UserError(f"{path}: the JPEG file is cut short; restore the file")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_labels(path: str | Path, binary: bool = False) -> np.ndarray:
    """Read a mask file as a label map, (H, W) uint8: the palette index (or grey value) is the object id.

    Args:
        path: PNG of mode P, L, 1 or 16-bit grey with values up to 255.
        binary: every non-zero value becomes 1 (DAVIS-2016, one of whose masks is grey with alpha: the grey counts).

    Raises:
        UserError: missing, corrupt, not a PNG (a renamed JPEG), or colours instead of indices.
    """
    path = Path(path)
    _bytes(path, "mask", only_exists=True)
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise UserError(f"{path}: a {image.format} file under this name; masks must be palette or grey PNG")
            if image.mode == "LA" and binary:
                image = image.getchannel("L")
            if image.mode not in ("P", "L", "1", "I", "I;16", "I;16B"):
                raise UserError(f"{path}: {image.mode} colours instead of a palette; "
                                "convert the mask to a palette or grey PNG with one index an object")
            labels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable PNG ({error}); restore the file") from error
    if labels.dtype != np.uint8 and labels.dtype != np.bool_ and labels.size and labels.max() > 255:
        raise UserError(f"{path}: 16-bit values above 255; object ids must be at most 254")
    return (labels != 0).astype(np.uint8) if binary else labels.astype(np.uint8)


def white_as_object(labels: np.ndarray) -> np.ndarray:
    """A label map whose only values are 0 and 255 as one of object 1 (a person's or a saliency set's mask); any other
    as it is."""
    drawn = labels[labels > 0]
    return (labels == IGNORE).astype(np.uint8) if drawn.size and (drawn == IGNORE).all() else labels


def write_labels(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map, (H, W) uint8, as a palette PNG with the DAVIS palette; whole or absent."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"labels must be (H, W) uint8, not {labels.shape} {labels.dtype}")
    image = Image.fromarray(np.ascontiguousarray(labels))  # mode L
    image.putpalette(DAVIS_PALETTE)  # makes it mode P, values unchanged
    with written_whole(path) as beside:
        image.save(beside, format="PNG")


class GivenLabels(dict[str, np.ndarray]):
    """Stem -> (H, W) uint8 label map of the objects that are given in that frame, in the order of frames.

    ``warnings``: lines about what meta and files disagree on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []


def given_labels(video: Video, objects: str = "late") -> GivenLabels:
    """What inference may see of the annotations: each object's pixels in the frame where its id first appears.

    The same label maps come from full annotations, from LVOS-api's converted ones (the first file may be empty, the
    later ones hold new objects only) and from Cutie's. 0 and 255 are never objects. Frames without a new object are
    left out, so the dict starts late where the video does, and is empty where no mask shows an object.

    Where a video has many masks and the meta says where each object starts, only those masks and the ones just
    before them are read; if they contradict the meta, all are read and the files win, with a warning.

    Args:
        video: a record; masks of frames that have no image are not used.
        objects: "late", or "first" for the objects of the first mask only (DAVIS).
    """
    if objects not in ("late", "first"):
        raise ValueError(f"objects must be 'late' or 'first', not {objects!r}")
    given = GivenLabels()
    frames = set(video.frames)
    stems = [stem for stem in video.masks if stem in frames]
    if len(stems) < len(video.masks):
        given.warnings.append(f"{video.name}: {len(video.masks) - len(stems)} masks have no image and are not used")
    if not stems:
        given.warnings.append(f"{video.name}: no masks, so no object is given")
        return given
    if objects == "first":
        _collect(video, stems[:1], given)
    else:
        looked = _stems_of_starts(video, stems)
        if looked is None or not _agrees(video, stems, looked, given):
            given.clear()
            _collect(video, stems, given)
    _compare(video, objects, given)
    return given


def _collect(video: Video, stems: list[str], given: GivenLabels) -> None:
    seen = np.zeros(256, bool)
    seen[[0, IGNORE]] = True
    for stem in stems:
        labels = read_labels(video.mask_path(stem), video.binary)
        present = np.bincount(labels.ravel(), minlength=256) > 0
        if (present & ~seen).any():
            given[stem] = np.where(seen[labels], np.uint8(0), labels)
            seen |= present


def _stems_of_starts(video: Video, stems: list[str]) -> list[str] | None:
    """The masks to look at: the first, each start of the meta, and the one before each; None to read all."""
    starts = [record.start for record in video.objects]
    if len(stems) <= _READ_ALL or not starts or None in starts or not all(stem.isdecimal() for stem in stems):
        return None
    places = {int(stem): index for index, stem in enumerate(stems)}
    if any(start not in places for start in starts):
        return None
    wanted = {0} | {max(places[start] - back, 0) for start in starts if start is not None for back in (0, 1)}
    return [stems[index] for index in sorted(wanted)]


def _agrees(video: Video, stems: list[str], looked: list[str], given: GivenLabels) -> bool:
    """Collect from ``looked``; True where the objects are those of the meta and each first appears where it says."""
    _collect(video, looked, given)
    return _first_frames(given) == {record.id: record.start for record in video.objects}


def _first_frames(given: GivenLabels) -> dict[int, int]:
    return {int(index): int(stem) for stem, labels in given.items() if stem.isdecimal()
            for index in np.unique(labels) if index}


def _compare(video: Video, objects: str, given: GivenLabels) -> None:
    if not given:
        given.warnings.append(f"{video.name}: no mask shows an object, so none is given")
    found = _first_frames(given)
    for record in video.objects:
        if record.id in (0, IGNORE):
            continue
        if record.id not in found:
            if objects == "late":
                given.warnings.append(f"{video.name}: object {record.key} of the meta appears in no mask")
        elif record.start is not None and record.start != found[record.id]:
            given.warnings.append(f"{video.name}: object {record.key} first appears in frame {found[record.id]}, "
                                  f"the meta says {record.start}; the masks are used")
    if video.objects:
        absent = sorted(set(found) - {record.id for record in video.objects})
        given.warnings += [f"{video.name}: object {index} is in the masks but not in the meta" for index in absent]


def _bytes(path: Path, what: str, only_exists: bool = False) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: the {what} is missing; restore the file or remove it from the split")
    return b"" if only_exists else path.read_bytes()
