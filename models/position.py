"""The sine embedding of positions that AOT adds to the queries and keys of self-attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_position(grid: tuple[int, int], channels: int, like: Tensor) -> Tensor:
    """Sine embedding (1, h * w, channels): the first half of the channels encodes y, the second x.

    Indices start at 0 and are scaled to 2 pi by (size - 1 + 1e-6), unlike DETR's (aot-benchmark,
    networks/layers/position.py). Computed in float32 at least, returned in the dtype and on the device of ``like``.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    half = channels // 2
    index = torch.arange(half, device=like.device, dtype=dtype)
    period = 10000.0 ** (2 * (index // 2) / half)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size, device=like.device, dtype=dtype) / (size - 1 + 1e-6) * 2 * math.pi
        angle = angle[:, None] / period  # (size, half)
        wave = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1)
        shape = (grid[0], 1, half) if axis == 0 else (1, grid[1], half)
        parts.append(wave.view(shape).expand(*grid, half))
    return torch.cat(parts, dim=-1).flatten(0, 1).unsqueeze(0).to(like.dtype)
