"""Generated videos: a miniature LVOS of textures or of cut-outs, its long benchmark, and long cuts of real clips.

The textured set is what the project runs on with no download. Deterministic: a video depends on (seed, split, its
number, the options, the material) alone, and its files are equal bit for bit. Nothing here resembles a real video
beyond what makes them hard: objects move, turn, change size and colour, hide behind others, leave and come back, and
look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import UserError
from datasets.synthetic_compose import TextureStock, compose
from datasets.synthetic_options import DIFFICULTIES, PRESETS, Options, options
from datasets.synthetic_real import LongCut, cutout_stocks, long_cuts
from datasets.synthetic_scene import Scene
from datasets.synthetic_sources import find_sources
from datasets.synthetic_write import write_dataset

__all__ = ["DIFFICULTIES", "PRESETS", "make", "make_long_cuts", "options"]


def make(
    out: str | Path,
    preset: str = "demo",
    seed: int = 0,
    videos: int | tuple[int, int, int] | None = None,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    difficulty: str | None = None,
    cutouts: Sequence[str | Path] = (),
) -> Path:
    """Generate a data root in the layout of LVOS and return it.

    Args:
        out: the root; must not exist, or hold what the same options made (then nothing is done).
        preset: ``demo`` (short videos) or ``long`` (600 frames, absences of 100 and more, look-alikes meanwhile).
        seed: of everything.
        videos: number of validation videos, or numbers for train, val and test; None: the preset's.
        frames: of each video of val and test, and at most so many in train; None: the preset's.
        size: (height, width) in pixels; None: the preset's.
        difficulty: ``easy``, ``normal``, ``hard``, or ``turning``: hard, and textured objects have two sides, unlike
            each other, which they show in turn; None: the preset's.
        cutouts: folders with JPEGImages and Annotations of photographs or clips; their objects then move over other
            photographs and clips, instead of textures over textures. The splits share no source.

    Raises:
        UserError: unknown names, numbers out of range, ``out`` exists and was made otherwise, too little material.
    """
    chosen = options(preset, seed, videos, frames, size, difficulty)
    if not cutouts:
        stock = TextureStock(DIFFICULTIES[chosen.difficulty])
        return write_dataset(out, chosen, partial(compose, stock=stock))
    if DIFFICULTIES[chosen.difficulty].turn:
        raise UserError("--difficulty: cut-outs have no other side to turn; with --cutouts take 'hard'")
    sources = find_sources(cutouts, "--cutouts")
    stocks = cutout_stocks(sources, chosen)

    def scene_of(rng: np.random.Generator, chosen: Options, split: int, index: int, unseen: bool) -> Scene:
        return compose(rng, chosen, split, index, unseen, stocks[split])

    return write_dataset(out, chosen, scene_of, cutouts=[source.fingerprint() for source in sources])


def make_long_cuts(
    out: str | Path,
    folders: Sequence[str | Path],
    seed: int = 0,
    videos: int | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Cut real clips into long videos, split val only: a clip, 100 to 160 frames of others, the clip again.

    Args:
        out: as for :func:`make`.
        folders: with JPEGImages and Annotations of clips; those with a mask for every frame are used.
        seed: of the gaps and of what is between.
        videos: how many; None: one for each such clip.
        size: (height, width) in pixels; None: 128x224.
    """
    sources = find_sources(folders, "--long-cuts")
    usable = sum(source.is_clip and source.is_annotated for source in sources)
    count = max(usable, 1) if videos is None else videos
    chosen = replace(options("demo", seed, (0, count, 0), None, size), preset="long-cuts")
    cuts = long_cuts(sources, chosen)

    def cut_of(rng: np.random.Generator, chosen: Options, split: int, index: int, unseen: bool) -> LongCut:
        return cuts[index]

    return write_dataset(out, chosen, cut_of, clips=[source.fingerprint() for source in sources])
