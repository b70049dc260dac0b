"""``evaluate``: score folders of masks by a protocol; the one function behind the command, training and the demo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError, UserErrors
from common.files import file_hash
from common.progress import Progress
from datasets.records import VideoSet, open_videos
from evaluation.aggregate import Entry, entries_of, headline
from evaluation.analyses import analyse
from evaluation.audit import Finding, audit, strict_problems
from evaluation.protocols import Plan, make_plan
from evaluation.scoring import score_all

VERSION = "1.0"  # of the scoring; a change that could change a number changes it


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    ``scores``: the content of ``scores.json`` with NaN as float NaN; its binding keys are ``protocol``, ``task``,
    ``global`` (name -> number in 0..1, such as ``J&F``), ``objects`` and ``videos``; beside them ``clean``,
    ``audit``, ``analyses`` and ``provenance`` (docs/evaluation.md lists all).
    ``entries``: the scores of every frame, one entry an object, in the order of ``scores["objects"]``.
    ``findings``: the audit. ``plan``: what was scored.
    """

    scores: dict[str, Any]
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...]
    plan: Plan

    @property
    def jf(self) -> float:
        """The headline number: the protocol's official J&F, 0..1; NaN where the protocol says so."""
        return self.scores["global"]["J&F"]


def evaluate(
    data: str | Path,
    pred: str | Path,
    split: str = "val",
    *,
    protocol: str = "lvos",
    task: str = "semi-supervised",
    unseen: str | Path | None = None,
    format: str | None = None,
    videos: Sequence[str] | None = None,
    workers: int = 1,
    strict: bool = False,
    progress: bool = False,
) -> Evaluation:
    """Score predicted masks against a data set's annotations.

    Args:
        data: data root, in any layout of ``datasets.open_videos``; images are not needed; only read.
        pred: folder with ``<video>/<frame>.png``, or one that holds such a folder under the name ``masks``; only read.
        split: name of the split.
        protocol: ``lvos`` (V2's tool), ``v1-2022`` or ``davis2017``.
        task: ``semi-supervised``, ``unsupervised_multiple`` or ``unsupervised_single``.
        unseen: file with the names of the unseen videos, instead of the protocol's own list.
        format: the data set's layout, one of ``datasets.records.FORMATS``; None searches.
        videos: score these videos only; the numbers are then those of a part of the set.
        workers: processes; no number depends on it. More than 1 needs a main module that may be imported again.
        strict: audit findings are an error.
        progress: show the progress on standard error.

    Returns: an :class:`Evaluation`. Nothing is written; ``evaluation.outputs.write`` does that.

    Raises:
        UserErrors: every missing, corrupt, mis-sized or coloured file, and every range that contradicts itself, at
            once; then nothing was scored.
        UserError: names, folders or lists that do not exist.
    """
    found = open_videos(data, split, format=format, videos=videos, need_images=False)
    folder = prediction_folder(pred, found)
    plan = make_plan(found, folder, protocol, task, unseen)
    check_truth(found, plan)
    frames = sum(len(video.stems) for video in plan.videos)
    with Progress(frames, "scoring") if progress else nullcontext() as bar:
        scores = score_all(plan, workers, bar.advance if bar is not None else None)
    findings = audit(plan, scores)
    if strict and (problems := strict_problems(findings)):
        raise UserErrors(problems)
    entries = entries_of(plan, scores)
    content = headline(plan, entries)
    content["audit"] = [finding.as_json() for finding in findings]
    content["analyses"] = analyse(plan, scores, entries, content["objects"])
    content["provenance"] = {
        "tool": f"evaluation {VERSION}", "data": str(found.root), "split": found.split, "split_found": found.split_name,
        "predictions": str(folder), "notes": list(found.notes), "part_of_videos": list(videos) if videos else None,
        "lists": plan.list_hashes(), "meta": file_hash(found.meta) if found.meta else None,
        "files": {"ground_truth": scores.frames, "predictions": scores.frames},
        "ground_truth_sha256": scores.truth_hash, "predictions_sha256": scores.prediction_hash,
    }
    return Evaluation(content, tuple(entries), tuple(findings), plan)


def check_truth(found: VideoSet, plan: Plan) -> None:
    """UserError for a test split: every video has masks where its objects begin, and lacks others that are scored."""
    masks = {video.name: set(video.masks) for video in found.videos}
    if all(len(video.masks) <= max(1, len(video.objects)) for video in found.videos) \
            and all(set(video.stems) - masks[video.name] for video in plan.videos):
        raise UserError(f"{found.root}: split '{found.split}' has masks only where its objects begin, so a test server "
                        "must score it; python -m tools.make_submission packs your masks for that")


def prediction_folder(pred: str | Path, found: VideoSet) -> Path:
    """The folder that holds one folder of masks a video: ``pred`` itself, or its ``masks``."""
    pred = Path(pred)
    if not pred.is_dir():
        what = "a file" if pred.exists() else "missing"
        raise UserError(f"{pred}: the folder of predictions is {what}; --pred must name a folder <video>/<frame>.png")
    inside = pred / "masks"
    names = {video.name for video in found.videos}
    if inside.is_dir() and "masks" not in names and not any((pred / name).is_dir() for name in names):
        return inside
    if not any(os.scandir(pred)):
        raise UserError(f"{pred}: the folder of predictions is empty; --pred must name a folder <video>/<frame>.png")
    return pred
