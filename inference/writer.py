"""Masks, scores and overlays, written behind the network in the background; every file is whole or absent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import written_whole
from datasets.readers import DAVIS_PALETTE

PALETTE = np.array(DAVIS_PALETTE, np.uint8).reshape(256, 3)  # RGB
BEHIND = 8  # files that may wait to be written; bounds the memory
OPACITY = 0.45  # of the objects' colours in overlays
QUALITY = 90  # of the JPEG pictures
FILM_RATE = 6.0  # frames/s of an overlay film where the source has no rate: LVOS is annotated at 6 a second
FASTEST = 600.0  # frames/s of an overlay film


class Writer:
    """Runs file writing in the background, in order (with one thread). Use as a context manager.

    The first error (a full disk, say) is raised at the next call or at the end; nothing is begun after it.
    """

    def __init__(self, threads: int = 1) -> None:
        self._tasks: queue.Queue[tuple[Callable[..., None], tuple] | None] = queue.Queue(maxsize=BEHIND)
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name="write-behind", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call ``function(*arguments)`` soon; waits where too much is waiting already."""
        self._raise()
        self._tasks.put((function, arguments))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        if kind is None:
            self._raise()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is None:
                function, arguments = task
                try:
                    function(*arguments)
                except BaseException as error:  # raised again in the caller's thread
                    self._error = self._error or error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def probabilities_to_write(probabilities: Tensor | None, given: np.ndarray | None, labels: np.ndarray,
                           ids: Sequence[int]) -> np.ndarray:
    """Probabilities of a frame as uint8, 255 = 1.0: (1 + n, H, W), channel 0 the background, then ``ids`` in order.

    Where the user gives objects their pixels are certain, as in the mask.

    Args:
        probabilities: (1, c, H, W) of the predictor; channels of objects that the frame gives may lack, unused
            ones may follow. None: the first frame, which is given whole.
        given: (H, W) uint8, what the user gave in this frame; labels: (H, W) uint8, the frame's mask.
    """
    channels = 1 + len(ids)
    scores = np.zeros((channels, *labels.shape), np.uint8)
    if probabilities is not None:
        predicted = (probabilities[0, :channels] * 255).round().to(torch.uint8).cpu().numpy()
        scores[: len(predicted)] = predicted
    certain = np.ones(labels.shape, bool) if probabilities is None else np.zeros(labels.shape, bool)
    if probabilities is not None and given is not None:
        certain = (given > 0) & (given < 255)
    for channel, value in enumerate((0, *ids)):
        scores[channel][certain] = np.where(labels[certain] == value, 255, 0)
    return scores


def write_scores(path: Path, scores: np.ndarray, ids: Sequence[int]) -> None:
    """Probabilities (1 + n, H, W) uint8 with the objects' ids (n + 1, the first 0), as a compressed .npz."""
    with written_whole(path) as beside, open(beside, "wb") as stream:
        np.savez_compressed(stream, probability=scores, ids=np.array([0, *ids]))


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Colour the objects of a label map onto an RGB image, with a contour just inside; both (H, W, ..) uint8."""
    colour = PALETTE[labels]
    inside = labels[..., None] > 0
    mixed = np.where(inside, (image * (1 - OPACITY) + colour * OPACITY).astype(np.uint8), image)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    edge = (labels > 0) & (cv2.dilate(labels, cross) != cv2.erode(labels, cross))  # another label beside it
    mixed[edge] = colour[edge]
    return mixed


def film_part(film: Path) -> Path:
    """Where a film grows until it is whole."""
    return film.with_name(f".{film.stem}.part.mp4")


class Overlays:
    """The overlay pictures of one video, FOLDER/<stem>.jpg, and their film, FOLDER.mp4."""

    def __init__(self, folder: Path, film: Path, rate: float | None):
        """rate: frames/s; None: that of LVOS's annotations."""
        self.folder, self.film = folder, film
        self.rate = min(round(rate or FILM_RATE, 2), FASTEST)  # MPEG-4 counts time in fractions of at most 1 / 65535 s
        self._part = film_part(film)
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def add(self, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
        """Write the picture of one frame and append it to the film."""
        picture = cv2.cvtColor(overlay(image, labels), cv2.COLOR_RGB2BGR)
        with written_whole(self.folder / f"{stem}.jpg") as beside:
            beside.write_bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes())
        if self._writer is None:
            self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter_fourcc(*"mp4v"), self.rate,
                                           (picture.shape[1], picture.shape[0]))
            if not self._writer.isOpened():
                raise UserError(f"{self.film}: this OpenCV cannot write mp4; leave --overlay out")
        self._writer.write(picture)
        self._count += 1

    def finish(self) -> None:
        """Put the film in its place. OpenCV says nothing where a disk is full, so the film is looked at."""
        if self._writer is None:
            return
        self._writer.release()
        film = cv2.VideoCapture(str(self._part))
        whole = int(film.get(cv2.CAP_PROP_FRAME_COUNT)) == self._count
        film.release()
        if not whole:
            raise UserError(f"{self.film}: the film could not be written whole; free some room, then run the same "
                            "command again")
        self._part.replace(self.film)

    def abandon(self) -> None:
        """Leave no half a film behind."""
        if self._writer is not None:
            self._writer.release()
        self._part.unlink(missing_ok=True)
