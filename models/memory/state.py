"""The state of one video (of one group of at most ten objects): all that the network remembers, as a value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from configs.schema import MemoryConfig
from models.blocks import Entry
from models.memory.bank import Bank, TrainingBank, map_tensors
from models.memory.policies import Policy


@dataclass
class State:
    """What :meth:`Network.start` makes and the other three functions take and return.

    Attributes:
        grid: (h, w) of the tokens; position: (1, L, C), or None where the family has none.
        objects: number of objects of each sample; slots: (B, 10) shuffled identities, or None.
        long: the long-term bank; short: the newest ``short_skip`` frames' entries, oldest first, one entry a block.
        frame: number of the current frame; last_offer: frame of the latest offer to the bank.
        reference: outputs of the blocks in the latest reference pass, for :meth:`Network.reference_logits`.
        extra: tensors that a family adds (DDMemory's global bank).
    """

    grid: tuple[int, int]
    objects: list[int]
    position: Tensor | None
    slots: Tensor | None
    detach_identity: bool
    config: MemoryConfig
    policy: Policy
    long: Bank | TrainingBank
    short: list[list[Entry]]
    reference: list[Tensor]
    frame: int = 0
    last_offer: int = 0
    extra: Any = field(default=None)

    @property
    def offers_next(self) -> bool:
        """Whether the next frame will be offered to the long-term bank."""
        return self.frame + 1 - self.last_offer >= self.config.gap

    def num_bytes(self) -> int:
        """Bytes of the tensors that are kept from frame to frame."""
        total = self.long.num_bytes() + (self.extra.num_bytes() if self.extra is not None else 0)
        held = [token for entries in self.short for entry in entries for token in entry]
        held += [tensor for tensor in (self.position, self.slots, *self.reference) if tensor is not None]
        return total + sum(tensor.numel() * tensor.element_size() for tensor in held)

    def clone(self) -> State:
        """An independent copy: what happens to one does not touch the other."""
        return self._mapped(Tensor.clone, "clone")

    def detach(self) -> State:
        """The same values without their history (truncated back-propagation)."""
        return self._mapped(Tensor.detach, "detach")

    def _mapped(self, function, method: str) -> State:
        changed = {name: map_tensors(getattr(self, name), function)
                   for name in ("position", "slots", "short", "reference")}
        changed["long"] = getattr(self.long, method)()
        if self.extra is not None:
            changed["extra"] = getattr(self.extra, method)()
        return dataclasses.replace(self, **changed)
