"""The processes of a run: one alone, or several that torchrun started."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import UserError

Item = TypeVar("Item", bound=Sized)
PATIENCE = datetime.timedelta(days=7)  # for processes that meet only after their videos, which may take long


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        rank: its number among ``count``; device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks, and writes what is common."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
            values = values / self.count
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part: longest first (of equal ones as given), each to whoever has least so far."""
        loads = [0] * self.count
        mine = []
        for item in sorted(items, key=len, reverse=True):
            target = loads.index(min(loads))
            loads[target] += len(item)
            if target == self.rank:
                mine.append(item)
        return mine


@contextmanager
def joined_ranks(device: str | None = None, backend: str | None = None,
                 patience: datetime.timedelta | None = None) -> Iterator[Ranks]:
    """Join the other processes where torchrun started this one (its environment says so), else be alone.

    Args:
        device: name of a device type (cpu, cuda); None: the accelerator if there is one, else the processor. Under
            torchrun each process takes its own accelerator.
        backend: how processes talk; None: gloo for tensors of the processor, the vendor's library for the others.
        patience: how long one waits for the others; None: the backend's default.
    Raises:
        UserError: there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device not in (None, "cpu") and (accelerator is None or accelerator.type != device):
        raise UserError(f"--device {device}: no such device was found; use --device cpu, or see that a driver is "
                        "installed")
    kind = torch.device(device) if device is not None else accelerator or torch.empty(0).device
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, kind)
        return
    if accelerator is not None and kind.type == accelerator.type:
        kind = torch.device(kind.type, int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
        torch.accelerator.set_device_index(kind.index)
    dist.init_process_group(backend, timeout=patience)
    try:
        yield Ranks(dist.get_rank(), count, kind)
    finally:
        dist.destroy_process_group()
