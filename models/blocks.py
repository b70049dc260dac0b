"""Transformer blocks: AOT's long short-term transformer block, and DeAOT's gated propagation module.

A block runs in two halves around the memory: ``query`` says what the frame asks and what it would store, ``fuse``
makes a memory entry of that and an identity embedding, ``attend`` reads the long-term memory (the only part whose
shapes change as the memory grows) and ``read`` the short-term one and does the rest. In both families a frame's keys
are its queries.

    stream, query, tokens = block.query(stream, position)
    entry = block.fuse(tokens, identity)
    attended = block.attend(query, long)
    stream = block.read(stream, query, attended, short, grid)

Tokens and entries are tuples of tensors (B, L, .), which differ in width between the families.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import LocalAttention, as_map, as_tokens, attend
from models.depthwise import DepthwiseConv
from models.noise import keep_mask

Tokens = tuple[Tensor, ...]
Entry = tuple[Tensor, ...]
Long = tuple[Entry, Tensor | None]  # stored tokens of all frames, (B, M, .), and (M,) False where a slot is empty


class DropPath(nn.Module):
    """Stochastic depth: a sample's branch is left out with probability ``rate`` in training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training and self.rate > 0 else x

    def mask(self, x: Tensor) -> Tensor:
        return keep_mask(x, 1, self.rate).view(-1, *[1] * (x.dim() - 1))


class DropChannels(DropPath):
    """Channel dropout of maps (B, C, H, W): a sample's channel is 0 with probability ``rate`` in training."""

    def mask(self, x: Tensor) -> Tensor:
        return keep_mask(x, x.shape[1], self.rate)[:, :, None, None]


class SelfAttention(nn.Module):
    """Multi-head self-attention with a position embedding on queries and keys."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.linear_q, self.linear_k, self.linear_v, self.projection = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        placed = x + position
        return self.projection(attend(self.linear_q(placed), self.linear_k(placed), self.linear_v(x), self.heads))


class FeedForward(nn.Module):
    """Linear, GroupNorm over the map, GELU, depthwise 5 x 5 convolution, linear."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.norm = nn.GroupNorm(32, hidden)
        self.conv = DepthwiseConv(hidden, 5)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = as_map(self.linear1(x), grid)
        return self.linear2(as_tokens(self.conv(F.gelu(self.norm(x)))))


