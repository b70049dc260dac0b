"""Attention over tokens: dense multi-head attention, and the windowed attention of the short-term memory.

Tokens are (B, L, C) with L = h * w in row-major order, so that a channels-last map is the same memory.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Numbers of a score matrix at a time where no fused kernel does without one; bounds the memory of a long bank.
SCORES, SCORES_ON_CPU = 1 << 26, 1 << 21
ROWS = 256  # of it at least: narrower products are slow
TILE = 8  # rough edge of a tile of queries in windowed attention: small enough to skip most of the map


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """View tokens (B, h * w, C) as a channels-last map (B, C, h, w) without a copy."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(feature_map: Tensor) -> Tensor:
    """View a map (B, C, h, w) as tokens (B, h * w, C); no copy where the map is channels-last."""
    return feature_map.permute(0, 2, 3, 1).flatten(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention with scale 1 / sqrt(channels of a head), heads concatenated.

    Args:
        query: (B, L, C); key: (B, M, C); value: (B, M, Cv).
        mask: (M,) boolean, False where a key must not be read, or, where keys and values are of one width, what is
            added to the scores, broadcast to (B, heads, L, M); None: all are read.
    Returns:
        (B, L, Cv)
    """
    query, key, value = (_split(tensor, heads) for tensor in (query, key, value))  # (B, heads, ., channels of a head)
    if query.shape[-1] == value.shape[-1]:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    else:  # DeAOT's values are wider than its keys: no fused kernel on the processor, on a GPU none of the quick ones
        chunks = query.split(query.shape[-2] if torch.is_grad_enabled() else _rows(query, key), dim=-2)
        out = torch.cat([_plain_attention(chunk, key, value, mask) for chunk in chunks], dim=-2)
    return out.transpose(1, 2).flatten(2)  # (B, L, Cv)


def attention_mass(query: Tensor, key: Tensor, heads: int, filled: Tensor, weight: Tensor) -> Tensor:
    """Attention that each stored frame receives, weighted over queries: (frames,), sums to 1 where weight does.

    Args:
        query: (1, L, C); key: (1, frames * L', C); filled: (frames,) bool, False where no frame is stored.
        weight: (L,) weights of the queries, e.g. predicted foreground.
    """
    query, key, frames = _split(query, heads), _split(key, heads), len(filled)
    readable = filled.repeat_interleave(key.shape[-2] // frames, output_size=key.shape[-2])  # (M,)
    mass = query.new_zeros(frames)
    at_once = _rows(query, key)
    for rows, part in zip(query.split(at_once, dim=-2), weight.split(at_once), strict=True):
        scores = rows @ key.transpose(-1, -2) / math.sqrt(rows.shape[-1])  # (1, heads, rows, M)
        scores = scores.masked_fill(~readable, -math.inf).softmax(-1)
        mass = mass + torch.einsum("bhlft,l->f", scores.unflatten(-1, (frames, -1)), part) / heads
    return mass


def _split(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, L, C) -> (B, heads, L, C / heads)


def _rows(query: Tensor, key: Tensor) -> int:
    """How many queries at a time: few enough for SCORES of the device, in even parts."""
    count, keys = query.shape[-2], key.shape[:-1].numel()  # of all samples and heads
    parts = math.ceil(count * keys / (SCORES_ON_CPU if query.device.type == "cpu" else SCORES))
    return max(ROWS, math.ceil(count / parts))


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, heads, L, M)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ value


class LocalAttention(nn.Module):
    """Attention of every token to the (2 r + 1)^2 window around its own position in another frame.

    The score of offset w is <q / sqrt(d), k> + r_w(q), r being a learned linear map of the unscaled query; positions
    outside the map are left out (AOT, arXiv 2106.02638, and aot-benchmark, networks/layers/attention.py).

    The map is cut into tiles of queries; a tile's scores against all keys that any of its windows touches are one
    matrix product, and the windows are a strided view of it, so nothing is gathered per window.
    """

    def __init__(self, heads: int, key_channels: int, value_channels: int, radius: int = 7, embed_values: bool = True):
        """
        Args:
            heads: attention heads; key_channels, value_channels: of all heads together.
            radius: r, in tokens.
            embed_values: add a learned value of each offset (AOT does, DeAOT does not).
        """
        super().__init__()
        self.heads, self.radius, self.window = heads, radius, (2 * radius + 1) ** 2
        self.relative_key = nn.Conv2d(key_channels, heads * self.window, 1, groups=heads)
        self.relative_value = None
        if embed_values:
            self.relative_value = nn.Parameter(torch.zeros(heads, value_channels // heads, self.window))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
        """query, key: (B, h * w, C); value: (B, h * w, Cv); grid: (h, w). Returns (B, h * w, Cv)."""
        (rows, tile_h), (columns, tile_w) = _tiles(grid[0]), _tiles(grid[1])
        pad_h, pad_w, r = rows * tile_h - grid[0], columns * tile_w - grid[1], self.radius
        q = F.pad(query.unflatten(1, grid), (0, 0, 0, pad_w, 0, pad_h))
        q = q.unflatten(2, (columns, tile_w)).unflatten(1, (rows, tile_h)).unflatten(5, (self.heads, -1))
        q = q.permute(0, 1, 3, 5, 2, 4, 6)  # (B, rows, columns, heads, tile_h, tile_w, d)
        # Keys and values that a tile's windows touch: views (B, rows, columns, heads, d, key_h, key_w), zero outside.
        k, v = (F.pad(tensor.unflatten(1, grid), (0, 0, r, r + pad_w, r, r + pad_h))
                .unfold(1, tile_h + 2 * r, tile_h).unfold(2, tile_w + 2 * r, tile_w).unflatten(3, (self.heads, -1))
                for tensor in (key, value))
        outside = self._outside(grid, (rows, tile_h), (columns, tile_w), query.device)
        # Without gradients a row of tiles at a time, which stays in a processor's cache.
        step = 1 if query.device.type == "cpu" and not torch.is_grad_enabled() else rows
        out = torch.cat([self._attend(*(tensor[:, row : row + step] for tensor in (q, k, v)), outside[row : row + step])
                         for row in range(0, rows, step)], 1)  # (B, rows * tile_h, columns * tile_w, Cv)
        return out[:, : grid[0], : grid[1]].flatten(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, outside: Tensor) -> Tensor:
        """Windowed attention within tiles; returns (B, rows * tile_h, columns * tile_w, Cv) of the rows given."""
        batch, rows, columns, heads, tile_h, tile_w, _ = q.shape
        key_h, key_w, side = k.shape[-2], k.shape[-1], 2 * self.radius + 1
        queries, keys = tile_h * tile_w, key_h * key_w
        q = q.flatten(4, 5).flatten(0, 2)  # (B * tiles, heads, queries, d)
        k = k.flatten(5).flatten(0, 2)  # (B * tiles, heads, d, keys)
        v = v.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5).flatten(0, 2)  # (B * tiles, heads, keys, dv)

        scores = (q * q.shape[-1] ** -0.5) @ k  # (B * tiles, heads, queries, keys)
        # The window of query (i, j) starts at key (i, j) of its tile: a view with strides only.
        size = (*scores.shape[:2], tile_h, tile_w, side, side)
        stride = (heads * queries * keys, queries * keys, tile_w * keys + key_w, keys + 1, key_w, 1)
        weight = self.relative_key.weight.view(heads, self.window, -1)  # (heads, window, d)
        windows = q @ weight.transpose(-1, -2)  # (B * tiles, heads, queries, window)
        windows += self.relative_key.bias.view(heads, 1, self.window)
        windows.view(size).add_(scores.as_strided(size, stride))
        windows.unflatten(0, (batch, -1)).masked_fill_(outside.flatten(0, 1), -math.inf)
        windows = windows.softmax(-1)

        out = _spread(windows.to(scores.dtype).view(size), scores, size, stride) @ v  # (B * tiles, heads, queries, dv)
        if self.relative_value is not None:
            out = out + windows @ self.relative_value.transpose(-1, -2).to(windows.dtype)
        out = out.view(batch, rows, columns, heads, tile_h, tile_w, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return out.reshape(batch, rows * tile_h, columns * tile_w, -1)

    def _outside(self, grid: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int],
                 device: torch.device) -> Tensor:
        """True where a window position lies outside the map: (rows, columns, 1, queries, window).

        Padding queries keep their whole window, so that no row of scores is empty.
        """
        offsets = torch.arange(-self.radius, self.radius + 1, device=device)
        y = torch.arange(rows[0] * rows[1], device=device).unsqueeze(1) + offsets  # (padded h, side)
        x = torch.arange(columns[0] * columns[1], device=device).unsqueeze(1) + offsets
        out_y = ((y < 0) | (y >= grid[0])) & (y[:, self.radius, None] < grid[0])
        out_x = ((x < 0) | (x >= grid[1])) & (x[:, self.radius, None] < grid[1])
        out_y = out_y.view(rows[0], 1, rows[1], 1, -1, 1)  # (rows, columns, tile_h, tile_w, side, side)
        out_x = out_x.view(1, columns[0], 1, columns[1], 1, -1)
        padding = (y[:, self.radius] >= grid[0]).view(rows[0], 1, rows[1], 1, 1, 1) \
            | (x[:, self.radius] >= grid[1]).view(1, columns[0], 1, columns[1], 1, 1)
        return ((out_y | out_x) & ~padding).flatten(4).flatten(2, 3).unsqueeze(2)


def _spread(windows: Tensor, scores: Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Put the windows' weights where they stand among a tile's keys, zeros elsewhere; like ``scores`` in shape."""
    if torch.is_grad_enabled():
        return torch.as_strided_scatter(torch.zeros_like(scores), windows, size, stride)
    scores.zero_().as_strided(size, stride).copy_(windows)  # the scores are read no more
    return scores


def _tiles(length: int) -> tuple[int, int]:
    """Number and edge of the tiles that cover ``length`` tokens."""
    count = max(1, round(length / TILE))
    return count, math.ceil(length / count)
