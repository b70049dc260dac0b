"""DDMemory's global memory: a state of fixed size that holds the whole past, changed by gated recurrent writes.

No code of DDMemory was released (LVOS, arXiv 2211.10181); that there is such a bank is known at second hand, its
equations are our reconstruction: docs/memory.md. Two forms; each block of the network has a bank of its own:

    state = bank.start(entry, shares)                       # from the first reference frame
    state, openness = bank.write(state, entry, shares, certainty)
    keys, values, bias = bank.read(state)

``entry`` is the frame's fused keys and values (B, L, C); ``shares`` (B, 12, L) says how much of each token belongs to
each owner: the background, ten objects, and *elsewhere*, to which all of a frame without any object belongs;
``certainty`` (B, L) in 0..1 says how sure the network is of each token; where it is 0 nothing is written. States are
float32, under autocast too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import ModelConfig
from models.blocks import Entry
from models.identity import IDENTITIES, one_hot, token_means
from models.memory.bank import map_tensors
from models.precision import precise

ELSEWHERE = 1 + IDENTITIES  # the owner of what a frame without any object shows
OWNERS = 2 + IDENTITIES
MOST_NEW = 0.25  # new tokens that a write may take in, as a share of the frame's
PRESENT_TOKENS = 4.0  # tokens at which a slot's owner counts as fully present


@dataclass
class GlobalState:
    """The global memory of one video.

    Attributes:
        banks: each block's state tensors.
        last_write: number of the frame that was written last, a Python int.
        openness: (B,) share of what is held that the latest write replaced, by the update gate or wholly; confidence:
            (B,) of the frame written then.
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

    The correction W is zero at first and never longer than ``new``, and each channel of the state stays between what
    was in it and what it is given, so that the state is bounded, however many writes there are. The gates see ``old``
    and ``new`` normalised. The update gate z starts as ``start`` says: ``mean`` (1 / (1 + n) where n writes are in
    ``old`` already: the mean of all that was seen), ``constant`` (1 / 2: what was seen lately), or ``open`` (z = 1
    always: what was seen last).
    """

    def __init__(self, channels: int, extra: int, start: str):
        """channels: of the state; extra: further inputs of the update gate."""
        super().__init__()
        self.averages = start == "mean"
        self.reset = nn.Linear(2 * channels, channels)
        self.correction = nn.Linear(2 * channels, channels, bias=False)
        self.update = None if start == "open" else nn.Linear(2 * channels + extra, channels)
        for linear in (self.reset, self.correction, self.update):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        for linear in (self.reset, self.update):
            if linear is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, old: Tensor, new: Tensor, count: Tensor, strength: Tensor,
                extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """old, new: (B, M, C); count: (B, M), the writes in ``old``; strength: (B, 1 or M, 1) in 0..1, 0 leaves ``old``
        to the bit; extra: (B, M, extra).

        Returns:
            the new state and z, both (B, M, C).
        """
        both = torch.cat([_normed(old), _normed(new)], -1)  # (B, M, 2 C)
        if self.update is None:
            gate = (strength > 0).to(old.dtype).expand_as(old)
        else:
            opens = self.update(both if extra is None else torch.cat([both, extra], -1))
            if self.averages:
                opens = opens - count.clamp_min(1).log().unsqueeze(-1)
            gate = opens.sigmoid() * strength
        kept = torch.cat([self.reset(both).sigmoid() * old, new], -1)
        candidate = new + _limited(self.correction(kept), new)
        return (1 - gate) * old + gate * candidate, gate


class DenseState(NamedTuple):
    """What a dense bank holds: M tokens, empty ones (``count`` 0) included.

    Attributes:
        key, value: (B, M, C); owner: (B, M) int64, whose each token is; used: (B, M) int64, number of the write that
            used it last; count: (B, M), how many writes are in it, weighted by their certainty, at most
            ``model.global_writes``.
        area: (B, 12), tokens that each owner covered when it was seen last.
        bias: (B, M), what a read adds to the scores of each token.
    """

    key: Tensor
    value: Tensor
    owner: Tensor
    used: Tensor
    count: Tensor
    area: Tensor
    bias: Tensor


class Frame(NamedTuple):
    """A frame as a dense bank takes it: key, value (B, L, C); owner (B, L); foreground and certainty (B, L), 0..1."""

    key: Tensor
    value: Tensor
    owner: Tensor
    foreground: Tensor
    certainty: Tensor


class DenseBank(nn.Module):
    """Tokens as of ``model.global_frames`` whole frames, that follow what they hold and take in what is new.

    A frame's token is known where it resembles a state token of the same owner: the gate mixes it into that one.
    Otherwise it is new and replaces the token used least recently of the owner that has most, so that what an absent
    object left behind stays. What frames without any object show has places of its own, ``model.global_elsewhere``
    frames' worth, and takes none of the others' (equations: docs/memory.md, "the dense form").
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.frames, self.elsewhere = model.global_frames, model.global_elsewhere
        self.weight, self.likeness = model.global_weight, model.global_likeness
        self.most = float(model.global_writes)
        self.gate = Gate(model.channels, 1, model.global_gate)

    def start(self, entry: Entry, shares: Tensor) -> DenseState:
        owner = token_owners(shares)
        owner = owner.masked_fill(owner == ELSEWHERE, 0)  # a reference, though no object is left of it at this size
        free = self.elsewhere * owner.shape[1]

        def begun(token: Tensor, fill: float = 0.0) -> Tensor:
            """(B, L) or (B, L, C) as often as there are frames, then the places for what is elsewhere."""
            return torch.cat([*[token] * self.frames, token.new_full((len(token), free, *token.shape[2:]), fill)], 1)

        key, value = (begun(precise(token)) for token in entry)
        owners = begun(owner, ELSEWHERE)
        count = begun(torch.ones_like(owner, dtype=key.dtype))
        area = _areas(owner, torch.ones_like(shares[:, 0]))
        return DenseState(key, value, owners, torch.zeros_like(owners), count, area, self._bias(owners, count, area))

    def write(self, state: DenseState, entry: Entry, shares: Tensor, certainty: Tensor) -> tuple[DenseState, Tensor]:
        key, value = (precise(token) for token in entry)
        frame = Frame(key, value, token_owners(shares), shares[:, 1:ELSEWHERE].sum(1).to(key.dtype),
                      certainty.to(key.dtype))
        now = state.used.amax(1, keepdim=True) + 1  # (B, 1)
        sure = certainty > 0
        if not self.elsewhere:
            sure = sure & (frame.owner != ELSEWHERE)
        likeness, match = self._likest(frame, state)
        known = sure & (likeness >= self.likeness)
        mixed, opened = self._mix_known(state, frame, known, match, now)
        written, entered = self._admit_new(mixed, frame, sure & ~known, likeness, now)
        seen = _areas(frame.owner, sure.to(state.area.dtype))
        area = torch.where(seen > 0, seen, state.area)
        written = written._replace(area=area, bias=self._bias(written.owner, written.count, area))
        return written, (opened + entered) / (written.count > 0).sum(1)

    def read(self, state: DenseState) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values, and what is added to the scores of each token, (B, M)."""
        return state.key, state.value, state.bias

    def _bias(self, owner: Tensor, count: Tensor, area: Tensor) -> Tensor:
        """What a read adds to the scores: (B, M).

        Within an owner a token weighs as many writes as are in it, as if each of them were remembered by itself. An
        owner weighs as much as in ``model.global_weight`` frames like that in which it was seen last, however many
        tokens it has: attention would else take an object that was seen for long, or in many looks, for a large one.
        """
        of_one = self.weight * area / _areas(owner, count).clamp_min(1)  # (B, 12), of one write
        return of_one.clamp_min(1e-6).log().gather(1, owner) + count.log()

    @staticmethod
    @torch.no_grad()
    def _likest(frame: Frame, state: DenseState) -> tuple[Tensor, Tensor]:
        """For each token of the frame the likeness of the most similar state token of its owner, and its place.

        Likeness is the cosine of the keys less the mean of the state's keys, which attention does not see either: it
        adds the same to all scores of a query. -2: the owner has no token yet.
        """
        there = state.count > 0  # (B, M)
        mean = state.key.sum(1, keepdim=True) / there.sum(1).view(-1, 1, 1)  # empty places are zeros
        likeness = F.normalize(frame.key - mean, dim=-1) @ F.normalize(state.key - mean, dim=-1).transpose(1, 2)
        same = (frame.owner.unsqueeze(2) == state.owner.unsqueeze(1)) & there.unsqueeze(1)  # (B, L, M)
        return likeness.masked_fill(~same, -2).max(-1)

    def _mix_known(self, state: DenseState, frame: Frame, known: Tensor, match: Tensor,
                   now: Tensor) -> tuple[DenseState, Tensor]:
        """Each state token that some ``known`` tokens (B, L) have as their ``match`` (B, L) meets the mean of those, by
        the gate. The others stay, to the bit. Returns the state, and the sum of the gates over tokens, (B,)."""
        length = known.shape[1]
        met = _sums(known.unsqueeze(-1).to(frame.key.dtype), match, state.owner.shape[1])  # (B, M, 1), how many
        chosen = met.squeeze(-1).topk(length).indices  # (B, L): all that were met, and as many of the others
        order = torch.arange(length, device=known.device).expand_as(known)
        place = torch.zeros_like(state.owner).scatter(1, chosen, order).gather(1, match)  # (B, L): among the chosen
        told = torch.cat([frame.key, frame.value, torch.stack([frame.foreground, frame.certainty], -1)], -1)
        told = _sums(told * known.unsqueeze(-1), place, length) / _taken(met, chosen).clamp_min(1)  # (B, L, 2 C + 2)
        key, value, foreground, strength = told.split([frame.key.shape[-1], frame.value.shape[-1], 1, 1], -1)
        foreground, strength = foreground.detach(), strength.detach()  # of masks: nothing learns from their gradient
        value, gate = self.gate(_taken(state.value, chosen), value, _taken(state.count, chosen), strength, foreground)
        opened = gate.mean(-1, keepdim=True)  # (B, L, 1)
        key = (1 - opened) * _taken(state.key, chosen) + opened * key
        count = state.count + _put(torch.zeros_like(state.count), chosen, strength.squeeze(-1))
        return state._replace(
            key=_put(state.key, chosen, key), value=_put(state.value, chosen, value), count=count.clamp(max=self.most),
            used=torch.where(met.squeeze(-1) > 0, now, state.used)), opened.sum((1, 2))

    @staticmethod
    def _admit_new(state: DenseState, frame: Frame, new: Tensor, likeness: Tensor,
                   now: Tensor) -> tuple[DenseState, Tensor]:
        """Tokens of the frame that are ``new`` (B, L), those of objects first, the least like anything first, each in
        place of what is worth least. Returns the state, and how many entered, (B,)."""
        room = math.ceil(new.shape[1] * MOST_NEW)
        rank = torch.where(new, 3 * (frame.owner > 0) - likeness, -math.inf)  # likeness is -2 to 1
        rank, entering = rank.topk(room)  # (B, room)
        apart = (state.owner == ELSEWHERE) != (frame.owner[:, :1] == ELSEWHERE)  # (B, M): of the other kind of frame
        victims = _place_in_line(state.owner, state.used).masked_fill(apart, -1).topk(room).indices  # (B, room)

        def exchanged(kept: Tensor, fresh: Tensor) -> Tensor:
            """kept: (B, M) or (B, M, .); fresh: the same of L tokens."""
            enters = rank.isfinite().view(*rank.shape, *[1] * (kept.dim() - 2))
            return _put(kept, victims, torch.where(enters, _taken(fresh, entering), _taken(kept, victims)))

        return state._replace(
            key=exchanged(state.key, frame.key), value=exchanged(state.value, frame.value),
            owner=exchanged(state.owner, frame.owner), count=exchanged(state.count, torch.ones_like(likeness)),
            used=exchanged(state.used, now.expand_as(frame.owner))), rank.isfinite().sum(1)


class SlotBank(nn.Module):
    """A few vectors for each owner (the background and ten objects), each gathering what its query asks for.

    State: slots (B, 11 K, 2 C), key and value side by side; how many writes are in each, (B, 11 K), weighted by their
    strength, at most ``model.global_writes``; and the tokens that each owner covered when it was seen last, (B, 11). A
    slot sees only tokens that its owner holds; that of an absent owner does not move at all, and none does in a frame
    without any object. The first write of a slot fills it (equations: docs/memory.md, "The slot form").
    """

    def __init__(self, model: ModelConfig):
        super().__init__()
        channels, self.per_owner = model.channels, model.global_slots
        # Objects share their queries, so that no object is special: [background, object].
        self.queries = nn.Parameter(torch.randn(2, self.per_owner, channels))
        self.most = float(model.global_writes)
        self.gate = Gate(2 * channels, 0, model.global_gate)
        self.to_key = nn.Linear(2 * channels, channels, bias=False)
        self.to_value = nn.Linear(2 * channels, channels, bias=False)
        halves = torch.eye(2 * channels).chunk(2)  # a slot is read as the key and the value it was made of
        self.to_key.weight.data.copy_(halves[0])
        self.to_value.weight.data.copy_(halves[1])

    def start(self, entry: Entry, shares: Tensor) -> tuple[Tensor, ...]:
        key = precise(entry[0])
        slots = key.new_zeros(key.shape[0], (1 + IDENTITIES) * self.per_owner, 2 * key.shape[-1])
        count, area = slots.new_zeros(slots.shape[:2]), slots.new_zeros(len(slots), 1 + IDENTITIES)
        state, _ = self.write((slots, count, area), entry, shares, torch.ones_like(key[..., 0]))
        return state

    def write(self, state: tuple[Tensor, ...], entry: Entry, shares: Tensor,
              certainty: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        slots, count, area = state
        key, value = (precise(token) for token in entry)
        shares = shares.to(key.dtype)
        winner = F.one_hot(shares.argmax(1), OWNERS).transpose(1, 2)  # (B, 12, L)
        owned = (shares * winner)[:, :ELSEWHERE].repeat_interleave(self.per_owner, 1)  # (B, 11 K, L)
        queries = torch.cat([self.queries[:1], self.queries[1:].expand(IDENTITIES, -1, -1)]).flatten(0, 1)  # (11 K, C)
        scores = queries.to(key.dtype) @ key.transpose(1, 2) / math.sqrt(key.shape[-1])  # (B, 11 K, L)
        scores = scores.masked_fill(owned == 0, -math.inf)
        best = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)  # (B, 11 K, 1), of its owner's
        weight = owned * (scores - best).exp()
        gathered = weight @ torch.cat([key, value], -1) / (weight.sum(-1, keepdim=True) + 1e-6)  # (B, 11 K, 2 C)

        covered = owned.sum(-1, keepdim=True)  # (B, 11 K, 1)
        sure = owned @ certainty.to(key.dtype).unsqueeze(-1) / covered.clamp_min(1e-6)  # (B, 11 K, 1)
        presence = (covered / PRESENT_TOKENS).clamp(max=1) * sure
        written, gate = self.gate(slots, gathered, count, presence)
        present = presence > 0
        first = present & (count.unsqueeze(-1) == 0)  # nothing to keep yet
        slots = torch.where(first, gathered, written)
        count = (count + presence.squeeze(-1)).clamp(max=self.most)
        openness = torch.where(first, 1, gate).mean(-1).sum(1) / (count > 0).sum(1)  # (B,)
        area = torch.where(*(part.view(*area.shape, -1)[..., 0] for part in (present, covered)), area)
        return (slots, count, area), openness

    def read(self, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`DenseBank.read`; an owner weighs as in one frame."""
        slots, count, area = state
        dtype = self.to_key.weight.dtype
        weight = (area / self.per_owner).clamp_min(1e-6).log().repeat_interleave(self.per_owner, 1)  # (B, 11 K)
        bias = weight.masked_fill(count == 0, -math.inf)
        return self.to_key(slots.to(dtype)), self.to_value(slots.to(dtype)), bias


def owner_shares(masks: Tensor, align_corners: bool, objects: int = IDENTITIES) -> Tensor:
    """How much of each token each owner covers: (B, 12, L) float32 in 0..1, without gradient. All of a frame without
    any object is elsewhere.

    Args:
        masks: (B, H, W) integer labels (255 belongs to nothing) or (B, 1 + n, H, W) soft masks, of the frame's size.
        align_corners: of the network.
        objects: the highest object id that may occur.
    """
    soft = one_hot(masks, objects) if masks.dim() == 3 else masks[:, : 1 + objects]
    means = token_means(soft.detach().float(), 16, align_corners).flatten(2)  # (B, 1 + objects, L)
    shares = F.pad(means, (0, 0, 0, OWNERS - means.shape[1]))
    elsewhere = torch.zeros_like(shares)
    elsewhere[:, ELSEWHERE] = 1
    return torch.where(_covered(shares) > 0, shares, elsewhere)


def token_certainty(logits: Tensor, shares: Tensor, align_corners: bool, min_presence: float) -> Tensor:
    """Certainty of each token of a frame: (B, L) float32 in 0..1, no gradient.

    It is the mean margin between the two best probabilities; 0 everywhere in a frame with objects that, all together,
    do not exceed ``min_presence``, a share of the frame: it shows neither them nor that they are away.
    """
    with torch.no_grad():
        best = logits.float().softmax(1).topk(2, dim=1).values
        margin = token_means(best[:, :1] - best[:, 1:], 4, align_corners).flatten(1)  # (B, L)
        covered = _covered(shares).flatten(1)  # (B, 1)
        return margin * ((covered == 0) | (covered > min_presence * shares.shape[2]))


