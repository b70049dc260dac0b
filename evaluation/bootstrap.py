"""Confidence intervals and paired tests by drawing videos anew (bootstrap over videos, seen and unseen apart)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 10_000
FEW = 10  # videos, below which such an interval is too narrow to lean on


def draws(objects: Sequence[Mapping[str, Any]], columns: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    """The headline numbers, clean, of ``DRAWS`` sets of videos drawn with replacement.

    Args:
        objects: ``objects`` of a ``scores.json``. Objects without a score are left out. With a protocol that knows
            unseen videos, both groups keep their number of videos and weigh the same; an empty group is left out.
        columns: the protocol's, from ``columns_of``.
        seed: the same seed and the same videos draw the same sets, which pairs two results.

    Returns: column -> (DRAWS,) float64; empty where its group has no object with a score, or a single video, which
    tells nothing of how videos differ.
    """
    scored = [item for item in map(_clean, objects) if not _is_nan(item["J-Mean"])]
    groups: dict[bool, dict[str, list[Mapping[str, Any]]]] = {}
    for item in scored:
        groups.setdefault(bool(item.get("unseen")), {}).setdefault(item["video"], []).append(item)
    keys = sorted({column.replace("-seen", "").replace("-unseen", "") for column in columns} - {"J&F"})
    random = np.random.default_rng(seed)
    means: dict[str, dict[bool, np.ndarray]] = {key: {} for key in keys}
    for unseen in sorted(groups):
        videos = list(groups[unseen].values())
        times = random.multinomial(len(videos), [1 / len(videos)] * len(videos), DRAWS)  # (DRAWS, videos)
        counts = times @ np.array([len(video) for video in videos])  # (DRAWS,) objects
        for key, found in means.items():
            found[unseen] = times @ np.array([sum(item[key] for item in video) for video in videos]) / counts
    several = {unseen for unseen, videos in groups.items() if len(videos) > 1}
    nothing = np.empty(0)
    result = {}
    for key, found in means.items():
        metric, statistic = key.split("-")
        result[key] = np.mean(list(found.values()), axis=0) if several else nothing
        result[f"{metric}-seen-{statistic}"] = found[False] if False in several else nothing
        result[f"{metric}-unseen-{statistic}"] = found[True] if True in several else nothing
    result["J&F"] = (result["J-Mean"] + result["F-Mean"]) / 2
    return {column: result[column] for column in columns}


def intervals(objects: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """95 % intervals of the headline numbers: column -> {low, high}; ``videos`` and ``draws`` say from what."""
    found: dict[str, Any] = {"videos": len({item["video"] for item in objects}), "draws": DRAWS}
    for column, values in draws(objects, columns).items():
        low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (math.nan, math.nan)
        found[column] = {"low": float(low), "high": float(high)}
    return found


def paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], columns: Sequence[str]
           ) -> dict[str, dict[str, float]]:
    """Other less one, on the same objects: column -> {low, high, p}, 95 % interval and two-sided p-value.

    Both lists hold the same (video, object) pairs in the same order; objects that lack a score in either are left out.
    """
    names = [[(item["video"], item["object"]) for item in items] for items in (one, other)]
    if names[0] != names[1]:
        raise ValueError("a paired comparison needs the same objects on both sides")
    kept = [(a, b) for a, b in zip(one, other, strict=True)
            if not _is_nan(_clean(a)["J-Mean"]) and not _is_nan(_clean(b)["J-Mean"])]
    before, after = (draws([pair[side] for pair in kept], columns) for side in (0, 1))
    result = {}
    for column in columns:
        difference = after[column] - before[column]
        if not len(difference):
            result[column] = {"low": math.nan, "high": math.nan, "p": math.nan}
            continue
        low, high = np.quantile(difference, (0.025, 0.975))
        tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        result[column] = {"low": float(low), "high": float(high), "p": min(1.0, 2 * (tail + 1) / (DRAWS + 1))}
    return result


def _clean(item: Mapping[str, Any]) -> dict[str, Any]:
    """One of ``objects`` with its clean numbers where they differ from the official ones."""
    return {**item, **item.get("clean", {})}


def _is_nan(value: float | None) -> bool:
    return value is None or math.isnan(value)
