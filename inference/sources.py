"""Where frames come from: a video of a data set, or one's own film or folder; decoded ahead in the background."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from datasets.readers import given_labels, read_image
from datasets.records import Video

Item = TypeVar("Item")
AHEAD = 4  # frames decoded before they are needed


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        stem: name of its mask file without suffix; image: (H, W, 3) uint8 RGB.
        given: (H, W) uint8 label map of the objects that the user gives in it, or None.
        where: what to call it in a message.
    """

    stem: str
    image: np.ndarray
    given: np.ndarray | None
    where: str


class Source(Protocol):
    """A video to segment: its name, its frames in order, and how many there are."""

    name: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


class DatasetSource:
    """A video of a data set. Of its annotations only each object's pixels where it first appears are ever seen."""

    def __init__(self, video: Video, objects: str):
        """objects: "late" or "first", the rule that says which objects are given and where."""
        self.name, self.video, self.objects = video.name, video, objects

    def __len__(self) -> int:
        return len(self.video.frames)

    def __iter__(self) -> Iterator[Frame]:
        given = given_labels(self.video, self.objects)
        for stem in self.video.frames:
            path = self.video.image_path(stem)
            yield Frame(stem, read_image(path), given.get(stem), str(path))


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
