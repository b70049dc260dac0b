"""The rules of the official code: unbounded memory, LVOS's six frames, and SAM-Track's plain limit."""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.bank import Bank
from models.memory.policies.base import Candidate, Policy, register_policy


@register_policy("unbounded")
class Unbounded(Policy):
    """Keep everything (aot-benchmark, networks/engines/aot_engine.py): one more frame every ``gap`` frames."""

    bounded = False

    def slots(self) -> int:
        return 0

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        bank.grow()
        return torch.full_like(bank.frame[0], bank.offered)


@register_policy("lvos6")
class LVOS6(Policy):
    """LVOS-api's "six frames" with its bug: when more than six are stored, the *second newest* leaves.

    The size settles at seven; late references are ordinary entries and leave soon (LVOS-api,
    eval_scripts/aot/networks/engines/aot_engine.py). Kept for numbers that compare with theirs.
    """

    protects_references = False

    def slots(self) -> int:
        return 6

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        if bank.offered < bank.capacity:
            return torch.full_like(bank.frame[0], bank.offered)
        return bank.frame[:-1].topk(2).indices[1]


@register_policy("fifo_official")
class FIFOOfficial(Policy):
    """SAM-Track's ``max_len_long_term``: the oldest frame leaves, *the reference included*. A negative control.

    Source: Segment-and-Track-Anything, aot/networks/engines. ``capacity`` counts all frames.
    """

    protects_references = False

    def slots(self) -> int:
        return self.config.capacity - 1

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        if bank.offered < bank.capacity:
            return torch.full_like(bank.frame[0], bank.offered)
        return bank.frame[:-1].argmin()
