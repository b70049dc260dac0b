"""A miniature LVOS, generated: the data that the project runs on with no download, and its long benchmark.

Deterministic: a video depends on (seed, split, its number, the options) alone, and its files are equal bit for bit.
Nothing here resembles a real video beyond what makes them hard: objects move, turn, change size and colour, hide
behind others, leave and come back, and look alike.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from datasets.synthetic_compose import TextureStock, compose
from datasets.synthetic_options import DIFFICULTIES, PRESETS, options
from datasets.synthetic_write import write_dataset

__all__ = ["DIFFICULTIES", "PRESETS", "make", "options"]


def make(
    out: str | Path,
    preset: str = "demo",
    seed: int = 0,
    videos: int | tuple[int, int, int] | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    difficulty: str | None = None,
) -> Path:
    """Generate a data root in the layout of LVOS and return it.

    Args:
        out: the root; must not exist, or hold what the same options made (then nothing is done).
        preset: ``demo`` (short videos) or ``long`` (600 frames, absences of 100 and more, look-alikes meanwhile).
        seed: of everything.
        videos: number of validation videos, or numbers for train, val and test; None: the preset's.
        frames: of each video of val and test, and at most so many in train; None: the preset's.
        size: (height, width) in pixels; None: the preset's.
        difficulty: ``easy``, ``normal`` or ``hard``; None: the preset's.

    Raises:
        UserError: unknown names, numbers out of range, ``out`` exists and was made otherwise.
    """
    chosen = options(preset, seed, videos, frames, size, difficulty)
    stock = TextureStock(DIFFICULTIES[chosen.difficulty])
    return write_dataset(out, chosen, partial(compose, stock=stock))
