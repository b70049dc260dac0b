"""A rule that looks at content: frames that differ most from each other stay."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.memory.bank import Bank
from models.memory.policies.base import Candidate, Policy, register_policy

DRIFT = 0.5  # least similarity to a reference (READMem's lower bound)


@register_policy("diversity")
class Diversity(Policy):
    """The swap that makes the Gram determinant of the stored frames largest (READMem, arXiv 2305.12823, section 3.2).

    Its absolute value, as READMem's: similarities to the nearest token are no inner products, and it may be negative.

    The similarity of two frames is the mean cosine between each token of the stored one (keys of the first block) and
    its nearest token of the newcomer, so that motion alone is no difference. A newcomer no more similar to any
    reference than 0.5 has drifted and is declined, as is one with which every swap lowers the determinant. A late
    reference counts as unlike what was stored before it.
    """

    may_decline = True

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        gram = bank.record("gram", pairwise=True)  # (slots, slots)
        similarity = self.similarities(bank, candidate)
        gain = swap_gain(gram, similarity, bank.filled)
        slot = self.pick(bank, gain)
        worse = bank.filled[:-1].all() & (gain.index_select(0, slot.view(1)) < 0).squeeze(0)
        drifted = torch.where(bank.reference, similarity, -math.inf).amax() <= DRIFT
        slot = self.unless(drifted | worse, slot, bank)
        similarity = similarity.index_fill(0, slot.view(1), 1.0)
        gram.index_copy_(0, slot.view(1), similarity.unsqueeze(0))
        gram.index_copy_(1, slot.view(1), similarity.unsqueeze(1))
        return slot

    def similarities(self, bank: Bank, candidate: Candidate) -> Tensor:
        """(slots,) cosine of the candidate and each stored frame, -1..1; 0 where nothing is stored."""
        stored = F.normalize(bank.tensors[0][0][0].float(), dim=-1)  # (slots, L, C)
        new = F.normalize(candidate.key[0].float(), dim=-1)  # (L, C)
        with torch.autocast(new.device.type, enabled=False):  # the record is float32
            # One frame at a time: the affinity of all at once would be the largest tensor of a step.
            return torch.stack([(frame @ new.T).amax(-1).mean() for frame in stored])


def swap_gain(gram: Tensor, similarity: Tensor, stored: Tensor) -> Tensor:
    """How much the determinant's logarithm grows when the newcomer takes each slot.

    Args:
        gram: (slots, slots) similarities of the stored frames; similarity: (slots,) of the newcomer to them.
        stored: (slots,) bool; the other rows and columns count as those of the identity.
    Returns:
        (slots,) float32
    """
    slots = len(stored)
    unit = torch.eye(slots, dtype=torch.float64, device=gram.device)
    others = stored & stored.unsqueeze(1) & ~unit.bool()
    now = torch.where(others, gram.double(), unit)
    newcomer = torch.where(stored, similarity.double(), 0).expand(slots, slots)
    swapped = unit.bool()  # [i, j]: in swap i, j is the slot that is taken
    row = torch.where(swapped, 1.0, newcomer)  # (swaps, slots)
    trial = torch.where(swapped.unsqueeze(2), row.unsqueeze(1), now)  # (swaps, slots, slots)
    trial = torch.where(swapped.unsqueeze(1), row.unsqueeze(2), trial)
    tiny = torch.finfo(torch.float64).tiny
    after, before = torch.linalg.det(trial).abs().clamp_min(tiny), torch.linalg.det(now).abs().clamp_min(tiny)
    return (after.log() - before.log()).float()
