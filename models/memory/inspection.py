"""Inspection: what happened to the memory at a frame, as a record that can be written as one line of JSON.

Tensors are only copied while the video runs; values are looked at when :meth:`Note.record` is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.blocks import Tokens
from models.memory.policies import Candidate, Evidence
from models.memory.state import State

if TYPE_CHECKING:
    from models.network import Network


@dataclass
class Note:
    """One group's memory at one frame.

    Attributes:
        start: number of the video's frame with which the group began (its states count from there).
        before, after: (slots,) frame numbers that were stored, -1 at empty slots; references: of ``after``, bool.
        mass: (slots,) attention that each slot of ``before`` received, or None where it was not looked at.
        evidence: what the network believed, or None at frames whose objects the user gave.
        extra: what a family adds of its reads and writes (DDMemory's global memory), 0-d tensors.
    """

    start: int
    before: Tensor
    after: Tensor
    references: Tensor
    offered: bool
    mass: Tensor | None
    evidence: Evidence | None
    extra: dict[str, Tensor]
    num_bytes: int

    def record(self, ids: list[int]) -> dict[str, Any]:
        """The note as plain values. ids: the user's ids of the group's objects; frames count from the video's first."""
        before, after = (frames[frames >= 0].tolist() for frames in (self.before, self.after))
        record: dict[str, Any] = {
            "stored": sorted(self.start + frame for frame in after),
            "references": sorted((self.start + self.after[self.references]).tolist()),
            "offered": self.offered,
            "written": sorted(self.start + frame for frame in set(after) - set(before)),
            "dropped": sorted(self.start + frame for frame in set(before) - set(after)),
            "bytes": self.num_bytes}
        if self.mass is not None:
            record["mass"] = {self.start + frame: round(share, 4) for frame, share
                              in zip(self.before.tolist(), self.mass.tolist(), strict=True) if frame >= 0}
        if self.evidence is not None:
            scores = zip(ids, self.evidence.presence.tolist(), self.evidence.confidence.tolist(), strict=False)
            record["objects"] = {number: {"presence": round(presence, 6), "confidence": round(confidence, 4)}
                                 for number, presence, confidence in scores}
            record["entropy"] = round(self.evidence.entropy.item(), 4)
            record["rival"] = round(self.evidence.rival.item(), 4)
        if self.extra:
            record["global"] = {name: round(value.item(), 5) for name, value in self.extra.items()}
        return record


class Watch:
    """Watches one change of a state: made before it, asked for a :class:`Note` after it."""

    def __init__(self, network: Network, state: State | None, video_frame: int):
        """state: None where the group begins with this frame; video_frame: number of the frame, 0 the video's first."""
        self.network, self.video_frame = network, video_frame
        self.before = stored_frames(state) if state is not None else None
        self.last_offer = state.last_offer if state is not None else -1
        self.mass: Tensor | None = None
        self.read: dict[str, Tensor] = {}

    def look(self, tokens: list[Tokens], state: State) -> None:
        """See what the frame of ``tokens`` reads, where it is about to be written; call before memorise()."""
        if self.network.writes_next(state):
            candidate = Candidate(state.frame + 1, tokens[0][0], self.network.heads)
            self.mass = state.policy.attention_received(state.long, candidate)
            self.read = self.network.describe_read(tokens, state)

    def note(self, state: State, evidence: Evidence | None = None) -> Note:
        """What changed. evidence: None where the frame is a reference."""
        after = stored_frames(state)
        before = self.before if self.before is not None else after[:0]
        return Note(self.video_frame - state.frame, before, after, state.long.reference & (after >= 0),
                    state.last_offer != self.last_offer, self.mass, evidence,
                    {**self.read, **self.network.describe_write(state)}, state.num_bytes())


def stored_frames(state: State) -> Tensor:
    """(slots,) number of the frame in each slot of the long-term bank, -1 where it is empty."""
    return torch.where(state.long.filled, state.long.frame, -1)
