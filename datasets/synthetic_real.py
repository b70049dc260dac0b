"""Generated videos of real pixels: cut-outs over photographs and clips, and long cuts of real clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError
from datasets.readers import read_image, read_labels
from datasets.synthetic_compose import pan
from datasets.synthetic_options import SPLITS, Options
from datasets.synthetic_scene import Backdrop, Drawable, Drawn
from datasets.synthetic_sources import CutOut, CutOutLook, Source, cut, fill, find_cutouts, to_and_fro

_SHARES = (0.6, 0.25, 0.15)  # of the sources, for train, val, test


@dataclass
class Film:
    """A clip as a background, played to and fro; ``pictures`` (H, W, 3) uint8."""

    pictures: list[np.ndarray]

    def picture(self, frame: int) -> np.ndarray:
        """(H, W, 3) float32."""
        return self.pictures[to_and_fro(frame, len(self.pictures))].astype(np.float32)


@dataclass(frozen=True)
class CutOutStock:
    """Objects of photographs and clips, over other photographs and clips of the same split."""

    cutouts: list[CutOut]
    sources: list[Source]

    def models(self, rng: np.random.Generator, count: int, unseen: bool) -> list[CutOut]:
        """Objects of ``count`` different sources."""
        chosen: dict[str, CutOut] = {}
        for place in rng.permutation(len(self.cutouts)):
            chosen.setdefault(self.cutouts[place].source.name, self.cutouts[place])
        return list(chosen.values())[:count]

    def look(self, rng: np.random.Generator, model: CutOut, radius: float) -> tuple[Drawable, str]:
        """The object as it is."""
        return cut(model, radius), f"object {model.label} of {model.source.name}"

    def twin(self, rng: np.random.Generator, model: CutOut, radius: float) -> Drawable:
        """The object mirrored, in clearly other colours."""
        look = cut(model, radius)
        gain = rng.permutation((0.55, 1.0, 1.3)).astype(np.float32)
        paint = 60 * (gain == gain.max())  # dark objects stay dark under any gain
        return CutOutLook([np.clip(picture[:, ::-1] * gain + paint, 0, 255) for picture in look.pictures],
                          [np.ascontiguousarray(cover[:, ::-1]) for cover in look.covers], look.extent)

    def stranger(self, rng: np.random.Generator, models: list[CutOut], radius: float, unseen: bool) -> Drawable | None:
        """An object of another source."""
        other = self.cutouts[int(rng.integers(len(self.cutouts)))]
        return None if other.source in [model.source for model in models] else cut(other, radius)

    def backdrop(self, rng: np.random.Generator, models: list[CutOut], size: tuple[int, int], frames: int) -> Backdrop:
        """A clip as it is, or a photograph under a moving camera."""
        taken = [model.source for model in models]
        others = [source for source in self.sources if source not in taken] or self.sources
        clips = [source for source in others if source.is_clip]
        photographs = [source for source in others if not source.is_clip]
        if clips and (not photographs or rng.uniform() < 0.4):
            source = clips[int(rng.integers(len(clips)))]
            return Film([fill(read_image(image), size) for image, _ in source.frames])
        source = photographs[int(rng.integers(len(photographs)))]
        canvas = fill(read_image(source.frames[0][0]), (size[0] * 2, size[1] * 2), cv2.INTER_CUBIC)
        return pan(rng, canvas.astype(np.float32), size, frames)


def cutout_stocks(sources: Sequence[Source], chosen: Options) -> list[CutOutStock]:
    """A stock for each split, with sources of its own; an empty one for a split without videos.

    UserError where a split gets fewer than four objects to cut out, or two sources.
    """
    rng = np.random.default_rng([chosen.seed, 7])
    groups: list[list[Source]] = [[], [], []]
    for kind in (True, False):
        same = [source for source in sources if source.is_clip == kind]
        same = [same[place] for place in rng.permutation(len(same))]
        wanted = [share * (count > 0) for share, count in zip(_SHARES, chosen.videos, strict=True)]
        ends = np.round(np.cumsum(wanted) / sum(wanted) * len(same)).astype(int)
        for group, start, end in zip(groups, [0, *ends[:-1]], ends, strict=True):
            group += same[start:end]
    stocks: list[CutOutStock] = []
    for split, group, count in zip(SPLITS, groups, chosen.videos, strict=True):
        cutouts = find_cutouts(group) if count else []
        if count and (len({model.source.name for model in cutouts}) < 4 or len(group) < 2):
            raise UserError(f"--cutouts: split {split} would have {len(cutouts)} objects fit to be cut out of "
                            f"{len(group)} sources; name more folders (the option may be repeated)")
        stocks.append(CutOutStock(cutouts, group))
    return stocks


@dataclass
class LongCut:
    """A real clip, then frames of others, then the clip again, backwards: the object was away the whole time.

    Backwards, so that the first frame after the gap is not the one whose mask was given.
    """

    size: tuple[int, int]
    clip: Source
    between: list[Source]
    gap: int
    attributes: list[str] = field(default_factory=lambda: ["LRA", "OV"])

    @property
    def frames(self) -> int:
        """Number of frames in all."""
        return 2 * len(self.clip.frames) + self.gap

    @property
    def captions(self) -> dict[int, str]:
        """None: nobody described these objects."""
        return {}

    def draw(self) -> Iterator[Drawn]:
        """Yield the frames in order; those of other clips have no labels."""
        yield from map(self._annotated, self.clip.frames)
        others = [image for source in self.between for image, _ in source.frames][: self.gap]
        for image in others:
            yield fill(read_image(image), self.size), np.zeros(self.size, np.uint8), {}
        yield from map(self._annotated, reversed(self.clip.frames))

    def _annotated(self, frame: tuple) -> Drawn:
        image, mask = frame
        labels = fill(read_labels(mask), self.size, cv2.INTER_NEAREST)
        present = np.unique(labels)
        return fill(read_image(image), self.size), labels, {int(label): 1.0 for label in present if 0 < label < 255}


def long_cuts(sources: Sequence[Source], chosen: Options) -> list[LongCut]:
    """Long cuts of the annotated clips among ``sources``, as many as ``chosen.videos`` says for val."""
    clips = [source for source in sources if source.is_clip]
    annotated = [source for source in clips if source.is_annotated]
    rng = np.random.default_rng([chosen.seed, 8])
    cuts = []
    for clip in annotated[: chosen.videos[1]]:
        if not any(_shows_an_object(mask) for _, mask in clip.frames):
            raise UserError(f"{clip.frames[0][1].parent}: no mask shows an object (255 belongs to nothing); label the "
                            "objects 1, 2, ...")
        others = [source for source in clips if source is not clip]
        if not others:
            break
        gap = int(rng.integers(100, 161))
        between: list[Source] = []
        while sum(len(source.frames) for source in between) < gap:
            between += [others[place] for place in rng.permutation(len(others))]
        cuts.append(LongCut(chosen.size, clip, between, gap))
    if len(cuts) < chosen.videos[1]:
        raise UserError(f"--long-cuts: {len(cuts)} clips have a mask for every frame, {chosen.videos[1]} videos are "
                        "wanted; lower --videos or name more folders (the option may be repeated)")
    return cuts


def _shows_an_object(mask: Path) -> bool:
    labels = read_labels(mask)
    return bool(((labels > 0) & (labels < 255)).any())
