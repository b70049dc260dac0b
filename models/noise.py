"""Random numbers of training that belong to samples: splitting a batch over ranks or micro-batches changes nothing.

    with SampleNoise(seeds):
        network(...)

Random layers ask :func:`keep_mask`. Without a :class:`SampleNoise` around them they draw from torch's generator.
"""

from __future__ import annotations

from contextvars import ContextVar

import torch
from torch import Tensor

_current: ContextVar[SampleNoise | None] = ContextVar("sample_noise", default=None)
_BLOCK = 4096  # numbers a sample drawn and moved to the device at once


class SampleNoise:
    """One generator for each sample of the batch; a context in which the random layers draw from them."""

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.drawn: Tensor | None = None  # (B, n), on the device
        self.used = 0

    def __enter__(self) -> SampleNoise:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)

    def uniform(self, rows: int, width: int, device: torch.device) -> Tensor:
        """(rows, width) in [0, 1). ``rows`` is a multiple T of the batch: T frames, frame-major."""
        frames = rows // len(self.generators)
        wanted = frames * width
        if self.drawn is None or self.used + wanted > self.drawn.shape[1]:
            count = max(wanted, _BLOCK)
            drawn = torch.empty(len(self.generators), count, device="cpu",
                                pin_memory=device.type == "cuda")  # so that the copy waits for nothing
            for row, one in zip(drawn, self.generators, strict=True):
                row.uniform_(generator=one)
            self.drawn, self.used = drawn.to(device, non_blocking=True), 0
        taken = self.drawn[:, self.used : self.used + wanted]
        self.used += wanted
        return taken.unflatten(1, (frames, width)).transpose(0, 1).reshape(rows, width)  # (B, T, w) -> (T * B, w)


def keep_mask(x: Tensor, width: int, rate: float) -> Tensor:
    """(B, width) of 0 (probability ``rate``) and 1 / (1 - rate), for the rows of ``x``, in its dtype."""
    noise = _current.get()
    numbers = noise.uniform(len(x), width, x.device) if noise is not None \
        else torch.rand(len(x), width, device=x.device)
    return (numbers >= rate).to(x.dtype) / (1 - rate)
