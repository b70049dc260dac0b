"""Where frames come from: a video of a data set, or one's own film or folder; decoded ahead in the background."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np

from datasets.headers import image_size
from datasets.own_video import OwnFrame as Frame
from datasets.own_video import OwnVideo
from datasets.readers import given_labels, read_image
from datasets.records import Video

Item = TypeVar("Item")
AHEAD = 4  # frames decoded before they are needed
READERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # images of one video decoded at once


class Source(Protocol):
    """A video to segment: its name, its frames in order, and how many there are (0: a film that does not say).

    A frame has a ``stem`` (its mask file's name without suffix), an ``image`` (H, W, 3) uint8 RGB, ``given`` (H, W)
    uint8 ids of the objects that the user gives in it (or None), and ``where``, what to call it in a message.
    """

    name: str
    rate: float | None  # frames/s of a film; None where nothing says it

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def size(self) -> tuple[int, int]:
        """(H, W) of its frames."""
        ...

    def fingerprint(self) -> str:
        """Digest of what lies under this name, wherever that is; masks of another fingerprint are not this video's."""
        ...


class DatasetSource:
    """A video of a data set. Of its annotations only each object's pixels where it first appears are ever seen."""

    rate = None

    def __init__(self, video: Video, objects: str):
        """objects: "late" or "first", the rule that says which objects are given and where."""
        self.name, self.video, self.objects = video.name, video, objects

    def __len__(self) -> int:
        return len(self.video.frames)

    def __iter__(self) -> Iterator[Frame]:
        given = given_labels(self.video, self.objects)
        paths = {stem: self.video.image_path(stem) for stem in self.video.frames}
        for (stem, path), image in zip(paths.items(), read_in_order(paths.values()), strict=True):
            yield Frame(stem, image, given.get(stem), str(path))

    def size(self) -> tuple[int, int]:
        width, height = image_size(self.video.image_path(self.video.frames[0]))
        return height, width

    def fingerprint(self) -> str:
        files = [self.video.image_path(stem) for stem in self.video.frames]
        masks = [self.video.mask_path(stem) for stem in self.video.masks]
        sizes = [path.stat().st_size for path in (*files, *masks)]  # the bytes of them all would take too long to read
        return _digest(*self.video.frames, *sizes, *(path.read_bytes() for path in masks[:1]))


class OwnSource:
    """One's own film or folder of frames, with the masks given for it (checked when this is made)."""

    def __init__(self, path: str | Path, masks: Sequence[str | Path]):
        """As datasets.own_video.OwnVideo; raises UserErrors with all that is wrong."""
        self.video = OwnVideo(path, masks)
        self.name, self.notes = self.video.name, self.video.notes
        self.rate = _film_rate(self.video.path) if self.video.path.is_file() else None

    def __len__(self) -> int:
        return len(self.video)

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.video)

    def size(self) -> tuple[int, int]:
        height, width = next(iter(self.video)).image.shape[:2]
        return height, width

    def fingerprint(self) -> str:
        masks = [part for stem, labels in sorted(self.video.given.items()) for part in (stem, labels.tobytes())]
        return _digest(*(part for path in self.video.files for part in (path.name, path.stat().st_size)), *masks)


def read_in_order(paths: Iterable[Path], threads: int = READERS) -> Iterator[np.ndarray]:
    """Images in order, up to ``threads`` being decoded at once."""
    if threads == 1:
        yield from map(read_image, paths)
        return
    with ThreadPoolExecutor(threads, "read-image") as pool:
        reading: deque[Future[np.ndarray]] = deque()
        for path in paths:
            reading.append(pool.submit(read_image, path))
            if len(reading) >= threads:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def _film_rate(path: Path) -> float | None:
    capture = cv2.VideoCapture(str(path))
    try:
        return capture.get(cv2.CAP_PROP_FPS) or None
    finally:
        capture.release()


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else f"{part}\0".encode())
    return digest.hexdigest()


def decode_ahead(frames: Iterable[Item], ahead: int = AHEAD) -> Iterator[Item]:
    """Iterate in order while a background thread works up to ``ahead`` items in advance.

    An error of the source is raised here, where the item was due. Leaving the loop early ends the thread.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in frames:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put("error", error)

    thread = threading.Thread(target=work, name="decode-ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
