"""Concepts of the generated videos: outlines, textures and colours, and the sprites and backgrounds made of them.

A concept is an outline family with a texture family. Some of either are kept out of training, so that validation
has unseen concepts as LVOS has unseen categories.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import cv2
import numpy as np

SEEN_OUTLINES, UNSEEN_OUTLINES = ("disc", "blob", "star", "box"), ("gear", "drop")
SEEN_TEXTURES, UNSEEN_TEXTURES = ("stripes", "checks", "dots", "blotches", "plaid"), ("rings", "bricks")
_HUES = ("red", "orange", "yellow", "green", "green", "cyan", "blue", "blue", "violet", "pink")
_SIDE = 128  # texture side in pixels; textures repeat, so that they can drift over an object
_ANGLES = 256  # entries of an outline's table


@dataclass
class Sprite:
    """A textured object: an outline in polar form that wobbles, over a texture that drifts.

    ``outline``: (256,) radius by angle, at most 1. ``texture``: (128, 128 a side, 3) float32 RGB 0..255, repeating; it
    shows as much of its width at once as one side has.
    """

    outline: np.ndarray
    texture: np.ndarray
    concept: str
    wobble: float
    lobes: int
    drift: tuple[float, float]
    shine: float = 0.35
    reach: float = 1.15  # the outline's largest radius with its wobble

    def sample(self, u: np.ndarray, v: np.ndarray, frame: int, radius: float) -> tuple[np.ndarray, np.ndarray]:
        """Colour (h, w, 3) float32 and coverage (h, w) 0..1 at local coordinates, where 1 is ``radius`` pixels."""
        distance = np.sqrt(u * u + v * v)
        angle = np.arctan2(v, u)
        bins = ((angle / (2 * np.pi) + 0.5) * _ANGLES).astype(np.int32) % _ANGLES
        edge = self.outline[bins] * (1 + self.wobble * np.sin(self.lobes * angle + 0.25 * frame))
        cover = np.clip((edge - distance) * radius + 0.5, 0, 1)
        x = ((u * 0.5 + self.drift[0] * frame) * _SIDE).astype(np.float32)
        y = ((v * 0.5 + self.drift[1] * frame) * _SIDE).astype(np.float32)
        colour = cv2.remap(self.texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        shade = 1 - self.shine * np.clip(distance / np.maximum(edge, 1e-3), 0, 1) ** 2
        return colour * shade[..., None].astype(np.float32), cover.astype(np.float32)


@dataclass(frozen=True)
class Concept:
    """What an object is: families of outline and texture, and the hue (0..1) of its main colour.

    ``back``: texture family and hue of its other side, in sight after it has turned; None: it looks alike all around.
    """

    outline: str
    texture: str
    hue: float
    back: tuple[str, float] | None = None

    def caption(self) -> str:
        """A phrase for the caption file."""
        return f"a {_HUES[int(self.hue * len(_HUES)) % len(_HUES)]} {self.outline} with {self.texture}"


def draw_concept(rng: np.random.Generator, unseen: bool, hue: float, back: float | None = None) -> Concept:
    """A random concept; ``unseen`` ones have an outline and a texture that training never shows.

    ``back``: hue of its other side, whose texture is of another family; None: it has none.
    """
    outlines, textures = (UNSEEN_OUTLINES, UNSEEN_TEXTURES) if unseen else (SEEN_OUTLINES, SEEN_TEXTURES)
    concept = Concept(str(rng.choice(outlines)), str(rng.choice(textures)), hue % 1.0)
    if back is None:
        return concept
    others = [texture for texture in textures if texture != concept.texture]
    return replace(concept, back=(str(rng.choice(others)), back % 1.0))


def make_sprite(rng: np.random.Generator, concept: Concept, drift: float) -> Sprite:
    """A new individual of ``concept``: same families and hues, own details.

    ``drift``: speed of the texture, sides a frame, in any direction; sideways, if it has a back.
    """
    texture = _skin(rng, concept.texture, concept.hue)
    direction = rng.uniform(0, 2 * np.pi)
    if concept.back is not None:
        texture = np.roll(np.concatenate([texture, _skin(rng, *concept.back)], axis=1), -_SIDE // 2, axis=1)
        direction = rng.choice((0, np.pi))
    return Sprite(
        outline=_outline(rng, concept.outline),
        texture=np.clip(np.tile(_grain(rng), (1, texture.shape[1] // _SIDE, 1)) * texture, 0, 255).astype(np.float32),
        concept=concept.caption(),
        wobble=float(rng.uniform(0.03, 0.1)),
        lobes=int(rng.integers(2, 5)),
        drift=(float(drift * np.cos(direction)), float(drift * np.sin(direction))),
    )


def _skin(rng: np.random.Generator, family: str, hue: float) -> np.ndarray:
    """A repeating texture in two shades of a hue, (128, 128, 3) float32 RGB 0..255."""
    light = _colour(hue + rng.uniform(-0.02, 0.02), rng.uniform(0.65, 0.95), rng.uniform(0.8, 1.0))
    dark = _colour(hue + rng.uniform(-0.05, 0.05), rng.uniform(0.75, 1.0), rng.uniform(0.35, 0.55))
    field = _field(rng, family)
    return light * field[..., None] + dark * (1 - field[..., None])


def make_background(rng: np.random.Generator, height: int, width: int, saturation: float) -> np.ndarray:
    """A dull textured canvas, (height, width, 3) float32 RGB 0..255, with soft regions and a few flat shapes."""
    hue = rng.uniform()
    canvas = np.zeros((height, width, 3), np.float32)
    for octave, weight in ((6, 0.5), (16, 0.3), (48, 0.2)):
        knots = rng.uniform(0, 1, (max(height * octave // width, 2), octave, 3)).astype(np.float32)
        canvas += weight * cv2.resize(knots, (width, height), interpolation=cv2.INTER_CUBIC)
    grey = canvas.mean(axis=2, keepdims=True)
    tint = _colour(hue, 0.3, 1.0) / 255
    canvas = (grey + saturation * (canvas - grey)) * (1 - saturation + saturation * tint)
    canvas = (0.15 + 0.75 * canvas) * 255
    for _ in range(int(rng.integers(6, 12))):
        middle = rng.uniform(0, 1, 2) * (width, height)
        corners = middle + rng.uniform(-0.12, 0.12, (int(rng.integers(3, 6)), 2)) * width
        value = _colour(rng.uniform(), saturation * 0.8, rng.uniform(0.2, 0.7))
        shape = np.zeros((height, width), np.uint8)
        cv2.fillPoly(shape, [cv2.convexHull(corners.astype(np.int32))], 1)
        texture = cv2.resize(_field(rng, "blotches"), (width, height))[..., None]
        canvas = np.where(shape[..., None] > 0, value * (0.7 + 0.5 * texture) * 0.7 + 0.3 * canvas, canvas)
    return np.clip(canvas, 0, 255).astype(np.float32)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32) * 255


def _grain(rng: np.random.Generator) -> np.ndarray:
    return (0.85 + 0.3 * _noise(rng, 8, 30))[..., None]


def _noise(rng: np.random.Generator, low: int, high: int) -> np.ndarray:
    """Repeating noise, (128, 128) 0..1, of the frequencies from ``low`` to ``high`` a side."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_SIDE) * _SIDE, np.fft.fftfreq(_SIDE) * _SIDE))
    phase = rng.uniform(0, 2 * np.pi, frequency.shape)
    waves = np.fft.ifft2(np.where((frequency >= low) & (frequency < high), np.exp(1j * phase), 0)).real
    return np.clip(waves / (4 * waves.std()) + 0.5, 0, 1).astype(np.float32)


