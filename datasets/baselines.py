"""Trivial baselines that a network must beat: the first masks copied, and carried along by optical flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from datasets.readers import given_labels, read_image, write_labels
from datasets.records import Video, VideoSet

Advance = Callable[[int], None]


def copy_first(found: VideoSet, output: str | Path, advance: Advance | None = None) -> None:
    """Write ``output/masks/<video>/<frame>.png``: every object's first mask, repeated in all frames after it."""
    _write(found, output, _copied, advance)


def flow(found: VideoSet, output: str | Path, advance: Advance | None = None) -> None:
    """Write the same, with the masks carried from frame to frame by OpenCV's DIS optical flow.

    Preset medium; backward flow from the current to the previous frame; remapped by nearest neighbour.
    """
    _write(found, output, _carried, advance)


def _write(
    found: VideoSet, output: str | Path, masks: Callable[[Video, str], Iterator[np.ndarray]], advance: Advance | None
) -> None:
    for video in found.videos:
        for stem, labels in zip(video.frames, masks(video, found.objects), strict=True):
            write_labels(Path(output) / "masks" / video.name / f"{stem}.png", labels)
            if advance:
                advance(1)


def _copied(video: Video, objects: str) -> Iterator[np.ndarray]:
    given = given_labels(video, objects)
    height, width = read_image(video.image_path(video.frames[0])).shape[:2]
    labels = np.zeros((height, width), np.uint8)
    for stem in video.frames:
        labels = _with_given(labels, given.get(stem))
        yield labels


def _carried(video: Video, objects: str) -> Iterator[np.ndarray]:
    given = given_labels(video, objects)
    engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    previous = _grey(video, video.frames[0])
    labels = np.zeros(previous.shape, np.uint8)
    grid = np.stack(np.mgrid[: labels.shape[0], : labels.shape[1]][::-1], axis=2).astype(np.float32)  # (H, W, 2) x, y
    for stem in video.frames:
        grey = _grey(video, stem)
        if labels.any():
            places = grid + engine.calc(grey, previous, None)
            labels = cv2.remap(labels, places, None, cv2.INTER_NEAREST)  # 0 where the flow leaves the frame
        labels = _with_given(labels, given.get(stem))
        previous = grey
        yield labels


def _grey(video: Video, stem: str) -> np.ndarray:
    return cv2.cvtColor(read_image(video.image_path(stem)), cv2.COLOR_RGB2GRAY)


def _with_given(labels: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    return labels if given is None else np.where(given > 0, given, labels)
