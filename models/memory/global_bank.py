"""DDMemory's global memory: a state of fixed size that holds the whole past, changed by gated recurrent writes.

No code of DDMemory was released (LVOS, arXiv 2211.10181); that there is such a bank is known, its equations are our
reconstruction: docs/memory.md. Two forms, one a block of the network:

    state = bank.start(entry, shares)                       # from the first reference frame
    state, openness = bank.write(state, entry, shares, confidence)
    keys, values, mask = bank.read(state)

``entry`` is the frame's fused keys and values (B, L, C); ``shares`` (B, 11, L) says how much of each token the
background and each of ten objects cover. States are float32, under autocast too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ModelConfig
from models.attention import attend
from models.blocks import Entry
from models.identity import IDENTITIES, one_hot
from models.memory.bank import map_tensors

CONSTANT_BIAS = -3.0  # of a constant gate: a write's content halves in 14 writes
PRESENT_TOKENS = 4.0  # tokens at which a slot's owner counts as fully present


@dataclass
class GlobalState:
    """The global memory of one video.

    Attributes:
        banks: each block's state tensors.
        last_write: number of the frame that was offered last, a Python int.
        openness: (B,) mean of the update gate at the latest write; confidence: (B,) of the frame written then.
    """

    banks: list[tuple[Tensor, ...]]
    openness: Tensor
    confidence: Tensor
    last_write: int = 0

    def num_bytes(self) -> int:
        tensors = [self.openness, self.confidence, *(tensor for bank in self.banks for tensor in bank)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def clone(self) -> GlobalState:
        return self._mapped(Tensor.clone)

    def detach(self) -> GlobalState:
        return self._mapped(Tensor.detach)

    def _mapped(self, function) -> GlobalState:
        return replace(self, **{name: map_tensors(getattr(self, name), function)
                                for name in ("banks", "openness", "confidence")})


class Gate(nn.Module):
    """The gated recurrent write of both forms: old <- (1 - z) old + z h, h = new + W [reset * old; new].

    The correction W is zero at first and never longer than ``new``, so that the state stays in the convex hull of
    vectors at most twice as long as what was seen, however many writes there are. The update gate z starts where
    ``start`` says: ``chrono`` (b = -log U(1, T - 1) a channel: time scales up to T writes, Tallec and Ollivier, ICLR
    2018), ``constant`` (b = -3), or ``open`` (z = 1 always: what was seen last).
    """

    def __init__(self, channels: int, extra: int, start: str, writes: int):
        """channels: of the state; extra: further inputs of the update gate; writes: T of a chrono gate."""
        super().__init__()
        self.reset = nn.Linear(2 * channels, channels)
        self.correction = nn.Linear(2 * channels, channels, bias=False)
        self.update = None if start == "open" else nn.Linear(2 * channels + extra, channels)
        for linear in (self.reset, self.correction, self.update):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.reset.bias)
        if self.update is not None:
            scales = torch.empty(channels).uniform_(1, max(2, writes - 1))
            self.update.bias.data.copy_(-scales.log() if start == "chrono" else torch.full_like(scales, CONSTANT_BIAS))

    def forward(self, old: Tensor, new: Tensor, strength: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """old, new: (B, M, C); strength: (B, 1 or M, 1) in 0..1, 0 leaves ``old`` to the bit; extra: (B, M, extra).

        Returns:
            the new state and z, both (B, M, C).
        """
        both = torch.cat([_normed(old), _normed(new)], -1)  # (B, M, 2 C)
        if self.update is None:
            gate = (strength > 0).to(old.dtype).expand_as(old)
        else:
            gate = self.update(both if extra is None else torch.cat([both, extra], -1)).sigmoid() * strength
        kept = torch.cat([self.reset(both).sigmoid() * old, new], -1)
        candidate = new + _limited(self.correction(kept), new)
        return (1 - gate) * old + gate * candidate, gate


class DenseBank(nn.Module):
    """A key and a value for every token of the map: the state follows what it holds from frame to frame.

    State: keys and values, (B, L, C) each. Every state token looks for its content in the new frame (one L x L
    product), and the gate mixes in what it finds (facts: equations of docs/memory.md, "Dense form").
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.gate = Gate(model.channels, 1, model.global_gate, model.global_writes)

    def start(self, entry: Entry, shares: Tensor) -> tuple[Tensor, ...]:
        return tuple(_precise(token).clone() for token in entry)

    def write(self, state: tuple[Tensor, ...], entry: Entry, shares: Tensor,
              confidence: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        old_key, old_value = state
        key, value = (_precise(token) for token in entry)
        foreground = 1 - shares[:, :1].to(key.dtype).transpose(1, 2)  # (B, L, 1)
        seen = attend(old_key, key, torch.cat([key, value, foreground], -1), heads=1)  # (B, L, 2 C + 1)
        key, value, foreground = seen.split([key.shape[-1], value.shape[-1], 1], -1)
        new_value, gate = self.gate(old_value, value, confidence.view(-1, 1, 1), foreground)
        mean = gate.mean(-1, keepdim=True)  # (B, L, 1)
        return ((1 - mean) * old_key + mean * key, new_value), gate.mean((1, 2))

    def read(self, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        return *state, None


class SlotBank(nn.Module):
    """A few vectors for each owner (the background and ten objects), each gathering what its query asks for.

    State: slots (B, 11 K, 2 C), key and value side by side, and which of them were ever written, (B, 11 K). A slot
    sees only tokens that its owner holds; that of an absent owner does not move at all. The first write of a slot
    fills it (facts: equations of docs/memory.md, "Slot form").
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        channels, self.per_owner = model.channels, model.global_slots
        # Objects share their queries, so that no object is special: [background, object].
        self.queries = nn.Parameter(torch.randn(2, self.per_owner, channels))
        self.gate = Gate(2 * channels, 0, model.global_gate, model.global_writes)
        self.to_key = nn.Linear(2 * channels, channels, bias=False)
        self.to_value = nn.Linear(2 * channels, channels, bias=False)
        halves = torch.eye(2 * channels).chunk(2)  # a slot is read as the key and the value it was made of
        self.to_key.weight.data.copy_(halves[0])
        self.to_value.weight.data.copy_(halves[1])

    def start(self, entry: Entry, shares: Tensor) -> tuple[Tensor, ...]:
        key = _precise(entry[0])
        slots = key.new_zeros(key.shape[0], (1 + IDENTITIES) * self.per_owner, 2 * key.shape[-1])
        seen = slots.new_zeros(slots.shape[:2], dtype=torch.bool)
        state, _ = self.write((slots, seen), entry, shares, key.new_ones(key.shape[0]))
        return state

    def write(self, state: tuple[Tensor, ...], entry: Entry, shares: Tensor,
              confidence: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        slots, seen = state
        key, value = (_precise(token) for token in entry)
        shares = shares.to(key.dtype)
        winner = F.one_hot(shares.argmax(1), 1 + IDENTITIES).transpose(1, 2)  # (B, 11, L)
        owned = (shares * winner).repeat_interleave(self.per_owner, 1)  # (B, 11 K, L)
        queries = torch.cat([self.queries[:1], self.queries[1:].expand(IDENTITIES, -1, -1)]).flatten(0, 1)  # (11 K, C)
        scores = queries.to(key.dtype) @ key.transpose(1, 2) / math.sqrt(key.shape[-1])  # (B, 11 K, L)
        weight = owned * (scores - scores.amax(-1, keepdim=True)).exp()
        gathered = weight @ torch.cat([key, value], -1) / (weight.sum(-1, keepdim=True) + 1e-6)  # (B, 11 K, 2 C)

        presence = (owned.sum(-1, keepdim=True) / PRESENT_TOKENS).clamp(max=1) * confidence.view(-1, 1, 1)
        written, gate = self.gate(slots, gathered, presence)
        first = ~seen.unsqueeze(-1) & (presence > 0)  # nothing to keep yet
        openness = gate.mean((1, 2))
        return (torch.where(first, gathered, written), seen | first.squeeze(-1)), openness

    def read(self, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        slots, seen = state
        dtype = self.to_key.weight.dtype
        always = torch.arange(seen.shape[1], device=seen.device) == 0  # no row of scores is empty
        mask = (seen | always)[:, None, None]  # (B, 1, 1, 11 K)
        return self.to_key(slots.to(dtype)), self.to_value(slots.to(dtype)), mask


def owner_shares(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """How much of each token the background and each object cover: (B, 11, L) float32 in 0..1, without gradient.

    Args:
        masks: (B, H, W) integer labels (255 belongs to nothing) or (B, 1 + n, H, W) soft masks.
    """
    soft = one_hot(masks) if masks.dim() == 3 else F.pad(masks, (0, 0, 0, 0, 0, 1 + IDENTITIES - masks.shape[1]))
    return F.adaptive_avg_pool2d(soft.detach().float(), grid).flatten(2)


def frame_confidence(logits: Tensor, shares: Tensor, grid: tuple[int, int], min_presence: float) -> Tensor:
    """Presence times certainty of a frame: (B,) float32 in 0..1, no gradient; 0 where no object is there.

    Certainty is the mean margin between the two best probabilities inside the objects; ``min_presence`` is the share
    of the frame that all objects together must exceed.
    """
    with torch.no_grad():
        best = logits.float().softmax(1).topk(2, dim=1).values
        margin = F.adaptive_avg_pool2d(best[:, 0] - best[:, 1], grid).flatten(1)  # (B, L)
        foreground = shares[:, 1:].sum(1)  # (B, L)
        area = foreground.sum(1)
        certainty = (foreground * margin).sum(1) / area.clamp_min(1e-6)
        return certainty * (area > min_presence * foreground.shape[1])


def _precise(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _normed(tensor: Tensor) -> Tensor:
    return F.layer_norm(tensor, tensor.shape[-1:])


def _limited(change: Tensor, reference: Tensor) -> Tensor:
    """``change``, shortened to the length of ``reference`` where it is longer."""
    length = torch.linalg.vector_norm(change, dim=-1, keepdim=True).clamp_min(1e-6)
    return change * (torch.linalg.vector_norm(reference, dim=-1, keepdim=True) / length).clamp(max=1)