def _field(rng: np.random.Generator, family: str) -> np.ndarray:
    """A repeating pattern, (128, 128) float32 0..1."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE] * (2 * np.pi / _SIDE)
    k = int(rng.integers(3, 6))
    if family == "stripes":
        wave = np.sin(k * x + int(rng.integers(-2, 3)) * y + np.sin(y) * rng.uniform(0, 1))
    elif family == "checks":
        wave = 3 * np.sin(k * x) * np.sin(k * y)
    elif family == "dots":
        wave = 2 * (np.cos(k * x) + np.cos(k * y) - 0.6)
    elif family == "plaid":
        wave = np.sin(k * x) + np.sin((k + 1) * y)
    elif family == "rings":
        wave = np.sin(2 * k * np.hypot(np.sin(x / 2), np.sin(y / 2)) * 2)
    elif family == "bricks":
        row = np.floor(k * y / (2 * np.pi)) % 2
        wave = 3 * np.minimum(np.abs(np.sin(k * x / 2 + row * np.pi / 2)), np.abs(np.sin(k * y / 2))) - 0.8
    else:
        return np.clip((_noise(rng, 1, 7) - 0.5) * 2 + 0.5, 0, 1)
    return (1 / (1 + np.exp(-3 * wave))).astype(np.float32)


def _outline(rng: np.random.Generator, family: str) -> np.ndarray:
    """Radius by angle, (256,) float32, largest value 1."""
    angle = (np.arange(_ANGLES) / _ANGLES - 0.5) * 2 * np.pi
    count = int(rng.integers(4, 7))
    if family == "disc":
        aspect = rng.uniform(0.6, 1)
        radius = aspect / np.hypot(aspect * np.cos(angle), np.sin(angle))
    elif family == "star":
        radius = 0.72 + 0.28 * np.cos(count * angle)
    elif family == "box":
        aspect = rng.uniform(0.6, 1)
        radius = 1 / (np.abs(np.cos(angle)) ** 4 + np.abs(np.sin(angle) / aspect) ** 4) ** 0.25
    elif family == "gear":
        radius = 0.8 + 0.2 * np.tanh(4 * np.sin((count + 3) * angle))
    elif family == "drop":
        radius = 0.55 + 0.45 * np.clip(np.cos(angle), 0, 1) ** 3
    else:
        waves = [rng.uniform(-0.16, 0.16) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (1, 2, 3, 4)]
        radius = 0.7 + np.sum(waves, axis=0)
    return (np.clip(radius, 0.2, None) / radius.max()).astype(np.float32)
