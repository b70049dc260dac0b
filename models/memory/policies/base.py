"""What a memory policy is: a rule that says which slot of the long-term bank a frame takes.

A policy sees tensors and must not look at their values on the host (no ``.item()``, no ``if tensor``): it returns a
0-d int64 tensor, the slot to overwrite, so that nothing waits for the device. A new rule is one small class:

    @register_policy("newest")
    class Newest(Policy):
        def choose(self, bank, candidate):
            oldest = self.pick(bank, -bank.frame.float())      # highest score leaves
            return oldest
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError, nearest
from configs.schema import MemoryConfig
from models.attention import attention_mass
from models.memory.bank import Bank

POLICIES: dict[str, type[Policy]] = {}


@dataclass(frozen=True)
class Evidence:
    """What the network believed about a frame, for policies that ask (all float32, on the device).

    Attributes:
        presence: (n,) share of the frame that each object covers, 0..1.
        confidence: (n,) mean margin between the two best probabilities inside each predicted object, 0..1; 0 if absent.
        entropy: () mean entropy over the pixels predicted as objects, in nats; 0 if there are none.
        rival: () soft foreground outside the predicted objects, relative to their area: a sign of a look-alike.
        foreground: (L,) soft foreground at the grid of the tokens, 0..1.
    """

    presence: Tensor
    confidence: Tensor
    entropy: Tensor
    rival: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class Candidate:
    """A frame that is offered to the bank.

    Attributes:
        frame: its number (Python int), 0 being the first reference frame.
        key: (1, L, C) keys of the first block (which are the frame's queries too).
        heads: attention heads of the network.
        reference: it is a reference frame of late objects (only for policies that do not protect them).
        evidence: None where the policy does not ask for it or in reference frames.
    """

    frame: int
    key: Tensor
    heads: int
    reference: bool = False
    evidence: Evidence | None = None


class Policy:
    """A rule of the long-term memory. Subclasses override :meth:`choose` and, where needed, the constants."""

    bounded = True  # False: the bank grows for ever
    protects_references = True  # references never leave and have slots of their own
    may_decline = False  # choose() may return the spare slot, so the read masks empty slots
    needs_evidence = False  # choose() reads candidate.evidence

    def __init__(self, config: MemoryConfig):
        self.config = config

    def slots(self) -> int:
        """Frames that the bank holds besides the first reference."""
        return self.config.capacity

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        """Return the slot to overwrite, 0-d int64; ``bank.capacity`` declines."""
        raise TypeError(f"{type(self).__name__} defines no choose()")

    @staticmethod
    def evidence(candidate: Candidate) -> Evidence:
        """What the network believed about the frame. Raises UserError where the caller gave nothing."""
        if candidate.reference and candidate.evidence is None:
            raise UserError("memory.policy: a reference frame has no scores to judge, its masks are given; a rule that "
                            "does not protect references must place those (candidate.reference) without scores")
        if candidate.evidence is None:
            raise UserError("memory.policy: this rule judges frames by their scores; give its class "
                            "`needs_evidence = True` (who calls memorise() himself passes `evidence`)")
        return candidate.evidence

    @staticmethod
    def attention_received(bank: Bank, candidate: Candidate, weight: Tensor | None = None) -> Tensor:
        """Share of the first block's attention that each slot receives from the candidate.

        Args:
            weight: (L,) weight of each token of the candidate, >= 0; None: all alike.
        Returns:
            (slots,) float32, sums to 1; 0 where nothing is stored.
        """
        frames = min(bank.offered, bank.capacity)
        keys = bank.tensors[0][0][:, :frames].flatten(1, 2)  # (1, frames * L, C)
        weight = torch.ones_like(candidate.key[0, :, 0]) if weight is None else weight + 1e-6  # never 0 everywhere
        weight = (weight / weight.sum()).to(candidate.key.dtype)
        mass = attention_mass(candidate.key, keys.to(candidate.key.dtype), candidate.heads, bank.filled[:frames],
                              weight).float()
        return F.pad(mass, (0, len(bank.filled) - frames))

    @staticmethod
    def pick(bank: Bank, score: Tensor) -> Tensor:
        """The first empty slot or, where none is, the slot of highest score that is not a reference; the spare one
        where all are references.

        Args:
            score: (slots,) float; the spare slot is left out.
        """
        usable = torch.arange(len(bank.filled), device=score.device) < bank.capacity
        score = torch.where(usable & ~bank.reference, score, -math.inf)
        empty = usable & ~bank.filled
        highest = torch.where(score.isneginf().all(), bank.capacity, score.argmax())
        return torch.where(empty.any(), empty.to(torch.uint8).argmax(), highest)

    @staticmethod
    def unless(decline: Tensor, slot: Tensor, bank: Bank) -> Tensor:
        """``slot``, or the spare one where ``decline`` (0-d bool) holds."""
        return torch.where(decline, torch.full_like(slot, bank.capacity), slot)


def register_policy(name: str):
    """Class decorator: makes a policy available as ``memory.policy=name``."""
    def register(policy: type[Policy]) -> type[Policy]:
        taken = POLICIES.get(name, policy)
        if (taken.__module__, taken.__qualname__) != (policy.__module__, policy.__qualname__):
            raise ValueError(f"{policy.__module__}.{policy.__qualname__} wants the name '{name}', which "
                             f"{taken.__module__}.{taken.__qualname__} has; give it another")
        POLICIES[name] = policy
        return policy

    return register


def build_policy(config: MemoryConfig) -> Policy:
    """The policy that ``config.policy`` names. Raises UserError with the nearest name."""
    if config.policy not in POLICIES:
        raise UserError(f"memory.policy: no policy '{config.policy}'; {nearest(config.policy, POLICIES)}")
    return POLICIES[config.policy](config)
