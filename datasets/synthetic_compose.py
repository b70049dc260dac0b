"""Composition of a generated video: which things there are, where they go, when they leave, what looks alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import cv2
import numpy as np

from datasets.synthetic_concepts import Concept, draw_concept, make_background, make_sprite
from datasets.synthetic_options import DIFFICULTIES, Difficulty, Options
from datasets.synthetic_scene import Actor, Backdrop, Drawable, Pan, Scene, Track, swing, wander


class Stock(Protocol):
    """Where looks and backgrounds come from: generated textures, or photographs and clips."""

    def models(self, rng: np.random.Generator, count: int, unseen: bool) -> list[Any]:
        """``count`` things that do not look alike."""
        ...

    def look(self, rng: np.random.Generator, model: Any, radius: float) -> tuple[Drawable, str]:
        """One individual, to be drawn at about ``radius`` pixels, and its caption."""
        ...

    def twin(self, rng: np.random.Generator, model: Any, radius: float) -> Drawable:
        """Another individual that looks much like ``model``, but for its colours."""
        ...

    def stranger(self, rng: np.random.Generator, models: list[Any], radius: float, unseen: bool) -> Drawable | None:
        """Something that resembles none of ``models``; None if this draw found nothing."""
        ...

    def backdrop(self, rng: np.random.Generator, models: list[Any], size: tuple[int, int], frames: int) -> Backdrop:
        """A moving background without any of ``models``."""
        ...


@dataclass(frozen=True)
class TextureStock:
    """Generated outlines and textures over generated backgrounds."""

    level: Difficulty

    def models(self, rng: np.random.Generator, count: int, unseen: bool) -> list[Concept]:
        hues = rng.uniform() + np.arange(count) / count * 0.9 + rng.uniform(-0.04, 0.04, count)
        other_side = 0.45 / count if self.level.turn else None  # as far from its own hue as from the other object's
        return [draw_concept(rng, unseen, float(hue), other_side and float(hue + other_side)) for hue in hues]

    def look(self, rng: np.random.Generator, model: Concept, radius: float) -> tuple[Drawable, str]:
        return make_sprite(rng, model, self._drift(rng)), model.caption()

    def twin(self, rng: np.random.Generator, model: Concept, radius: float) -> Drawable:
        shift = self.level.hue_gap * rng.uniform(1, 1.4) * rng.choice((-1, 1))
        back = model.back and (model.back[0], float(model.back[1] + shift) % 1)
        return make_sprite(rng, replace(model, hue=float(model.hue + shift) % 1, back=back), self._drift(rng))

    def stranger(
        self, rng: np.random.Generator, models: list[Concept], radius: float, unseen: bool
    ) -> Drawable | None:
        concept = draw_concept(rng, unseen, float(rng.uniform()))
        near = any(abs((concept.hue - model.hue + 0.5) % 1 - 0.5) < 0.12 for model in models)
        return None if near else make_sprite(rng, concept, 0.0)

    def _drift(self, rng: np.random.Generator) -> float:
        """Speed of an object's texture, sides a frame."""
        return self.level.turn * rng.uniform(0.5, 1) if self.level.turn else 0.002 * self.level.change

    def backdrop(
        self, rng: np.random.Generator, models: list[Concept], size: tuple[int, int], frames: int
    ) -> Backdrop:
        return pan(rng, make_background(rng, size[0] * 2, size[1] * 2, self.level.saturation), size, frames)


def compose(
    rng: np.random.Generator, chosen: Options, split: int, index: int, unseen: bool, stock: Stock
) -> Scene:
    """A scene: one to three objects, look-alikes, strangers and perhaps a pillar in front of them."""
    level = DIFFICULTIES[chosen.difficulty]
    frames = chosen.frames[split]
    long = chosen.preset == "long"
    unit = chosen.size[0] / 128
    models = stock.models(rng, int(rng.integers(1, 3)) if long else 1 + index % 3, unseen)
    actors: list[Actor] = []
    attributes = {"SV", "DEF"} if level.change >= 1 else set()
    twins = 0

    def add(look: Drawable, radius: float, absences: list[tuple[int, int]], drift: bool, label: int, caption: str = ""):
        track = _track(rng, chosen, frames, radius, level.speed * unit, absences, level.change, drift)
        actors.append(Actor(look, track, label, caption))

    for label, model in enumerate(models, start=1):
        small = rng.uniform() < 0.12
        radius = rng.uniform(13, 16) * unit if small else rng.uniform(21, 33) * unit
        absences = _absences(rng, frames, long, split, index, label)
        look, caption = stock.look(rng, model, radius)
        add(look, radius, absences, long, label, caption)
        attributes |= {name for name, there in (("LR", small), ("OV", bool(absences)), ("LRA", long)) if there}
        # Look-alikes: of every target of a long video, and they stay while it is away. In a short one at most one, and
        # none where three targets share the colours already: more cannot be told apart from one first mask.
        if long or (len(models) < 3 and not twins and rng.uniform() < 0.6):
            twins += 1
            radius *= rng.uniform(0.8, 1.2)
            away = [] if long else _absences(rng, frames, long, split, index, label + 1)
            add(stock.twin(rng, model, radius), radius, away, False, 0)
            attributes.add("BC")
    for _ in range(int(rng.integers(0, level.extras + 1))):
        radius = rng.uniform(10, 20) * unit
        stranger = stock.stranger(rng, models, radius, unseen)
        if stranger is not None:
            add(stranger, radius, [], False, 0)
    actors = [actors[place] for place in rng.permutation(len(actors))]
    if rng.uniform() < 0.6:
        actors.append(_occluder(rng, chosen, frames))
        attributes.add("OCC")
    backdrop = stock.backdrop(rng, models, chosen.size, frames)
    return Scene(chosen.size, frames, backdrop, actors, sorted(attributes))


