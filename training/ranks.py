"""The processes of a training run: one alone, or one for each device under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all. ``device``: where it computes."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all ranks."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()


@contextmanager
def joined_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the other processes where torchrun started this one (its environment says so), else be alone.

    Args:
        device: name of a device type; None: the accelerator if there is one, else the processor.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = torch.device(device) if device is not None else accelerator or torch.empty(0).device
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, kind)
        return
    if accelerator is not None and kind.type == accelerator.type:
        kind = torch.device(kind.type, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(kind.index)
    dist.init_process_group()  # gloo for tensors of the processor, the vendor's library for the others
    try:
        yield Ranks(dist.get_rank(), count, kind)
    finally:
        dist.destroy_process_group()
