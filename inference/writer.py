"""Masks, scores and overlays, written behind the network in the background; every file is whole or absent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import UserError
from common.files import written_whole
from datasets.readers import DAVIS_PALETTE

PALETTE = np.array(DAVIS_PALETTE, np.uint8).reshape(256, 3)  # RGB
BEHIND = 8  # files that may wait to be written; bounds the memory
OPACITY = 0.45  # of the objects' colours in overlays
FILM_RATE = 6.0  # frames/s of an overlay film where the source has no rate: LVOS is annotated at 6 a second


class Writer:
    """Runs file writing in one background thread, in order. Use as a context manager.

    The first error (a full disk, say) is raised at the next call or at the end; nothing is written after it.
    """

    def __init__(self) -> None:
        self._tasks: queue.Queue[tuple[Callable[..., None], tuple] | None] = queue.Queue(maxsize=BEHIND)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="write-behind", daemon=True)
        self._thread.start()

    def put(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function(*arguments)`` soon; waits where too much is waiting already."""
        self._raise()
        self._tasks.put((function, arguments))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._tasks.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is None:
                function, arguments = task
                try:
                    function(*arguments)
                except BaseException as error:  # raised again in the caller's thread
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def write_scores(path: Path, probabilities: np.ndarray, ids: list[int]) -> None:
    """Probabilities (1 + n, H, W) as uint8 (255 = 1.0) with the objects' ids, as a compressed .npz."""
    with written_whole(path) as beside, open(beside, "wb") as stream:
        np.savez_compressed(stream, probability=np.round(probabilities * 255).astype(np.uint8), ids=np.array([0, *ids]))


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Colour the objects of a label map onto an RGB image, with their contours; both (H, W, ..) uint8."""
    colour = PALETTE[labels]
    inside = labels[..., None] > 0
    mixed = np.where(inside, (image * (1 - OPACITY) + colour * OPACITY).astype(np.uint8), image)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = np.where(inside, colour, 255)[edge]
    return mixed


class Overlays:
    """The overlay pictures of one video and their film: FOLDER/<stem>.jpg and FOLDER.mp4."""

    def __init__(self, folder: Path, rate: float | None):
        self.folder, self.rate = folder, rate or FILM_RATE
        self.part = folder.parent / f".{folder.name}.part.mp4"
        self._film: cv2.VideoWriter | None = None

    def add(self, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
        """Write the picture of one frame and append it to the film."""
        picture = cv2.cvtColor(overlay(image, labels), cv2.COLOR_RGB2BGR)
        with written_whole(self.folder / f"{stem}.jpg") as beside:
            if not cv2.imwrite(str(beside), picture):
                raise UserError(f"{self.folder}: cannot write {stem}.jpg; free some room or choose another --output")
        if self._film is None:
            self._film = cv2.VideoWriter(str(self.part), cv2.VideoWriter_fourcc(*"mp4v"), self.rate,
                                         (picture.shape[1], picture.shape[0]))
            if not self._film.isOpened():
                raise UserError(f"{self.part}: this OpenCV cannot write mp4; leave --overlay out")
        self._film.write(picture)

    def finish(self) -> None:
        """Put the film in its place."""
        if self._film is not None:
            self._film.release()
            self.part.replace(self.folder.with_suffix(".mp4"))

    def abandon(self) -> None:
        """Leave no half a film behind."""
        if self._film is not None:
            self._film.release()
        self.part.unlink(missing_ok=True)