def _absences(
    rng: np.random.Generator, frames: int, long: bool, split: int, index: int, label: int
) -> list[tuple[int, int]]:
    if long:
        # Training clips leave for a part of their frames, the benchmark's for 100 to 180, twice if there is room.
        span = (100, 180) if frames >= 400 else (frames // 4, frames // 2)
        absences, moment = [], int(rng.integers(frames // 12, frames // 5))
        while True:
            length = int(rng.integers(*span)) + 4
            if moment + length > frames * 0.93 or len(absences) == 2:
                return absences
            absences.append((moment, moment + length))
            moment += length + int(rng.integers(frames // 12, frames // 4))
    late = label > 1 and rng.uniform() < 0.5
    if split == 1 and index == 0 and label == 1:
        late = True  # one video whose first frames show no object, as LVOS has them
    if late:
        return [(0, int(rng.integers(frames // 10, frames // 3)))]
    if rng.uniform() < 0.7:
        first = int(rng.integers(frames // 5, frames // 2))
        return [(first, first + int(rng.integers(frames // 6, frames // 3)))]
    return []


def _track(
    rng: np.random.Generator, chosen: Options, frames: int, radius: float, speed: float,
    absences: list[tuple[int, int]], change: float, drift: bool,
) -> Track:
    size = np.exp(0.22 * change * swing(rng, frames, 70)[:, 0]) * radius
    position, present = wander(rng, frames, chosen.size, float(size.max()), speed, absences)
    gain = 1 + 0.08 * change * swing(rng, frames, 80, 3)
    if drift:  # the appearance moves away from the first mask's, and never comes back
        end = rng.uniform(0.55, 1.3, 3)
        gain = gain * (1 + (end - 1) * np.linspace(0, 1, frames)[:, None])
    angle = rng.uniform(0, 2 * np.pi) + 1.2 * change * swing(rng, frames, 60)[:, 0]
    return Track(position, size, angle, gain, present)


def _occluder(rng: np.random.Generator, chosen: Options, frames: int) -> Actor:
    """A pillar of background stuff in front of everything, that drifts sideways."""
    height, width = chosen.size
    canvas = make_background(rng, height * 2, height, 0.1)
    x = width * (0.5 + 0.45 * swing(rng, frames, 150)[:, 0])
    position = np.stack([x, np.full(frames, height / 2)], axis=1)
    still = np.ones(frames)
    track = Track(position, still * height, still * rng.uniform(-0.2, 0.2), np.ones((frames, 3)), still > 0)
    return Actor(_Pillar(canvas, rng.uniform(0.06, 0.1)), track)


@dataclass
class _Pillar:
    canvas: np.ndarray
    half: float
    reach: float = 1.45

    def sample(self, u: np.ndarray, v: np.ndarray, frame: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.canvas.shape[:2]
        x, y = (u * 0.5 * width).astype(np.float32), (v * 0.5 * height).astype(np.float32)
        colour = cv2.remap(self.canvas, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        return colour * 0.8, np.clip((self.half - np.abs(u)) * radius + 0.5, 0, 1).astype(np.float32)


def pan(rng: np.random.Generator, canvas: np.ndarray, size: tuple[int, int], frames: int) -> Pan:
    """A camera that wanders over ``canvas``, (2 H, 2 W, 3), and zooms."""
    offset = np.array([size[1], size[0]]) * (0.4 + 0.35 * swing(rng, frames, 130, 2))
    return Pan(canvas, size, offset, 1.05 + 0.15 * swing(rng, frames, 110)[:, 0])
