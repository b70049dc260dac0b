"""One's own video: a film, or a folder of frames, with one or more masks; read as a stream, never whole.

A folder's frames keep their stems; a film's are numbered from 0 with eight digits. The video's name is the stem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from common.errors import UserError, UserErrors, nearest
from datasets.check import check_images
from datasets.headers import image_size, read_header
from datasets.readers import IGNORE, read_image, read_labels, white_as_object
from datasets.records import IMAGE_SUFFIXES, name_order

MOST_SHADES = 20  # objects in a grey mask; with more it is a drawing with soft edges


@dataclass(frozen=True)
class OwnFrame:
    """One frame: ``image`` (H, W, 3) uint8 RGB, ``given`` (H, W) uint8 ids or None, ``where`` for messages."""

    stem: str
    image: np.ndarray
    given: np.ndarray | None
    where: str


class OwnVideo:
    """A film or a folder of frames. Iterating decodes one frame at a time; ``len`` is a film's own estimate."""

    def __init__(self, path: str | Path, masks: Sequence[str | Path]):
        """Check everything that can be checked before the first frame.

        ``path``: a film (whatever OpenCV decodes) or a folder of .jpg or .png frames. ``masks``: ``PNG``, for the
        first frame, or ``FRAME:PNG``, where FRAME is a frame's stem, or an index of a film.
        A mask of 0 and 255 alone is one object, id 1; otherwise 255 is ignored.

        Raises UserErrors with all that is wrong.
        """
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(f"--video {path}: there is no such film or folder")
        self.name = self.path.stem if self.path.is_file() else self.path.resolve().name
        self._files = _frames_of(self.path) if self.path.is_dir() else {}
        self._length, size = (len(self._files), None) if self._files else _film_properties(self.path)
        problems: list[str] = []
        check_images(list(self._files.values()), problems)
        self.given: dict[str, np.ndarray] = {}
        if not masks:
            problems.append("--mask: give the first frame's objects as a palette PNG, --mask PNG")
        for mask in masks:
            try:
                stem, png = self._mask_place(str(mask))
                labels = object_mask(png)
                expected = image_size(self._files[stem]) if self._files else size
                if expected and labels.shape != (expected[1], expected[0]):
                    problems.append(f"{png}: the mask is {labels.shape[1]}x{labels.shape[0]}, its frame "
                                    f"{expected[0]}x{expected[1]}; make them equal")
                if stem in self.given:
                    problems.append(f"{png}: frame {stem} has a mask already; put the objects of one frame in one "
                                    "mask, with an id each")
                self.given[stem] = labels
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserErrors(problems)
        self.notes = self._corrections()

    def _corrections(self) -> list[str]:
        """A line for each later mask without a new object: two black and white ones may be meant as two objects."""
        known: set[int] = set()
        lines = []
        for stem in (stem for stem in self._files or sorted(self.given) if stem in self.given):
            ids = set(np.unique(self.given[stem]).tolist()) - {0, 255}
            if known and not ids - known:
                lines.append(f"the mask of frame {stem} gives no new object, it corrects {sorted(ids)}; a further "
                             "object needs an id of its own (a black and white mask is object 1)")
            known |= ids
        return lines

    @property
    def files(self) -> list[Path]:
        """The film, or the frames in order."""
        return list(self._files.values()) or [self.path]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[OwnFrame]:
        """Yield the frames in order. UserError for a corrupt frame, or a mask of a frame past a film's end."""
        if self._files:
            for stem, path in self._files.items():
                yield OwnFrame(stem, read_image(path), self.given.get(stem), str(path))
            return
        used = 0
        for index, image in enumerate(_film_frames(self.path)):
            given = self.given.get(f"{index:08d}")
            used += given is not None
            yield OwnFrame(f"{index:08d}", image, given, f"{self.path}, frame {index}")
        if used < len(self.given):
            raise UserError(f"--mask: frame {max(self.given)} lies past the end of {self.path}")

    def _mask_place(self, mask: str) -> tuple[str, Path]:
        """The stem and the file that a --mask names."""
        frame, colon, file = mask.partition(":")
        if Path(mask).is_file() or not colon:
            frame, file = (next(iter(self._files)) if self._files else "0"), mask
        if self._files:
            if frame not in self._files:
                hint = shorten(nearest(frame, self._files), 160, placeholder=" ...") if len(self._files) < 2000 else ""
                raise UserError(f"--mask {mask}: {self.path} has no frame '{frame}'; {hint}")
            return frame, Path(file)
        if not frame.isdecimal():
            raise UserError(f"--mask {mask}: '{frame}' is no frame of a film; give its index, counted from 0")
        if self._length and int(frame) >= 1.1 * self._length + 10:  # what a film announces may be an estimate
            raise UserError(f"--mask {mask}: {self.path} has {self._length} frames, counted from 0")
        return f"{int(frame):08d}", Path(file)


def object_mask(path: Path) -> np.ndarray:
    """Read a mask that a person made: ``(H, W)`` uint8 ids; 0 and 255 alone mean one object, id 1."""
    if not path.is_file():
        raise UserError(f"--mask {path}: the mask is missing; name a PNG, or FRAME:PNG for a later frame")
    labels = white_as_object(read_labels(path))
    void, objects = int((labels == IGNORE).sum()), int(((labels > 0) & (labels < IGNORE)).sum())
    if not void + objects:
        raise UserError(f"{path}: the mask is empty; paint each object with its id (1, 2, ...)")
    if void > objects:
        raise UserError(f"{path}: most of what is painted is 255, beside smaller values, as where a white object has "
                        "soft edges; make the mask 0 and 255 alone, or give each object an id (1, 2, ...)")
    ids = np.unique(labels)
    if len(ids) - 1 > MOST_SHADES and read_header(path).mode == "greyscale":
        raise UserError(f"{path}: {len(ids) - 1} shades of grey, each of which would be an object, as where a drawing "
                        "has soft edges; paint each object with one id (1, 2, ...), make the mask 0 and 255 alone, or, "
                        "where they are objects indeed, save it as a palette PNG")
    return np.where(labels == IGNORE, 0, labels).astype(np.uint8)


def _frames_of(folder: Path) -> dict[str, Path]:
    files = [path for path in sorted(folder.iterdir())
             if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise UserError(f"--video {folder}: the folder holds no .jpg or .png frames")
    paths = {path.stem: path for path in files}
    if twice := [path for path in files if paths[path.stem] != path]:
        raise UserError(f"--video {folder}: {twice[0].name} and {paths[twice[0].stem].name} are one frame, twice "
                        f"({len(twice)} such); keep frames alone in the folder, masks elsewhere")
    return {stem: paths[stem] for stem in sorted(paths, key=name_order)}


def _film_properties(path: Path) -> tuple[int, tuple[int, int] | None]:
    """A film's number of frames (0: unknown) and its (width, height) as decoded."""
    import cv2

    first = next(_film_frames(path), None)
    if first is None:
        raise UserError(f"--video {path}: no frame can be decoded; convert it, for example to H.264 in .mp4")
    capture = cv2.VideoCapture(str(path))
    try:
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))), (first.shape[1], first.shape[0])
    finally:
        capture.release()


def _film_frames(path: Path) -> Iterator[np.ndarray]:
    import cv2

    capture = cv2.VideoCapture(str(path))
    try:
        while True:
            read, image = capture.read()
            if not read:
                return
            yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
