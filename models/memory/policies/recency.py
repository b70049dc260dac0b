"""Rules that look at the clock alone: no frame, the newest frames, or frames spread evenly over the whole past."""

from __future__ import annotations

import torch
from torch import Tensor

from models.memory.bank import Bank
from models.memory.policies.base import Candidate, Policy, register_policy


@register_policy("references")
class References(Policy):
    """Only the frames in which the user gave objects: the first, and those of late objects."""

    def slots(self) -> int:
        return 0

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        return torch.full_like(bank.frame[0], bank.capacity)  # declines always, so that no slot is ever empty


@register_policy("fifo")
class FIFO(Policy):
    """The oldest frame leaves; references stay (Cutie without long-term memory, arXiv 2310.12982).

    Capacity 4, gap 5: {0 | 5, 10, 15, 20} -> {0 | 10, 15, 20, 25}.
    """

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        return self.pick(bank, -bank.frame.float())


@register_policy("uniform")
class Uniform(Policy):
    """Frames spread evenly from the first to now, without knowing how long the video will be.

    The frame leaves whose neighbours in time, the newcomer among them, are closest to each other. No hole between
    stored frames then exceeds twice the even spacing (ours; tests/test_policies.py measures it over 1,500 offers).
    """

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        frame = bank.frame
        earlier = (frame < frame.unsqueeze(1)) & bank.filled  # (slots, slots): [i, j] holds where j is before i
        later = (frame > frame.unsqueeze(1)) & bank.filled
        before = torch.where(earlier, frame, 0).amax(1)
        after = torch.where(later, frame, candidate.frame).amin(1)
        return self.pick(bank, (before - after).double() - 1e-9 * frame)  # among equals the oldest
