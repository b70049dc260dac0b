"""Options of the generated videos: presets, degrees of difficulty, and their check."""

from __future__ import annotations

from dataclasses import dataclass, replace

from common.errors import UserError, nearest

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Options:
    """What is generated. ``videos`` and ``frames`` are for train, val, test; ``size`` is (height, width)."""

    preset: str
    seed: int
    videos: tuple[int, int, int]
    frames: tuple[int, int, int]
    size: tuple[int, int]
    difficulty: str


PRESETS = {
    "demo": Options("demo", 0, (24, 4, 2), (40, 60, 60), (128, 224), "easy"),
    "long": Options("long", 0, (24, 20, 2), (160, 600, 600), (128, 224), "normal"),
}


@dataclass(frozen=True)
class Difficulty:
    """Numbers behind ``--difficulty``: pixels a frame at height 128, hue distance of look-alikes, how much changes."""

    speed: float
    hue_gap: float
    change: float
    saturation: float  # of the background; objects have 0.65 to 1
    extras: int  # most distractors that look like nothing annotated
    turn: float = 0.0  # sides a frame at most: objects have two sides, unlike each other, and turn around


DIFFICULTIES = {
    "easy": Difficulty(2.0, 0.22, 0.6, 0.1, 1),
    "normal": Difficulty(3.0, 0.14, 1.0, 0.2, 1),
    "hard": Difficulty(5.0, 0.06, 1.5, 0.4, 3),
    "turning": Difficulty(5.0, 0.06, 1.5, 0.4, 3, turn=0.02),
}


def options(
    preset: str = "demo",
    seed: int = 0,
    videos: int | tuple[int, int, int] | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    difficulty: str | None = None,
) -> Options:
    """Check the options of :func:`make` and fill them in from the preset."""
    if preset not in PRESETS:
        raise UserError(f"--preset: '{preset}' is unknown; {nearest(preset, PRESETS)}")
    base = PRESETS[preset]
    if difficulty is not None and difficulty not in DIFFICULTIES:
        raise UserError(f"--difficulty: '{difficulty}' is unknown; {nearest(difficulty, DIFFICULTIES)}")
    counts = base.videos if videos is None else (base.videos[0], videos, base.videos[2]) if isinstance(videos, int) \
        else videos
    lengths = base.frames if frames is None else (min(base.frames[0], frames), frames, frames)
    height, width = size or base.size
    if seed < 0:
        raise UserError(f"--seed: {seed} is negative; give 0 or more")
    if min(counts) < 0 or not any(counts):
        raise UserError(f"--videos: {counts} makes no video; give positive numbers")
    shortest = 400 if preset == "long" else 8
    if lengths[1] < shortest:
        raise UserError(f"--frames: {lengths[1]} is too few for preset {preset}; give at least {shortest}")
    if min(height, width) < 48:
        raise UserError(f"--size: {height}x{width} is too small; give at least 48x48")
    return replace(base, seed=seed, videos=counts, frames=lengths, size=(height, width),
                   difficulty=difficulty or base.difficulty)
