"""The processes of an inference run: one alone, or several that torchrun started and that share the videos."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from inference.sources import Source

PATIENCE = datetime.timedelta(days=7)  # processes meet only after their videos, which may take long


@dataclass(frozen=True)
class Ranks:
    """This process's number among ``count``."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks, and writes what is common."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def share(self, sources: Sequence[Source]) -> list[Source]:
        """This process's videos: longest first, each to whoever has least so far."""
        loads = [0] * self.count
        mine = []
        for source in sorted(sources, key=lambda source: (-len(source), source.name)):
            target = loads.index(min(loads))
            loads[target] += len(source)
            if target == self.rank:
                mine.append(source)
        return mine


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes where torchrun started this one (its environment says so), else be alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1)
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
