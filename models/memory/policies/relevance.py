"""Rules that look at attention: how much of it a stored frame receives from the frames that come after it.

Attention mass is computed apart, when a frame is offered, from the keys of the first block (which are the queries,
too). Both rules always write the newcomer, so that the slots within reach are all filled.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.memory.bank import Bank
from models.memory.policies.base import Candidate, Policy, register_policy


@register_policy("rmem")
class RMem(Policy):
    """Relevance and freshness (RMem, arXiv 2406.08476, section 4.2; RMem:aot_plus/networks/layers/transformer.py).

    Once the bank is full: relevance r = attention mass on the predicted foreground, smoothed 0.8 new + 0.2 old;
    the frame of least ``r_i + 1.5 sqrt(log(sum n) / (n_i + 8))`` leaves, n_i being the updates that i has been through
    (for references: the number of stored frames). The official gap between offers follows from the video's length; a
    stream has none, so here ``memory.gap`` is fixed.
    """

    needs_evidence = True

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        relevance, updates = bank.record("relevance", math.nan), bank.record("updates")
        if bank.offered < bank.capacity:
            return torch.full_like(bank.frame[0], bank.offered)
        new = self.relevance(bank, candidate)
        relevance.copy_(torch.where(relevance.isnan(), new, 0.8 * new + 0.2 * relevance))
        updates.add_(1)
        times = torch.where(bank.reference, float(bank.capacity), updates)[:-1]
        freshness = 1.5 * (times.sum().log() / (times + 8)).sqrt()
        slot = self.pick(bank, -F.pad(relevance[:-1] + freshness, (0, 1)))
        relevance.index_fill_(0, slot.view(1), math.nan)
        updates.index_fill_(0, slot.view(1), 1)
        return slot

    def relevance(self, bank: Bank, candidate: Candidate) -> Tensor:
        """(slots,) share of the foreground's attention that each stored frame receives."""
        return self.attention_received(bank, candidate, self.evidence(candidate).foreground)


@register_policy("most_used")
class MostUsed(Policy):
    """The least used frame leaves: usage = attention received so far / age (XMem, arXiv 2207.07115, section 3.3).

    XMem counts every read and every token; here a read is counted when a frame is offered, and a frame leaves whole.
    """

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        slot = self.pick(bank, -self.usage(bank, candidate))
        for name in ("received", "age"):
            bank.record(name).index_fill_(0, slot.view(1), 0)
        return slot

    def usage(self, bank: Bank, candidate: Candidate) -> Tensor:
        """(slots,) attention received up to this offer, per offer."""
        received = bank.record("received").add_(self.attention_received(bank, candidate))
        return received / bank.record("age").add_(1)
