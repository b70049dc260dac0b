"""What a reader of the scores should know: findings about predictions, ground truth and meta; nothing is silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.protocols import Plan, ScoredVideo
from evaluation.scoring import AllScores, VideoScores

# Kinds that say how the data set is, not that something is wrong: ``strict`` lets them pass.
NOTES = ("no_unseen_video", "no_seen_video", "not_on_list", "decay_wraps", "void", "range_ends_early",
         "unseen_unknown")
VOID = 255


@dataclass(frozen=True)
class Finding:
    """One finding. ``frames``: in how many scored frames it was met, 0 where it is about no frame."""

    kind: str
    video: str
    object: str
    frames: int
    message: str

    @property
    def is_note(self) -> bool:
        """Whether it merely informs."""
        return self.kind in NOTES

    def line(self) -> str:
        """The finding as one line of text."""
        place = self.video + (f", object {self.object}" if self.object else "")
        return f"{place}: {self.message}" if place else self.message

    def as_json(self) -> dict[str, Any]:
        """The finding as a table for ``scores.json``."""
        return {**asdict(self), "note": self.is_note}


def audit(plan: Plan, scores: AllScores) -> list[Finding]:
    """All findings, those about the whole set first, then by video in the official order."""
    findings = [Finding(remark.kind, remark.video, remark.object, 0, remark.message) for remark in plan.remarks]
    for video, found in zip(plan.videos, scores.videos, strict=True):
        findings += _foreign_values(plan, video, found) + _never_seen(plan, video, found)
    if plan.protocol != "davis2017":
        groups = {video.unseen for video in plan.videos if video.objects}
        for unseen, name in ((True, "unseen"), (False, "seen")):
            if unseen not in groups:
                findings.append(Finding(f"no_{name}_video", "", "", 0, f"no {name} video: the official means of both "
                                        "groups together are NaN; the clean ones are those of the other group"))
    order = {"": -1} | {video.name: position for position, video in enumerate(plan.videos)}
    return sorted(findings, key=lambda finding: order.get(finding.video, len(order)))


def _foreign_values(plan: Plan, video: ScoredVideo, found: VideoScores) -> list[Finding]:
    """Values in the files that belong to no object."""
    findings = []

    def add(kind: str, frames: int, message: str) -> None:
        findings.append(Finding(kind, video.name, "", frames, message))

    truth, prediction = found.foreign_truth.copy(), found.foreign_prediction.copy()
    where = "the objects of the first mask" if plan.protocol == "davis2017" else "the meta"
    if voids := truth.pop(VOID, 0):
        add("void", voids, f"void (255) in {voids} frames of the ground truth counts as background")
    if truth:
        add("unknown_label_in_truth", max(truth.values()),
            f"the ground truth has values outside {where}: {_values(truth)}; they count as background")
    if plan.task == "unsupervised_multiple":
        where = "the 20 proposals"
    elif found.only_255 and not any(scored.id == VOID for scored in video.objects):
        add("binary_map", found.only_255, f"{found.only_255} predictions hold 0 and 255 instead of object ids: every "
                                          "object counts as not predicted there")
        del prediction[VOID]
    if prediction:
        add("unknown_label_in_prediction", max(prediction.values()),
            f"the predictions have values outside {where}: {_values(prediction)}; they are ignored")
    return findings


def _values(counts: Counter[int]) -> str:
    shown = [f"{value} ({count} frame{'s' if count > 1 else ''})" for value, count in sorted(counts.items())]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _never_seen(plan: Plan, video: ScoredVideo, found: VideoScores) -> list[Finding]:
    """Objects that the scored frames never show, in the ground truth or in the predictions."""
    findings = []
    for scored, track in zip(video.objects, found.tracks, strict=True):
        frames = len(scored.stems)
        where = f"value {scored.id} is in none of its {frames} scored"
        if frames and not track.area_true.any():
            findings.append(Finding("never_in_truth", video.name, scored.key, frames,
                                    f"{where} frames of the ground truth: predicting nothing scores 1 there"))
        elif frames and plan.task == "semi-supervised" and not track.area_predicted.any():
            findings.append(Finding("never_predicted", video.name, scored.key, frames,
                                    f"{where} predictions: they count as empty masks"))
    return findings


def strict_problems(findings: Sequence[Finding]) -> list[str]:
    """Lines for those findings that ``strict`` refuses."""
    return [f"--strict: {finding.kind}: {finding.line()}" for finding in findings if not finding.is_note]
