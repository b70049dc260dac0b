"""Training clips of photographs with instance masks: one picture, moved anew for every frame (AOT, section 4.1 of the
paper; facts 8.7). Masks come as palette PNG beside the pictures, as COCO json, or in VOC's folders."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import UserError, UserErrors
from configs.schema import SourceConfig, TrainConfig
from datasets.augment import Clip, cut_in_two, mirrored, moved_image, numbered, recoloured
from datasets.headers import cut_short, read_header
from datasets.readers import IGNORE, read_image, read_labels, white_as_object

FARTHEST = 1e5  # pixels: no outline has points beyond
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Picture = tuple[Path, Callable[[tuple[int, int]], np.ndarray]]  # image, and its label map at the image's size


class StaticClips:
    """Clips of the pictures of one folder."""

    def __init__(self, source: SourceConfig, train: TrainConfig):
        self.train = train
        self.notes: list[str] = []
        self.pictures = find_pictures(Path(source.root), source.format, self.notes)

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return self.pictures[index][0].name

    def clip(self, index: int, rng: np.random.Generator) -> tuple[Clip, int]:
        """A clip of picture ``index`` at ``train.crop`` pixels, its objects numbered 1..n in random order, and n."""
        train = self.train
        path, labels_of = self.pictures[index]
        image = read_image(path)
        labels = white_as_object(labels_of(image.shape[:2]))
        if labels.shape != image.shape[:2]:
            raise UserError(f"{path}: the picture is {image.shape[1]}x{image.shape[0]}, its mask "
                            f"{labels.shape[1]}x{labels.shape[0]}; make them equal")
        table = np.arange(256, dtype=np.uint8)
        table[1:255] = 1 + rng.permutation(254)
        clip = Clip([image], [table[labels]])
        if train.cut and rng.random() < train.cut:
            clip.labels = cut_in_two(clip.labels, rng)
        if rng.random() < 0.5:
            clip = mirrored(clip)
        pairs = [moved_image(clip.frames[0], clip.labels[0], train.crop, rng, moves=frame > 0)
                 for frame in range(train.frames)]
        frames = [recoloured(frame, rng, train.augmentation) for frame, _ in pairs]
        return numbered(Clip(frames, [labels for _, labels in pairs]), rng)


def find_pictures(root: Path, format: str, notes: list[str]) -> list[Picture]:
    """Pictures with instance masks under ``root``; ``notes`` gets a line on what is left out.

    Layouts, tried in this order where ``format`` is ``auto``: VOC (``JPEGImages`` with ``SegmentationObject``), a
    folder of palette PNG (``JPEGImages/x.jpg`` with ``Annotations/x.png``), COCO (a ``.json`` with ``images`` and
    ``annotations`` in ``root`` or ``root/annotations``; pictures anywhere below ``root``).

    Raises:
        UserError: no such folder, or nothing in it; pictures and masks that are broken or unlike in size, all at once;
            a COCO file that is broken.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data.sources must name a folder of pictures")
    if format in ("auto", "voc") and (root / "SegmentationObject").is_dir():
        found = _beside(root / "JPEGImages", root / "SegmentationObject", notes)
    elif format in ("auto", "plain") and (root / "Annotations").is_dir():
        found = _beside(root / "JPEGImages", root / "Annotations", notes)
    elif format in ("auto", "coco"):
        found = _coco(root, notes)
    else:
        raise UserError(f"{root}: no {format} pictures there; expected " + (
            "JPEGImages and SegmentationObject" if format == "voc" else "JPEGImages and Annotations"))
    if not found:
        raise UserError(f"{root}: no picture has a mask; put JPEGImages/x.jpg beside Annotations/x.png")
    return found


def _beside(images: Path, masks: Path, notes: list[str]) -> list[Picture]:
    pictures = sorted(path for path in images.glob("[!.]*") if path.suffix.lower() in _SUFFIXES)

    def reader(mask: Path) -> Callable[[tuple[int, int]], np.ndarray]:
        grey = read_header(mask).mode == "greyscale"
        return lambda shape: without_grades(read_labels(mask)) if grey else read_labels(mask)

    paired = [(path, mask) for path in pictures if (mask := masks / f"{path.stem}.png").is_file()]
    if len(paired) < len(pictures):
        notes.append(f"{images}: {len(pictures) - len(paired)} of {len(pictures)} pictures have no mask of their name "
                     f"in {masks}; they are not used")
    if problems := [problem for pair in paired for problem in _mismatch(*pair)]:
        raise UserErrors(problems)
    return [(path, reader(mask)) for path, mask in paired]


def _mismatch(picture: Path, mask: Path) -> list[str]:
    """What a look at the first and last bytes of a picture and its mask finds wrong, one line each."""
    problems, sizes = [], {}
    for path in (picture, mask):
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
            continue  # read_header knows no others
        try:
            header = read_header(path)
            sizes[path] = f"{header.width}x{header.height}"
            if cut_short(path):
                problems.append(f"{path}: the file is cut short; restore it, or remove the picture and its mask")
        except UserError as error:
            problems.append(str(error))
    if not problems and len(set(sizes.values())) > 1:
        problems.append(f"{picture}: the picture is {sizes[picture]}, its mask {sizes[mask]}; make them equal")
    return problems


