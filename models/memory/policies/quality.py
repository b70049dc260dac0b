"""Rules that look at the network's own scores: what is absent, uncertain or poor is not remembered."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.memory.bank import Bank
from models.memory.policies.base import Candidate, Evidence, Policy, register_policy


@register_policy("quality")
class Quality(Policy):
    """Write good frames only; the worst or longest stored leaves (QDMN, arXiv 2207.07922, section 3.3).

    A frame is written if its quality exceeds 0.75 of the best seen (QDMN's rule for YouTube-VOS). In a full bank the
    frame of least ``quality + exp(-age)`` leaves, age counted in writes, without QDMN's slip by one position. QDMN
    predicts quality with a learned head; here it is confidence times certainty (:func:`frame_quality`).
    """

    may_decline = True
    needs_evidence = True
    accept = 0.75

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        quality, order, best = bank.record("quality"), bank.record("order"), bank.record("best")
        new = self.quality(self.evidence(candidate))
        poor = new <= self.accept * best[-1]  # 0 at first: a frame without any object is always poor
        best.copy_(torch.maximum(best, new))  # of all frames so far, whatever slot
        now = order.amax() + 1
        slot = self.unless(poor, self.pick(bank, -(quality + (order - now).exp())), bank)
        quality.index_fill_(0, slot.view(1), 0).index_add_(0, slot.view(1), new.view(1))
        order.index_copy_(0, slot.view(1), torch.where(poor, 0, now).view(1))
        return slot

    def quality(self, evidence: Evidence) -> Tensor:
        """() quality of the frame, 0..1."""
        return frame_quality(evidence)


@register_policy("absence_aware")
class AbsenceAware(Policy):
    """No write while the target is absent or uncertain; frames with a look-alike are kept longest.

    After DAM4SAM (arXiv 2411.17576), with the network's scores where DAM4SAM has SAM 2's heads. A frame is written if
    an object covers ``memory.min_presence`` of it and every such object is segmented with a mean margin of at least
    ``memory.min_confidence``. It becomes an anchor if there is a rival: soft foreground outside the predicted
    objects, more than a tenth of their area. From a full bank the oldest anchor leaves where anchors hold more than
    half of the capacity, or half of it and the newcomer is one; else the oldest other frame.
    """

    may_decline = True
    needs_evidence = True
    rivalry = 0.1

    def choose(self, bank: Bank, candidate: Candidate) -> Tensor:
        anchor = bank.record("anchor")
        evidence = self.evidence(candidate)
        is_anchor = (evidence.rival > self.rivalry).float()
        anchors = (anchor * bank.filled).sum() + is_anchor
        anchor_leaves = (anchors > self.config.capacity // 2).float()
        oldest_first = -bank.frame.double() - 1e12 * (anchor != anchor_leaves)
        slot = self.unless(~self.trusted(evidence), self.pick(bank, oldest_first), bank)
        anchor.index_fill_(0, slot.view(1), 0).index_add_(0, slot.view(1), is_anchor.view(1))
        return slot

    def trusted(self, evidence: Evidence) -> Tensor:
        """() bool: something is there, and all that is there is certain."""
        present = evidence.presence >= self.config.min_presence
        certain = evidence.confidence >= self.config.min_confidence
        return present.any() & (certain | ~present).all()


def frame_quality(evidence: Evidence) -> Tensor:
    """Mean confidence of the objects that are present, times what is left of certainty: () in 0..1; 0 without any.

    Certainty is 1 - entropy / log(1 + n), the entropy being that of the pixels predicted as objects.
    """
    present = (evidence.presence > 0).float()
    confidence = (evidence.confidence * present).sum() / present.sum().clamp_min(1)
    return confidence * (1 - evidence.entropy / math.log(1 + len(present))).clamp(0, 1)
