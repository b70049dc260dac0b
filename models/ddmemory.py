"""DDMemory: AOT with reference, local and global memory. A reconstruction: its authors released no code.

Known (LVOS, arXiv 2211.10181, ICCV 2023): three banks, reference, global and local, on MobileNet-V2, and the scores.
Ours: everything else, above all the equations of the global bank (models/memory/global_bank.py, docs/memory.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Config, MemoryConfig
from models.attention import attend
from models.blocks import Entry, Tokens
from models.memory import Evidence, State
from models.memory.global_bank import DenseBank, GlobalState, SlotBank, frame_confidence, owner_shares
from models.network import AOT, Features

BANKS: dict[str, type[DenseBank] | type[SlotBank]] = {"dense": DenseBank, "slots": SlotBank}


class DDMemory(AOT):
    """Every block adds a read of the global memory to what it reads from reference and local memory.

    The read passes a projection that is zero at first: the network then equals, to the bit, AOT that remembers the
    reference and the previous frame, and official AOT weights can be loaded to train it from.
    """

    notice = "DDMemory is a reconstruction of ours: its authors released no code (docs/memory.md)"
    precise_parts = ("global_banks.",)
    added_parts = ("global_banks.", "global_projections.")  # what AOT's weights do not have

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        self.global_banks = nn.ModuleList(BANKS[model.global_bank](model) for _ in range(model.blocks))
        self.global_projections = nn.ModuleList(nn.Linear(model.channels, model.channels) for _ in range(model.blocks))
        for projection in self.global_projections:
            nn.init.zeros_(projection.weight)
            nn.init.zeros_(projection.bias)

    def start(self, features: Features, masks: Tensor, objects: int | list[int], memory: MemoryConfig | None = None,
              slots: Tensor | None = None, detach_identity: bool = False) -> State:
        """As :meth:`Network.start`; the global memory begins with the reference frame."""
        state = super().start(features, masks, objects, memory, slots, detach_identity)
        shares = owner_shares(masks, state.grid)
        ones = shares.new_ones(shares.shape[0])
        with self._full_precision(shares):
            banks = [bank.start(entry, shares) for bank, entry in zip(self.global_banks, state.short[-1], strict=True)]
        state.extra = GlobalState(banks, ones, ones)
        return state

    def segment(self, features: Features, state: State,
                attend: Callable[[int, Any], Tensor] | None = None) -> tuple[Tensor, list[Tokens]]:
        """As :meth:`Network.segment`; the tokens end with the logits, from which the write judges the frame."""
        logits, tokens = super().segment(features, state, attend)
        return logits, [*tokens, (logits.detach(),)]

    def remember(self, entries: list[Entry], tokens: list[Tokens], masks: Tensor, state: State,
                 evidence: Evidence | None = None) -> State:
        """As :meth:`Network.remember`; every ``memory.global_interval`` frames the global memory is written, too."""
        *tokens, (logits,) = tokens
        state = super().remember(entries, tokens, masks, state, evidence)
        if state.frame - state.extra.last_write >= state.config.global_interval:
            shares = owner_shares(masks, state.grid)
            confidence = frame_confidence(logits, shares, state.grid, state.config.min_presence)
            self._write(state, shares, confidence)
        return state

    def add_objects(self, features: Features, masks: Tensor, state: State, objects: int | list[int]) -> State:
        """As :meth:`Network.add_objects`; the frame is written to the global memory with full confidence."""
        state = super().add_objects(features, masks, state, objects)
        shares = owner_shares(masks, state.grid)
        self._write(state, shares, shares.new_ones(shares.shape[0]))
        return state

    def describe_extra(self, tokens: list[Tokens], state: State) -> dict[str, Tensor]:
        """At a frame that was written: openness of the gate, confidence, and share of the global memory in what the
        first block reads, by root mean square beside the long-term memory (0..1)."""
        memory: GlobalState = state.extra
        if memory.last_write != state.frame:
            return {}
        query = tokens[0][0]
        long = self.blocks[0].long_projection(self.attend(0, query, state))
        strength = [part.float().square().mean().sqrt() for part in (self.read_global(0, query, memory), long)]
        return {"openness": memory.openness.mean(), "confidence": memory.confidence.mean(),
                "share": strength[0] / (strength[0] + strength[1])}

    def _write(self, state: State, shares: Tensor, confidence: Tensor) -> None:
        memory: GlobalState = state.extra
        with self._full_precision(shares):
            written = [bank.write(old, entry, shares, confidence) for bank, old, entry
                       in zip(self.global_banks, memory.banks, state.short[-1], strict=True)]
        openness = torch.stack([gate.detach() for _, gate in written]).mean(0)
        state.extra = GlobalState([bank for bank, _ in written], openness, confidence, state.frame)

    def _read(self, index: int, stream: Tensor, query: Tensor, attended: Tensor, short: Entry,
              state: State) -> Tensor:
        if state.extra is not None:  # there is none yet in the very first reference pass
            stream = stream + self.read_global(index, query, state.extra)
        return super()._read(index, stream, query, attended, short, state)

    def read_global(self, index: int, query: Tensor, memory: GlobalState) -> Tensor:
        """What block ``index`` gets from the global memory for its queries: (B, L, C)."""
        key, value, mask = self.global_banks[index].read(memory.banks[index])
        read = attend(query, key.to(query.dtype), value.to(query.dtype), self.heads, mask)
        return self.global_projections[index](read)

    @staticmethod
    def _full_precision(like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, enabled=False)