def without_grades(labels: np.ndarray) -> np.ndarray:
    """A grey mask with 255 and other values of 128 and more is a black and white one with soft edges or grades, not one
    of so many objects: 255 from 128 on, else 0. Any other as it is."""
    white = labels == IGNORE
    return np.uint8(IGNORE) * (labels >= 128) if white.any() and ((labels >= 128) & ~white).any() else labels


def _coco(root: Path, notes: list[str]) -> list[Picture]:
    files = sorted([*root.glob("[!.]*.json"), *root.glob("annotations/[!.]*.json")])
    files = [path for path in files if not path.name.startswith(("captions", "person_keypoints"))]
    if not files:
        raise UserError(f"{root}: no pictures with masks (looked for JPEGImages with SegmentationObject or "
                        "Annotations, and for COCO's *.json); check data.sources")
    places: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("[!.]*")):
        if path.suffix.lower() in _SUFFIXES:
            places.setdefault(path.name, []).append(path)
    found: list[Picture] = []
    for file in files:
        try:
            content = json.loads(file.read_text())
            names = {image["id"]: str(Path(image["file_name"])) for image in content["images"]}
            instances: dict[int, list] = {image: [] for image in names}
            for one in content["annotations"]:
                instances[one["image_id"]].append((float(one.get("area") or 0), _shapes(one["segmentation"])))
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(f"{file}: not a COCO instance file ({error!r}); remove it or mend it") from error
        missing = empty = 0
        for image, name in sorted(names.items()):
            drawn = [(area, shapes) for area, shapes in instances[image] if shapes]
            empty += len(instances[image]) - len(drawn)
            path = _place(name, places, file) if drawn else None
            if path is not None:
                found.append((path, _drawer(drawn, file, name)))
            elif drawn:
                missing += 1
        if missing:
            notes.append(f"{file}: {missing} of its pictures are not below {root}; they are not used")
        if empty:
            notes.append(f"{file}: {empty} instances have no outline of three points; they are not used")
    return found


def _shapes(segmentation: Any) -> dict[str, Any] | list[np.ndarray]:
    """An instance as run lengths with their size, or as polygons (N, 2) of at least three points."""
    if isinstance(segmentation, dict):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        counts = _decompressed(counts) if isinstance(counts, str) else [operator.index(count) for count in counts]
        if min(counts, default=0) < 0:
            raise ValueError("a run length is below 0")
        return {"size": (height, width), "counts": counts}
    polygons = [np.asarray(one, np.float64).reshape(-1, 2) for one in segmentation]
    if not all((np.abs(one) < FARTHEST).all() for one in polygons):  # false of NaN, too
        raise ValueError("a point of an outline is no place in a picture")
    return [np.round(one).astype(np.int32) for one in polygons if len(one) > 2]


def _place(name: str, places: dict[str, list[Path]], file: Path) -> Path | None:
    """Where a json's picture is, by its path or, where only one has it, by its name; None: it is not there."""
    parts = Path(name).parts
    known = places.get(parts[-1], [])
    exact = [path for path in known if path.parts[-len(parts):] == parts]
    if len(known) > 1 and len(exact) != 1:
        raise UserError(f"{file}: several pictures are called {name} ({known[0]}, {known[1]}); write their paths from "
                        "the root into file_name")
    return (exact or known or [None])[0]


def _drawer(instances: list, file: Path, name: str) -> Callable[[tuple[int, int]], np.ndarray]:
    """Draw COCO's instances, large ones first so that small ones lie on top; at most 254."""
    instances = sorted(instances, key=lambda pair: -pair[0])[:254]

    def draw(shape: tuple[int, int]) -> np.ndarray:
        labels = np.zeros(shape, np.uint8)
        for number, (_, shapes) in enumerate(instances, 1):
            if isinstance(shapes, list):
                cv2.fillPoly(labels, shapes, number)
            elif shapes["size"] == shape and sum(shapes["counts"]) == shape[0] * shape[1]:
                labels[_run_lengths(shapes)] = number
            else:
                raise UserError(f"{file}: the run lengths of an instance of {name} do not fill the picture's "
                                f"{shape[1]}x{shape[0]} pixels; mend them or remove the instance")
        return labels

    return draw


def _run_lengths(mask: dict[str, Any]) -> np.ndarray:
    """COCO's run lengths as a boolean (H, W) mask; columns first."""
    height, width = mask["size"]
    values = np.arange(len(mask["counts"])) % 2 == 1
    return np.repeat(values, mask["counts"]).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    # Groups of 5 bits, low ones first, bit 6 says that more follow; from the third on, differences to two before.
    counts: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 0x1F) << shift
            more, place, shift = bool(bits & 0x20), place + 1, shift + 5
            if not more and bits & 0x10:
                value |= -1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts
