"""The long-term bank: the fused tokens of whole frames, in slots of fixed size.

All blocks of a network share the slots: one decision a frame. Tensors are (B, slots, L, C), one list an entry's
tensors for each block. The last slot is spare: a policy that returns it declines to write.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.blocks import Entry, Long

CHUNK = 4  # slots by which a growing bank grows at least


class Bank:
    """Slots that hold frames, written in place (inference).

    Attributes (per slot, the spare one included; all on the device of the tokens):
        filled: (slots,) bool; frame: (slots,) int64, when it was written; reference: (slots,) bool, given by the user.
        records: name -> (slots,) float32, what the policy keeps about each slot (or (slots, slots), about pairs).
        offered: how many frames were offered, a Python int.
    """

    def __init__(self, entries: list[Entry], capacity: int):
        """Start with the first reference frame in slot 0 and room for ``capacity`` more frames.

        Args:
            entries: for each block the fused tokens of the reference frame, tensors (B, L, C).
        """
        slots = 1 + capacity + 1
        first = entries[0][0]
        self.tensors = [[token.new_zeros(token.shape[0], slots, *token.shape[1:]) for token in entry]
                        for entry in entries]
        self.filled = torch.zeros(slots, dtype=torch.bool, device=first.device)
        self.frame = torch.zeros(slots, dtype=torch.int64, device=first.device)
        self.reference = torch.zeros(slots, dtype=torch.bool, device=first.device)
        self.records: dict[str, Tensor] = {}
        self.offered = 0
        self.write(entries, torch.zeros((), dtype=torch.int64, device=first.device), 0, reference=True)

    @property
    def capacity(self) -> int:
        """Slots that can hold a frame, references included, the spare one not."""
        return len(self.filled) - 1

    def write(self, entries: list[Entry], slot: Tensor, frame: int, reference: bool = False) -> None:
        """Put a frame into ``slot`` (0-d int64; ``capacity`` means nowhere)."""
        index = slot.view(1)
        for kept, entry in zip(self.tensors, entries, strict=True):
            for bank, token in zip(kept, entry, strict=True):
                bank.index_copy_(1, index, token.unsqueeze(1).to(bank.dtype))
        self.filled.index_fill_(0, index, True)
        self.frame.index_fill_(0, index, frame)
        self.reference.index_fill_(0, index, reference)
        self.filled[-1:] = False
        self.offered += 1

    def add_reference(self, entries: list[Entry], frame: int) -> None:
        """Put a further reference frame in front, in a slot of its own: no policy ever drops it."""
        self._rebuild(lambda kept, fresh: torch.cat([fresh, kept]), 1)
        self.write(entries, torch.zeros_like(self.frame[0]), frame, reference=True)

    def grow(self) -> None:
        """Make room for more frames where all slots are taken (unbounded memory only)."""
        if self.offered >= self.capacity:
            self._rebuild(lambda kept, fresh: torch.cat([kept[:-1], fresh, kept[-1:]]),
                          max(CHUNK, self.capacity // 4))

    def read(self, block: int, may_be_empty: bool) -> Long:
        """The stored tokens of a block: tensors (B, M, C), and (1, M) False at empty slots (None: there are none).

        Args:
            may_be_empty: the policy may decline to write, so that a slot within reach may be empty.
        """
        count = min(self.offered, self.capacity)
        tokens = tuple(bank[:, :count].flatten(1, 2) for bank in self.tensors[block])
        if not may_be_empty:
            return tokens, None
        length = self.tensors[block][0].shape[2]
        return tokens, self.filled[:count].repeat_interleave(length, output_size=count * length).unsqueeze(0)

    def record(self, name: str, start: float = 0.0, pairwise: bool = False) -> Tensor:
        """What the policy keeps about each slot under ``name``, made on first use; write it in place.

        Returns:
            (slots,) float32, or (slots, slots) for what is kept about pairs; the spare slot's values mean nothing.
        """
        if name not in self.records:
            slots = len(self.filled)
            shape = (slots, slots) if pairwise else (slots,)
            self.records[name] = torch.full(shape, start, dtype=torch.float32, device=self.frame.device)
        return self.records[name]

    def num_bytes(self) -> int:
        """Bytes of all tensors that the bank owns."""
        owned = [self.filled, self.frame, self.reference, *self.records.values()]
        owned += [tensor for kept in self.tensors for tensor in kept]
        return sum(tensor.numel() * tensor.element_size() for tensor in owned)

    def clone(self) -> Bank:
        return _mapped(self, Tensor.clone)

    def detach(self) -> Bank:
        return _mapped(self, Tensor.detach)

    def _rebuild(self, join, more: int) -> None:
        """Add ``more`` slots to every per-slot tensor; ``join`` says where (slots are the leading axis for it)."""
        def extended(tensor: Tensor) -> Tensor:
            return join(tensor, tensor.new_zeros(more, *tensor.shape[1:]))

        self.tensors = [[extended(bank.transpose(0, 1)).transpose(0, 1).contiguous() for bank in kept]
                        for kept in self.tensors]
        self.filled, self.frame, self.reference = map(extended, (self.filled, self.frame, self.reference))
        self.records = {name: extended(values) if values.dim() == 1 else extended(extended(values).T).T.contiguous()
                        for name, values in self.records.items()}


class TrainingBank:
    """Frames in a list, joined at each read: autograd forbids writing in place after a read (training)."""

    def __init__(self, entries: list[Entry]):
        self.frames = [entries]

    def add(self, entries: list[Entry]) -> None:
        self.frames.insert(0, entries)

    def read(self, block: int, may_be_empty: bool = False) -> Long:
        """As :meth:`Bank.read`."""
        stored = [frame[block] for frame in self.frames]
        joined = (torch.cat(tokens, 1) if len(stored) > 1 else tokens[0] for tokens in zip(*stored, strict=True))
        return tuple(joined), None

    def num_bytes(self) -> int:
        tensors = [token for frame in self.frames for entry in frame for token in entry]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def clone(self) -> TrainingBank:
        return _mapped(self, Tensor.clone)

    def detach(self) -> TrainingBank:
        return _mapped(self, Tensor.detach)


def _mapped(bank, function):
    """A copy of a bank with ``function`` applied to every tensor."""
    new = copy.copy(bank)
    vars(new).update({name: map_tensors(value, function) for name, value in vars(bank).items()})
    return new


def map_tensors(value, function):
    """Apply ``function`` to every tensor in nested lists, tuples (named ones, too) and dicts; other values stay."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return value
