"""Photographs and clips with masks as material for generated videos: what there is, and cut-outs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError
from datasets.readers import IGNORE, read_image, read_labels
from datasets.records import IMAGE_SUFFIXES, name_order

_SHARE = (0.012, 0.5)  # of the picture: smaller objects blur, larger ones are scenery
_WHOLE = 0.8  # of an object's pixels in one piece
_FILLED = 0.3  # of its box
_MOST_EXTENT = 1.5
_MOST_FRAMES = 24  # of a clip's cut-out


@dataclass(frozen=True)
class Source:
    """A photograph (one frame) or a clip: (image, mask) paths in order; a mask may be missing in a clip."""

    name: str
    frames: tuple[tuple[Path, Path | None], ...]

    @property
    def is_clip(self) -> bool:
        return len(self.frames) > 1

    @property
    def is_annotated(self) -> bool:
        """Whether every frame has a mask."""
        return all(mask is not None for _, mask in self.frames)

    def fingerprint(self) -> str:
        """Its name and the bytes of its files, in number: what tells it from another source of this name."""
        return f"{self.name} {sum(path.stat().st_size for frame in self.frames for path in frame if path is not None)}"


@dataclass(frozen=True)
class CutOut:
    """An object of a source that is whole in its first mask: not cut by the border, mostly one piece."""

    source: Source
    label: int


@dataclass
class CutOutLook:
    """A cut-out to draw: ``pictures`` (S, S, 3) float32 RGB and ``covers`` (S, S) 0..1, played to and fro.

    ``extent``: half the side of its box in radii; more than 1 for lean objects, so that they are not too small.
    """

    pictures: list[np.ndarray]
    covers: list[np.ndarray]
    extent: float

    @property
    def reach(self) -> float:
        """Extent of the box's corners, in radii."""
        return 1.42 * self.extent

    def sample(self, u: np.ndarray, v: np.ndarray, frame: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Colour (h, w, 3) and coverage (h, w) at local coordinates, where 1 is ``radius`` pixels."""
        place = to_and_fro(frame // 2, len(self.pictures))
        side = self.covers[place].shape[0]
        x, y = ((axis / self.extent + 1) * (side / 2) - 0.5 for axis in (u, v))
        x, y = x.astype(np.float32), y.astype(np.float32)
        colour = cv2.remap(self.pictures[place], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        cover = cv2.remap(self.covers[place], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        return colour, cover


def to_and_fro(frame: int, length: int) -> int:
    """Index of a film of ``length`` frames that is played forwards and backwards for ever."""
    turn = max(2 * (length - 1), 1)
    return min(frame % turn, turn - frame % turn) if length > 1 else 0


def find_sources(folders: Sequence[str | Path], key: str) -> list[Source]:
    """Photographs and clips of ``FOLDER/JPEGImages`` and ``FOLDER/Annotations``, sorted by name.

    Files right in JPEGImages are photographs, folders are clips. ``key`` names the option in messages.
    UserError for a folder without either.
    """
    sources: list[Source] = []
    for folder in map(Path, folders):
        images, masks = folder / "JPEGImages", folder / "Annotations"
        if not images.is_dir() or not masks.is_dir():
            raise UserError(f"{key} {folder}: needs JPEGImages and Annotations; name a folder that holds both")
        before = len(sources)
        for entry in sorted(images.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                files = sorted((path for path in entry.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES),
                               key=lambda path: name_order(path.stem))
                places = [(path, masks / entry.name / f"{path.stem}.png") for path in files]
                frames = tuple((path, mask if mask.is_file() else None) for path, mask in places)
                if len(frames) > 1 and frames[0][1] is not None:
                    sources.append(Source(entry.name, frames))
            elif entry.suffix.lower() in IMAGE_SUFFIXES and (masks / f"{entry.stem}.png").is_file():
                sources.append(Source(entry.stem, ((entry, masks / f"{entry.stem}.png"),)))
        if len(sources) == before:
            raise UserError(f"{key} {folder}: no photograph or clip in it has a mask; see JPEGImages and Annotations")
    known: dict[tuple[str, int], Path] = {}
    for image, name in ((source.frames[0][0], source.name) for source in sources):
        if (other := known.setdefault((name, image.stat().st_size), image)) is not image:
            raise UserError(f"{key}: {image} is the same picture as {other}, which is named twice; leave one out")
    return sources


def find_cutouts(sources: Sequence[Source]) -> list[CutOut]:
    """The objects of ``sources`` that are fit to be cut out, judged by each source's first mask."""
    found = []
    for source in sources:
        mask = source.frames[0][1]
        labels = read_labels(mask) if mask is not None else np.zeros((1, 1), np.uint8)
        for label in np.unique(labels).tolist():
            if label not in (0, IGNORE) and _is_fit(labels == label):
                found.append(CutOut(source, label))
    return found


def _is_fit(mask: np.ndarray) -> bool:
    if not _SHARE[0] <= mask.mean() <= _SHARE[1]:
        return False
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return False
    _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    rows, columns = np.nonzero(mask)
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return boxes[1:, cv2.CC_STAT_AREA].max() >= _WHOLE * mask.sum() and mask.sum() >= _FILLED * box


def cut(model: CutOut, radius: float) -> CutOutLook:
    """Cut an object out of its source, at the resolution at which it is drawn with ``radius`` pixels."""
    crops = []
    for image, mask in model.source.frames[:_MOST_FRAMES]:
        if mask is not None:
            cover = read_labels(mask) == model.label
            if not crops or _is_fit(cover):
                crops.append((read_image(image), cover))
                if crops[-1][0].shape[:2] != cover.shape:
                    raise UserError(f"{mask}: the mask is {cover.shape[1]}x{cover.shape[0]}, its picture "
                                    f"{crops[-1][0].shape[1]}x{crops[-1][0].shape[0]}; make them equal")
    half = max(max(np.ptp(place) for place in np.nonzero(cover)) for _, cover in crops) // 2 + 2
    extent = float(np.clip(np.sqrt(2.2 * half * half / crops[0][1].sum()), 1, _MOST_EXTENT))
    side = max(round(2.6 * radius * extent), 8)
    squares = [_square(image, cover, half, side) for image, cover in crops]
    return CutOutLook([picture for picture, _ in squares], [cover for _, cover in squares], extent)


def _square(image: np.ndarray, cover: np.ndarray, half: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(cover)
    y, x = (int(rows.min()) + int(rows.max())) // 2, (int(columns.min()) + int(columns.max())) // 2
    layers = np.dstack([image * cover[..., None], cover * 255]).astype(np.float32)  # (H, W, 4), colour times cover
    layers = cv2.copyMakeBorder(layers, half, half, half, half, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    layers = cv2.resize(layers[y : y + 2 * half, x : x + 2 * half], (side, side), interpolation=cv2.INTER_AREA)
    alpha = layers[..., 3] / 255
    return layers[..., :3] / np.maximum(alpha, 1e-3)[..., None], alpha


def fill(image: np.ndarray, size: tuple[int, int], interpolation: int = cv2.INTER_AREA) -> np.ndarray:
    """Scale to cover ``size`` (height, width), and cut the middle: nothing is stretched."""
    height, width = image.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    big = (max(round(width * scale), size[1]), max(round(height * scale), size[0]))
    image = cv2.resize(image, big, interpolation=interpolation)
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return image[top : top + size[0], left : left + size[1]]
