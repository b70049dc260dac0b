"""DDMemory: AOT with reference, local and global memory. A reconstruction: its authors released no code.

Known (LVOS, arXiv 2211.10181, ICCV 2023; some at second hand): three banks, reference, global and local, on
MobileNet-V2, and the scores.
Ours: everything else, above all the equations of the global bank (models/memory/global_bank.py, docs/memory.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.schema import Config, MemoryConfig
from models.attention import attend
from models.blocks import Entry, Tokens
from models.memory import Evidence, State
from models.memory.global_bank import ELSEWHERE, DenseBank, GlobalState, SlotBank, owner_shares, token_certainty
from models.network import AOT, Features

BANKS: dict[str, type[DenseBank] | type[SlotBank]] = {"dense": DenseBank, "slots": SlotBank}


class DDMemory(AOT):
    """Every block reads the global memory together with the references, in one softmax of AOT's long-term attention.

    The global memory begins as copies of the reference, which change nothing in a softmax over it: until something is
    written, the network equals AOT that remembers the reference and the previous frame. What is written later is read
    by attention that AOT's weights have learnt already, so they are of use before any further training.
    """

    notice = "DDMemory is a reconstruction of ours: its authors released no code (docs/memory.md)"
    precise_parts = ("global_banks.",)
    added_parts = ("global_banks.", "global_marks")  # what AOT's weights do not have

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        self.global_banks = nn.ModuleList(BANKS[model.global_bank](model) for _ in range(model.blocks))
        # What tells the global memory's keys and values from the references', learnt; nothing at first.
        self.global_marks = nn.Parameter(torch.zeros(model.blocks, 2, model.channels))

    def start(self, features: Features, masks: Tensor, objects: int | list[int], memory: MemoryConfig | None = None,
              slots: Tensor | None = None, detach_identity: bool = False) -> State:
        """As :meth:`Network.start`; the global memory begins with the reference frame."""
        state = super().start(features, masks, objects, memory, slots, detach_identity)
        shares = owner_shares(masks, self.align_corners, max(state.objects))
        with self._full_precision(shares):
            banks = [bank.start(entry, shares) for bank, entry in zip(self.global_banks, state.short[-1], strict=True)]
        ones = shares.new_ones(shares.shape[0])
        state.extra = GlobalState(banks, ones, ones)
        return state

    def attend(self, index: int, query: Any, state: State) -> Tensor:
        """As :meth:`Network.attend`, from the long-term memory and the global memory in one softmax."""
        (keys, values), (more_keys, more_values), bias = self._both(index, state)
        joined = torch.cat([keys, more_keys], 1), torch.cat([values, more_values], 1)
        return self.blocks[index].attend(query, (joined, bias))

    def segment(self, features: Features, state: State,
                attend: Callable[[int, Any], Tensor] | None = None) -> tuple[Tensor, list[Tokens]]:
        """As :meth:`Network.segment`; the tokens end with the logits, from which the write judges the frame."""
        logits, tokens = super().segment(features, state, attend)
        return logits, [*tokens, (logits.detach(),)]

    def remember(self, entries: list[Entry], tokens: list[Tokens], masks: Tensor, state: State,
                 evidence: Evidence | None = None) -> State:
        """As :meth:`Network.remember`; every ``memory.global_interval`` frames the global memory is written, too."""
        *tokens, (logits,) = tokens
        due = self._is_due(state)
        state = super().remember(entries, tokens, masks, state, evidence)
        if due:
            shares = owner_shares(masks, self.align_corners, max(state.objects))
            self._write(state, shares, token_certainty(logits, shares, self.align_corners, state.config.min_presence))
        return state

    def add_objects(self, features: Features, masks: Tensor, state: State, objects: int | list[int]) -> State:
        """As :meth:`Network.add_objects`; the frame is written to the global memory with full confidence."""
        state = super().add_objects(features, masks, state, objects)
        shares = owner_shares(masks, self.align_corners, max(state.objects))
        self._write(state, shares, torch.ones_like(shares[:, 0]))
        return state

    def writes_next(self, state: State) -> bool:
        """As :meth:`Network.writes_next`."""
        return super().writes_next(state) or self._is_due(state)

    def describe_write(self, state: State) -> dict[str, Tensor]:
        """At a frame that was written: openness of the gate, and certainty inside the objects (0..1)."""
        memory: GlobalState = state.extra
        if memory.last_write != state.frame:
            return {}
        return {"openness": memory.openness.mean(), "confidence": memory.confidence.mean()}

    def describe_read(self, tokens: list[Tokens], state: State) -> dict[str, Tensor]:
        """Share of the first block's long-term attention that the global memory receives (0..1)."""
        query = tokens[0][0]
        (keys, _), (more, _), bias = self._both(0, state)
        # Read as values, zeros and ones sum the weights of the global memory.
        of_global = torch.cat([torch.zeros_like(keys), torch.ones_like(more)], 1)
        share = attend(query, torch.cat([keys, more], 1).to(query.dtype), of_global.to(query.dtype), self.heads, bias)
        return {"share": share.mean()}

    @staticmethod
    def _is_due(state: State) -> bool:
        """Whether the next frame is written to the global memory."""
        return state.frame + 1 - state.extra.last_write >= state.config.global_interval

    def _both(self, index: int, state: State) -> tuple[Entry, Entry, Tensor]:
        """Keys and values of the long-term memory and of the global memory, (B, ., C), and what is added to the scores
        of both, one after the other, (B, 1, 1, .)."""
        (keys, values), filled = state.long.read(index, state.policy.may_decline)
        more_keys, more_values, bias = self.global_banks[index].read(state.extra.banks[index])
        marks = self.global_marks[index]
        bias = F.pad(bias, (keys.shape[1], 0))
        if filled is not None:
            bias[:, : keys.shape[1]].masked_fill_(~filled, -math.inf)
        more = tuple((part + mark).to(keys.dtype) for part, mark in zip((more_keys, more_values), marks, strict=True))
        return (keys, values), more, bias[:, None, None].to(keys.dtype)

    def _write(self, state: State, shares: Tensor, certainty: Tensor) -> None:
        memory: GlobalState = state.extra
        with self._full_precision(shares):
            written = [bank.write(old, entry, shares, certainty) for bank, old, entry
                       in zip(self.global_banks, memory.banks, state.short[-1], strict=True)]
        openness = torch.stack([gate.detach() for _, gate in written]).mean(0)
        objects = shares[:, 1:ELSEWHERE].sum(1)  # (B, L)
        confidence = (objects * certainty).sum(1) / objects.sum(1).clamp_min(1e-6)
        state.extra = GlobalState([bank for bank, _ in written], openness, confidence, state.frame)

    @staticmethod
    def _full_precision(like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, enabled=False)
