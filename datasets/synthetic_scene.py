"""Scenes of the generated videos: who moves where and when, and the pictures and label maps that come of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np


class Drawable(Protocol):
    """What an actor looks like: a textured sprite, a cut-out of a photograph, a pillar."""

    @property
    def reach(self) -> float:
        """How far it extends from its middle, in radii."""
        ...

    def sample(self, u: np.ndarray, v: np.ndarray, frame: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Colour (h, w, 3) and coverage (h, w) at local coordinates, where 1 is ``radius`` pixels."""
        ...


class Backdrop(Protocol):
    """What is behind the actors."""

    def picture(self, frame: int) -> np.ndarray:
        """(H, W, 3) float32 RGB 0..255."""
        ...


@dataclass
class Track:
    """Where an actor is, frame by frame: ``position`` (T, 2) x, y in pixels, ``radius`` (T,), ``angle`` (T,) radians,
    ``gain`` (T, 3) factors of its colours, ``present`` (T,) bool."""

    position: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    gain: np.ndarray
    present: np.ndarray


@dataclass
class Actor:
    """Something that moves; ``label`` 0 is not annotated (a look-alike, a distractor, an occluder)."""

    look: Drawable
    track: Track
    label: int = 0
    caption: str = ""


Drawn = tuple[np.ndarray, np.ndarray, dict[int, float]]
"""A frame: (H, W, 3) uint8 RGB, (H, W) uint8 labels, and the visible share of each label's whole area."""


@dataclass
class Scene:
    """A video before it is drawn. ``actors`` from back to front; ``size`` is (height, width)."""

    size: tuple[int, int]
    frames: int
    backdrop: Backdrop
    actors: list[Actor]
    attributes: list[str] = field(default_factory=list)

    @property
    def captions(self) -> dict[int, str]:
        """A phrase for each label."""
        return {actor.label: actor.caption for actor in self.actors if actor.label}

    def draw(self) -> Iterator[Drawn]:
        """Yield the frames in order."""
        height, width = self.size
        for frame in range(self.frames):
            picture = self.backdrop.picture(frame).copy()
            labels = np.zeros((height, width), np.uint8)
            whole: dict[int, float] = {}
            for actor in self.actors:
                if actor.track.present[frame]:
                    area = _paint(picture, labels, actor, frame)
                    if actor.label:
                        whole[actor.label] = area
            counts = np.bincount(labels.ravel(), minlength=256)
            visible = {label: float(counts[label]) / max(area, 1.0) for label, area in whole.items()}
            yield np.clip(picture + 0.5, 0, 255).astype(np.uint8), labels, visible


@dataclass
class Pan:
    """A canvas under a moving camera: ``offset`` (T, 2) in pixels and ``zoom`` (T,)."""

    canvas: np.ndarray
    size: tuple[int, int]
    offset: np.ndarray
    zoom: np.ndarray

    def picture(self, frame: int) -> np.ndarray:
        height, width = self.size
        zoom, (x, y) = self.zoom[frame], self.offset[frame]
        matrix = np.array([[1 / zoom, 0, x], [0, 1 / zoom, y]], np.float32)
        return cv2.warpAffine(self.canvas, matrix, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                              borderMode=cv2.BORDER_REFLECT)


def _paint(picture: np.ndarray, labels: np.ndarray, actor: Actor, frame: int) -> float:
    """Draw one actor in place; return its whole area in pixels, hidden and outside parts too (0 if out of sight)."""
    height, width = labels.shape
    track = actor.track
    (x, y), radius = track.position[frame], track.radius[frame]
    reach = radius * actor.look.reach
    left, right, top, bottom = int(x - reach), int(x + reach) + 2, int(y - reach), int(y + reach) + 2
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return 0.0
    cos, sin = np.cos(track.angle[frame]) / radius, np.sin(track.angle[frame]) / radius
    dy, dx = np.mgrid[top:bottom, left:right].astype(np.float32)
    dx -= x
    dy -= y
    colour, cover = actor.look.sample(cos * dx + sin * dy, cos * dy - sin * dx, frame, radius)
    inside = slice(max(top, 0) - top, min(bottom, height) - top), slice(max(left, 0) - left, min(right, width) - left)
    place = slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))
    alpha = cover[inside][..., None]
    picture[place] += alpha * (colour[inside] * track.gain[frame].astype(np.float32) - picture[place])
    labels[place][cover[inside] >= 0.5] = actor.label
    return float((cover >= 0.5).sum())


# Motion. Every function draws from the generator it is given, so a video depends on its own seed alone.


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Smooth (T, ...) values over time with a window of odd length."""
    kernel = np.hanning(window + 2)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(values, [(window // 2, window // 2)] + [(0, 0)] * (values.ndim - 1), mode="edge")
    return np.stack([np.convolve(column, kernel, mode="valid") for column in padded.reshape(len(padded), -1).T],
                    axis=1).reshape(values.shape)


def swing(rng: np.random.Generator, frames: int, period: float, channels: int = 1) -> np.ndarray:
    """Slow random oscillation, (T, channels), about -1..1."""
    time = np.arange(frames)[:, None]
    waves = 0
    for weight, stretch in ((0.7, 1.0), (0.3, 0.43)):
        length = period * stretch * rng.uniform(0.8, 1.25, channels)
        waves = waves + weight * np.sin(2 * np.pi * (time / length + rng.uniform(0, 1, channels)))
    return np.asarray(waves)


def wander(
    rng: np.random.Generator, frames: int, size: tuple[int, int], radius: float, speed: float,
    absences: list[tuple[int, int]],
) -> tuple[np.ndarray, np.ndarray]:
    """A path inside the frame that leaves it during ``absences`` and comes back elsewhere.

    Args:
        radius: the largest radius of the actor, in pixels.
        speed: pixels a frame.
        absences: (first, past the last) frame out of sight; (0, n) begins outside.

    Returns:
        position (T, 2) x, y; present (T,) bool, False in the absences.
    """
    height, width = size
    room = np.array([width, height], float)
    margin = np.minimum(radius * 0.8, room * 0.3)
    times: list[int] = []
    places: list[np.ndarray] = []

    def inside() -> np.ndarray:
        return rng.uniform(margin, room - margin)

    def outside() -> np.ndarray:
        side = int(rng.integers(0, 4))
        place = inside()
        place[side // 2] = -1.6 * radius if side % 2 == 0 else room[side // 2] + 1.6 * radius
        return place

    def go_on(until: int) -> None:
        time, place = times[-1], places[-1]
        while time < until:
            target = max((inside() for _ in range(2)), key=lambda point: float(np.hypot(*(point - place))))
            time += max(int(np.hypot(*(target - place)) / (speed * rng.uniform(0.7, 1.4))), 3)
            if time < until:
                times.append(time)
                places.append(target)
                place = target

    present = np.ones(frames, bool)
    if not absences or absences[0][0] > 0:
        times.append(0)
        places.append(inside())
    for first, past in absences:
        if first > 0:
            away = outside()
            go_on(first - max(int(np.hypot(*(away - places[-1])) / (1.5 * speed)), 4))
            times.append(first)
            places.append(away)
        present[first:past] = False
        times.append(past)
        places.append(outside())
        times.append(past + max(int(2.2 * radius / speed), 3))
        places.append(inside())
    go_on(frames + 30)
    moments = np.arange(frames)
    path = np.stack([np.interp(moments, times, np.array(places)[:, axis]) for axis in (0, 1)], axis=1)
    return smooth(path, 5), present