def token_owners(shares: Tensor) -> Tensor:
    """Whose each token is: (B, L) int64. An object has a token of which it covers a third and more, at the coarse grid
    of the tokens.

    Args:
        shares: as of :func:`owner_shares`.
    """
    return torch.cat([0.5 * shares[:, :1], shares[:, 1:]], 1).argmax(1)


def _covered(shares: Tensor) -> Tensor:
    """Tokens that the objects cover, all together: (B, 1, 1)."""
    return shares[:, 1:ELSEWHERE].sum((1, 2), keepdim=True)


def _place_in_line(owner: Tensor, used: Tensor) -> Tensor:
    """How many tokens of the same owner were used later: (B, M) float, equal ones in the order in which they stand.

    The highest is the token used least recently of the owner that has most.
    """
    latest = used.amax(1, keepdim=True) - used  # 0 for those of the latest write
    turn = (owner * (used.amax(1, keepdim=True) + 1) + latest).flip(1)  # owner by owner, the latest first
    place = turn.argsort(dim=1, stable=True).argsort(1).flip(1)  # (B, M), of each token among the sorted
    sizes = _areas(owner, torch.ones_like(owner))  # (B, 12)
    return (place - (sizes.cumsum(1) - sizes).gather(1, owner)).float()


def _areas(owner: Tensor, weight: Tensor) -> Tensor:
    """Sum of ``weight`` (B, L) over the tokens of each owner (B, L): (B, 12)."""
    return _sums(weight.unsqueeze(-1), owner, OWNERS).squeeze(-1)