class AOTBlock(nn.Module):
    """LSTT block (AOT, arXiv 2106.02638, section 3.2): self-attention, long- and short-term attention, feed-forward."""

    def __init__(self, index: int, channels: int, heads: int, drop_path: float, conv_dropout: float):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_attention = SelfAttention(channels, heads)
        self.linear_q = nn.Linear(channels, channels)
        self.linear_v = nn.Linear(channels, channels)
        self.long_projection = nn.Linear(channels, channels)
        self.short_attention = LocalAttention(heads, channels, channels)
        self.short_projection = nn.Linear(channels, channels)
        self.feed_forward = FeedForward(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def sharpen(self, score: float) -> None:
        """Keys that keep lengths and angles of tokens; the attention score of a token with itself becomes ``score``."""
        _sharpen(self.linear_q.weight, self.heads, score)

    @staticmethod
    def entry_channels(channels: int) -> int:
        """Numbers that an entry keeps of each token: key and value."""
        return 2 * channels

    def query(self, stream: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tokens]:
        x = stream + self.drop_path(self.self_attention(self.norm1(stream), position))
        normed = self.norm2(x)
        key = self.linear_q(normed)
        return x, key, (key, normed)

    def fuse(self, tokens: Tokens, identity: Tensor) -> Entry:
        key, normed = tokens
        return key, self.linear_v(normed + identity)

    def attend(self, query: Tensor, long: Long) -> Tensor:
        (keys, values), mask = long
        return attend(query, keys, values, self.heads, mask)

    def read(self, stream: Tensor, query: Tensor, attended: Tensor, short: Entry, grid: tuple[int, int]) -> Tensor:
        x = stream + self.long_projection(attended) + self.short_projection(self.short_attention(query, *short, grid))
        return x + self.drop_path(self.feed_forward(self.norm3(x), grid))


class GatedPropagation(nn.Module):
    """What follows attention in DeAOT: gate, depthwise 5 x 5 convolution, projection."""

    def __init__(self, inputs: int, outputs: int, dropout: float):
        super().__init__()
        self.conv = DepthwiseConv(inputs, 5)
        self.dropout = DropChannels(dropout)
        self.projection = nn.Linear(inputs, outputs)

    def forward(self, attended: Tensor, gate: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.projection(as_tokens(self.dropout(self.conv(as_map(attended * gate, grid)))))


class DeAOTBlock(nn.Module):
    """Gated propagation module (DeAOT, arXiv 2210.09782, section 4): a visual and an identity stream, read together.

    The stream is [visual | identity], (B, L, 2 C); the first block gets the visual half alone.
    """

    def __init__(self, index: int, channels: int, heads: int, drop_path: float, conv_dropout: float):
        super().__init__()
        self.first, self.channels = index == 0, channels
        self.key_channels, self.expanded = channels // 2, 2 * channels
        self.norm1, self.norm2, self.id_norm2 = (nn.LayerNorm(channels) for _ in range(3))
        self.linear_qv = nn.Linear(channels, self.key_channels + self.expanded)
        self.linear_u = nn.Linear(channels, self.expanded)
        self.linear_id_v = nn.Linear(channels if self.first else 2 * channels, self.expanded)
        if not self.first:
            self.id_norm1 = nn.LayerNorm(channels)
            self.linear_id_u = nn.Linear(channels, self.expanded)
        self.long_propagation = GatedPropagation(2 * self.expanded, 2 * channels, conv_dropout)
        self.short_attention = LocalAttention(1, self.key_channels, 2 * self.expanded, embed_values=False)
        self.short_propagation = GatedPropagation(2 * self.expanded, 2 * channels, conv_dropout)
        self.self_qk = nn.Linear(2 * channels, self.key_channels)
        self.self_v1, self.self_v2, self.self_u1, self.self_u2 = (
            nn.Linear(channels, self.expanded) for _ in range(4))
        self.self_propagation = GatedPropagation(2 * self.expanded, 2 * channels, conv_dropout)
        self.drop_path = DropPath(drop_path)

    def sharpen(self, score: float) -> None:
        """As :meth:`AOTBlock.sharpen`."""
        _sharpen(self.linear_qv.weight[: self.key_channels], 1, score)

    @staticmethod
    def entry_channels(channels: int) -> int:
        """Numbers that an entry keeps of each token: key, visual and identity value."""
        return channels // 2 + 4 * channels

    def query(self, stream: Tensor, position: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor], Tokens]:
        visual, identity = stream.split(self.channels, -1) if not self.first else (stream, None)
        normed = self.norm1(visual)
        key, value = self.linear_qv(normed).split([self.key_channels, self.expanded], -1)
        value, gate = F.silu(value), F.silu(self.linear_u(normed))
        if identity is None:
            return stream, (key, torch.cat([gate, torch.ones_like(gate)], -1)), (key, value)
        normed_id = self.id_norm1(identity)
        gate = torch.cat([gate, F.silu(self.linear_id_u(normed_id))], -1)
        return stream, (key, gate), (key, value, normed_id)

    def fuse(self, tokens: Tokens, identity: Tensor) -> Entry:
        key, value, *normed_id = tokens
        # One tensor of 2 * expanded channels, [visual | identity], so that a read copies nothing.
        return key, torch.cat([value, F.silu(self.linear_id_v(torch.cat([*normed_id, identity], -1)))], -1)

    def attend(self, query: tuple[Tensor, Tensor], long: Long) -> Tensor:
        (keys, values), mask = long
        return attend(query[0], keys, values, 1, mask)

    def read(self, stream: Tensor, query: tuple[Tensor, Tensor], attended: Tensor, short: Entry,
             grid: tuple[int, int]) -> Tensor:
        key, gate = query
        change = self.long_propagation(attended, gate, grid) \
            + self.short_propagation(self.short_attention(key, *short, grid), gate, grid)
        if self.first:  # the identity stream starts from nothing
            stream = torch.cat([stream, torch.zeros_like(stream)], -1)
        stream = stream + change

        visual, identity = stream.split(self.channels, -1)
        visual, identity = self.norm2(visual), self.id_norm2(identity)
        key = self.self_qk(torch.cat([visual, identity], -1))
        value = F.silu(torch.cat([self.self_v1(visual), self.self_v2(identity)], -1))
        gate = F.silu(torch.cat([self.self_u1(visual), self.self_u2(identity)], -1))
        change = self.self_propagation(attend(key, key, value, 1), gate, grid)
        # The halves draw their drop-path masks apart.
        return stream + torch.cat([self.drop_path(half) for half in change.split(self.channels, -1)], -1)


def _sharpen(weight: Tensor, heads: int, score: float) -> None:
    """Make a projection (keys, C) orthogonal, and so long that the key k of a normalised token has k k' / sqrt(d) =
    score, in the mean over tokens and heads of d channels."""
    nn.init.orthogonal_(weight)
    width = weight.shape[0] // heads
    now = weight.shape[1] * weight.square().mean() * width**0.5
    weight.mul_((score / now).sqrt())
