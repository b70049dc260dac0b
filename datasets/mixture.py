"""The training data: sources mixed by weight, each sample a pure function of (seed, step, sample), batches of clips."""

from __future__ import annotations

import signal
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from common.errors import UserError, attempted
from configs.schema import Config, SourceConfig, TrainConfig
from datasets.augment import MOST_OBJECTS, Clip, away, merged, numbered
from datasets.clips import VideoClips
from datasets.static import StaticClips

_TRIES = 20  # clips drawn until one shows an object
_ORDER = 1 << 40  # no step: keeps the numbers of the order apart from those of the samples


@dataclass
class Sample:
    """One clip. frames: (T, H, W, 3) uint8; masks: (T, H, W) uint8; slots: (10,) identity slots; seed: for layers;
    name: of the video or picture, and of those pasted on it or seen instead."""

    frames: np.ndarray
    masks: np.ndarray
    objects: int
    slots: np.ndarray
    seed: int
    name: str


@dataclass
class Batch:
    """Clips of one micro-batch: frames (T, B, 3, H, W) uint8, masks (T, B, H, W) uint8, slots (B, 10)."""

    frames: Tensor
    masks: Tensor
    objects: list[int]
    slots: Tensor
    seeds: list[int]
    names: list[str]

    def to(self, device: torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("frames", "masks", "slots")}
        return Batch(**{**self.__dict__, **moved})

    def pin_memory(self) -> Batch:
        return Batch(**{name: value.pin_memory() if isinstance(value, Tensor) else value
                        for name, value in self.__dict__.items()})


class Mixture(Dataset):
    """Samples by their number in the whole training.

    An epoch shows every video or picture of a source ``repeat`` times, in random order; where that is no whole number
    the epochs show its parts in turn.
    """

    def __init__(self, config: Config):
        self.config, self.seed = config, config.seed
        sources = all_sources(config)
        self.sources: list[VideoClips | StaticClips] = attempted(
            partial(VideoClips if source.kind == "video" else StaticClips, source, config.train) for source in sources)
        self.shown = [max(1, round(source.repeat * len(clips)))
                      for source, clips in zip(sources, self.sources, strict=True)]  # of each source, in an epoch
        self.entries = np.array([(source, place) for source, count in enumerate(self.shown) for place in range(count)])
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, number: int) -> Sample | UserError:
        """Sample ``number`` = step * batch + sample. A mendable error is returned, since it must leave its process."""
        try:
            return self._sample(number)
        except UserError as error:
            return error

    def _sample(self, number: int) -> Sample:
        train = self.config.train
        rng = np.random.default_rng([self.seed, *divmod(number, train.batch)])
        source, place = self._entry(number)
        names = [self.sources[source].name(place)]
        clip, objects = self.sources[source].clip(place, rng)

        def another() -> Clip:
            source, place = self._shown(number // len(self.entries), rng.integers(len(self.entries)))
            names.append(self.sources[source].name(place))
            return self.sources[source].clip(place, rng)[0]

        chance = train.merge
        for _ in range(_TRIES):
            if objects and rng.random() >= chance:
                break
            above = another()
            if train.leave and rng.random() < train.leave:
                above = away(above, rng)
            clip, objects = numbered(merged(clip, above), rng)
            if objects:
                chance = train.merge_more
        if train.leave and rng.random() < train.leave:
            elsewhere = another()
            if names[-1] in names[:-1]:  # what left would be in sight, unlabelled
                names.pop()
            else:
                clip = away(clip, rng, elsewhere)
        if not objects:
            raise UserError(f"{self.config.data.root or 'data.sources'}: {_TRIES} clips in a row show no object of "
                            "more than 100 pixels in their first frame; check the masks, or lower train.scales")
        return Sample(np.stack(clip.frames), np.stack(clip.labels), objects, self._slots(objects, rng),
                      int(rng.integers(1 << 62)), " + ".join(names))

    def _slots(self, objects: int, rng: np.random.Generator) -> np.ndarray:
        """The identity slot of each of ten objects, of which a clip has the first few: (10,)."""
        slots = np.arange(MOST_OBJECTS)
        if self.config.train.shuffle_identities:
            shuffled = objects if self.config.train.few_identities else MOST_OBJECTS
            slots[:shuffled] = rng.permutation(shuffled)
        return slots

    def _entry(self, number: int) -> tuple[int, int]:
        """The source of sample ``number``, and its place there."""
        epoch, place = divmod(number, len(self.entries))
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.entries))
            self._epoch = epoch, order
        return self._shown(epoch, self._epoch[1][place])

    def _shown(self, epoch: int, entry: int) -> tuple[int, int]:
        source, place = self.entries[entry].tolist()
        return source, (epoch * self.shown[source] + place) % len(self.sources[source])


def all_sources(config: Config) -> list[SourceConfig]:
    """The sources of the mixture, with their whole paths; without a mixture the one that ``data.root`` names."""
    data = config.data
    if data.sources and data.split != "train":
        raise UserError(f"data.split: {data.split} is not used beside data.sources; say `split` of the source that it "
                        "means")
    if data.sources and (data.root is not None or all(source.root for source in data.sources)):
        return [source.model_copy(update={"root": str(Path(data.root or "") / source.root)}) for source in data.sources]
    if data.root is None:
        raise UserError("data.root: not set; name the data root (data.root=PATH) or a mixture (data.sources)")
    return [SourceConfig(root=data.root, split=data.split, format=data.format)]


def clips_at_once(train: TrainConfig, ranks: int) -> int:
    """Clips in a micro-batch of one rank; UserError where the batch does not divide."""
    parts = ranks * train.accumulate
    if train.batch % parts:
        raise UserError(f"train.batch: {train.batch} clips do not divide into {ranks} ranks x {train.accumulate} "
                        "micro-batches; choose a multiple")
    return train.batch // parts


def batches(mixture: Mixture, first: int, last: int, rank: int = 0, ranks: int = 1) -> Generator[Batch, None, None]:
    """The micro-batches of this rank for steps ``first`` to ``last`` - 1, ``train.accumulate`` a step.

    Raises:
        UserError: what a sample's files say, or a batch that does not divide.
    """
    train, workers = mixture.config.train, mixture.config.data.workers
    share = clips_at_once(train, ranks)
    numbers = [list(range(start, start + share))
               for step in range(first, last) for part in range(train.accumulate)
               for start in [step * train.batch + (rank * train.accumulate + part) * share]]
    loader = DataLoader(mixture, batch_sampler=numbers, num_workers=workers, collate_fn=collate,
                        worker_init_fn=_quiet_worker, persistent_workers=False,
                        prefetch_factor=2 if workers else None, pin_memory=torch.accelerator.is_available(),
                        generator=torch.Generator())  # its own, so that its start draws nothing from the training's
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def collate(samples: list[Sample | UserError]) -> Batch | UserError:
    """Stack samples, time first; the frames stay interleaved in memory, as the encoder likes them."""
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    frames = torch.from_numpy(np.stack([sample.frames for sample in samples], 1)).permute(0, 1, 4, 2, 3)
    masks = torch.from_numpy(np.stack([sample.masks for sample in samples], 1))
    slots = torch.from_numpy(np.stack([sample.slots for sample in samples]))
    return Batch(frames, masks, [sample.objects for sample in samples], slots,
                 [sample.seed for sample in samples], [sample.name for sample in samples])


def _quiet_worker(number: int) -> None:
    """One thread a worker; a SIGTERM to the whole group is the main process's business, which ends its workers."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