def _taken(tokens: Tensor, places: Tensor) -> Tensor:
    """Of tokens (B, M) or (B, M, .) those at ``places`` (B, N): (B, N) or (B, N, .)."""
    return tokens.gather(1, _index(places, tokens))


def _put(tokens: Tensor, places: Tensor, new: Tensor) -> Tensor:
    """Tokens (B, M) or (B, M, .) with ``new`` (B, N) or (B, N, .) at ``places`` (B, N)."""
    return tokens.scatter(1, _index(places, tokens), new)


def _index(places: Tensor, tokens: Tensor) -> Tensor:
    return places if tokens.dim() == 2 else places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])


def _sums(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    """Sums of tokens (B, L, .) by their places (B, L) among ``count``: (B, count, .)."""
    batch, _, channels = tokens.shape
    rows = places + count * torch.arange(batch, device=places.device).unsqueeze(1)
    empty = tokens.new_zeros(batch * count, channels)
    # Not index_add, whose order of summation, and with it the last bit, changes from run to run on a GPU.
    return empty.index_put((rows.flatten(),), tokens.flatten(0, 1), accumulate=True).unflatten(0, (batch, count))


def _normed(tensor: Tensor) -> Tensor:
    return F.layer_norm(tensor, tensor.shape[-1:])


def _limited(change: Tensor, reference: Tensor) -> Tensor:
    """``change``, shortened to the length of ``reference`` where it is longer."""
    length = torch.linalg.vector_norm(change, dim=-1, keepdim=True).clamp_min(1e-6)
    return change * (torch.linalg.vector_norm(reference, dim=-1, keepdim=True) / length).clamp(max=1)
