"""Confidence intervals and paired tests by drawing videos anew (bootstrap over videos, seen and unseen apart)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 10_000
METRICS = ("J&F", "J-Mean", "F-Mean")


def draws(objects: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, np.ndarray]:
    """The headline numbers, clean, of ``DRAWS`` sets of videos drawn with replacement.

    Args:
        objects: ``objects`` of a ``scores.json``. Objects without a score are left out. With a protocol that knows
            unseen videos, both groups keep their number of videos and weigh the same; an empty group is left out.
        seed: the same seed and the same videos draw the same sets, which pairs two results.

    Returns: metric -> (DRAWS,) float64; empty where no object has a score.
    """
    scored = [item for item in map(_clean, objects) if not _is_nan(item["J-Mean"])]
    groups: dict[bool, dict[str, list[Mapping[str, Any]]]] = {}
    for item in scored:
        groups.setdefault(bool(item.get("unseen")), {}).setdefault(item["video"], []).append(item)
    random = np.random.default_rng(seed)
    means: dict[str, list[np.ndarray]] = {"J-Mean": [], "F-Mean": []}
    for unseen in sorted(groups):
        videos = list(groups[unseen].values())
        times = random.multinomial(len(videos), [1 / len(videos)] * len(videos), DRAWS)  # (DRAWS, videos)
        counts = times @ np.array([len(video) for video in videos])  # (DRAWS,) objects
        for metric, found in means.items():
            found.append(times @ np.array([sum(item[metric] for item in video) for video in videos]) / counts)
    if not groups:
        return {metric: np.empty(0) for metric in METRICS}
    j, f = (np.mean(means[metric], axis=0) for metric in ("J-Mean", "F-Mean"))
    return {"J&F": (j + f) / 2, "J-Mean": j, "F-Mean": f}


def intervals(objects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """95 % intervals of the headline numbers: metric -> {low, high}; ``videos`` and ``draws`` say from what."""
    found: dict[str, Any] = {"videos": len({item["video"] for item in objects}), "draws": DRAWS}
    for metric, values in draws(objects).items():
        low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (math.nan, math.nan)
        found[metric] = {"low": float(low), "high": float(high)}
    return found


def paired(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Other less one, on the same objects: metric -> {low, high, p}, 95 % interval and two-sided p-value.

    Both lists hold the same (video, object) pairs in the same order; objects that lack a score in either are left out.
    """
    names = [[(item["video"], item["object"]) for item in items] for items in (one, other)]
    if names[0] != names[1]:
        raise ValueError("a paired comparison needs the same objects on both sides")
    kept = [(a, b) for a, b in zip(one, other, strict=True)
            if not _is_nan(_clean(a)["J-Mean"]) and not _is_nan(_clean(b)["J-Mean"])]
    before, after = (draws([pair[side] for pair in kept]) for side in (0, 1))
    result = {}
    for metric in METRICS:
        difference = after[metric] - before[metric]
        if not len(difference):
            result[metric] = {"low": math.nan, "high": math.nan, "p": math.nan}
            continue
        low, high = np.quantile(difference, (0.025, 0.975))
        tail = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
        result[metric] = {"low": float(low), "high": float(high), "p": min(1.0, 2 * (tail + 1) / (DRAWS + 1))}
    return result


def _clean(item: Mapping[str, Any]) -> dict[str, Any]:
    """One of ``objects`` with its clean numbers where they differ from the official ones."""
    return {**item, **item.get("clean", {})}


def _is_nan(value: float | None) -> bool:
    return value is None or math.isnan(value)
