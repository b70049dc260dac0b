"""What happens to one object in time: drift, absences and returns, false alarms, misses, identity switches.

The definitions are this project's own (docs/evaluation.md gives them in words). All work on the scored frames of one
object in order of time, m of them: ``jf`` (m,) float64 is (J + F) / 2, ``visible`` (m,) bool is where the ground
truth shows the object. A frame is one annotated frame (LVOS: every fifth of the source, 1/6 s).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

ABSENCE = 3  # frames without the object that make an absence
LONG_ABSENCE = 20  # 100 frames of the source, LVOS's "long-term reappearance"
RETURN = 10  # frames after an absence that make the reappearance score
STEADY = 3  # frames in a row with J >= 0.5 that make a recovery
LENGTHS = ((3, 9), (10, 19), (20, 59), (60, None))  # classes of absences by length, in frames
TOLERATED = 0.0001  # share of the image that the tolerant false-alarm rate lets pass


@dataclass(frozen=True)
class Absence:
    """A run of at least ``ABSENCE`` frames in which an object that had appeared is not visible.

    ``score``: mean J&F during it. ``returned``: mean J&F of the first up to ten visible frames after it, None where
    the object does not return. ``delay``: frames from the return to the first of three in a row with J >= 0.5; None
    where that does not happen while the object stays visible, or it does not return.
    """

    start: int
    length: int
    score: float
    returned: float | None
    delay: int | None


def runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the maximal runs of True in a (m,) bool array, half open."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def absences(j: np.ndarray, jf: np.ndarray, visible: np.ndarray, appeared: bool) -> list[Absence]:
    """All absences of an object, in order. ``appeared``: it was visible before the first of these frames."""
    found = []
    for start, end in runs(~visible):
        if end - start < ABSENCE or not (appeared or start) or not visible.any():
            continue
        returned, delay = None, None
        if end < len(visible):
            stop = next((b for a, b in runs(visible) if a == end))
            returned = float(jf[end:min(stop, end + RETURN)].mean())
            good = j[end:stop] >= 0.5
            steady = [k for k in range(len(good) - STEADY + 1) if good[k:k + STEADY].all()]
            delay = steady[0] if steady else None
        found.append(Absence(start, end - start, float(jf[start:end].mean()), returned, delay))
    return found


def drift(jf: np.ndarray, visible: np.ndarray) -> dict[str, float | None]:
    """How the score of the visible frames falls with time.

    ``drop``: mean of the first tenth less that of the last one, each of at least five frames; ``slope``: least-squares
    slope in points (hundredths) per 100 frames. None for fewer than ten visible frames.
    """
    places = np.flatnonzero(visible)
    if len(places) < 10:
        return {"drop": None, "slope": None}
    part = max(5, math.ceil(len(places) / 10))
    values = jf[places]
    time = places - places.mean()
    slope = float((time * values).sum() / (time * time).sum())
    return {"drop": float(values[:part].mean() - values[-part:].mean()), "slope": slope * 1e4}


def false_alarms(area_predicted: np.ndarray, pixels: np.ndarray, visible: np.ndarray, appeared: bool
                 ) -> dict[str, float | int | None]:
    """Predictions where the object, once it has appeared, is not: rates over those frames, mean area as image share."""
    absent = ~visible if visible.any() else np.zeros_like(visible)  # never visible: it never appeared
    if not appeared and len(visible):
        absent[:int(np.argmax(visible))] = False
    share = area_predicted[absent] / pixels[absent]
    if not len(share):
        return {"absent_frames": 0, "rate": None, "tolerant_rate": None, "area": None}
    return {"absent_frames": len(share), "rate": float((share > 0).mean()),
            "tolerant_rate": float((share > TOLERATED).mean()), "area": float(share.mean())}


def misses(j: np.ndarray, area_predicted: np.ndarray, visible: np.ndarray) -> dict[str, float | None]:
    """Shares of the visible frames with no prediction (``miss``), and with one elsewhere, J < 0.1 (``off_target``)."""
    if not visible.any():
        return {"miss": None, "off_target": None}
    predicted = area_predicted[visible] > 0
    return {"miss": float((~predicted).mean()), "off_target": float((predicted & (j[visible] < 0.1)).mean())}


def switches(taken_for: np.ndarray, own: int) -> dict[str, int | float | None]:
    """Changes of identity: how often the prediction goes over from its own object to another one, and the share of
    frames that it spends on another one, None without a frame. ``taken_for`` (m,): the true object it covers with
    IoU >= 0.5, -1 for none."""
    covered = taken_for[taken_for >= 0]
    before = np.concatenate(([own], covered[:-1])) if len(covered) else covered
    count = int(((covered != own) & (before == own)).sum())
    elsewhere = (taken_for >= 0) & (taken_for != own)
    return {"switches": count, "share": float(elsewhere.mean()) if len(elsewhere) else None}


def by_length(found: list[list[Absence]], seconds: float) -> list[dict[str, Any]]:
    """Absences of all objects (one list an object) by class of length, with means over objects and the recovery delay.

    ``seconds``: duration of one frame. ``censored`` returns are those without a recovery.
    """
    table = []
    for low, high in ((ABSENCE, None), (LONG_ABSENCE, None), *LENGTHS):
        chosen = [[one for one in each if low <= one.length and (high is None or one.length <= high)] for each in found]
        chosen = [each for each in chosen if each]
        back = [[one.returned for one in each if one.returned is not None] for each in chosen]
        back = [each for each in back if each]
        events = [one for each in chosen for one in each if one.returned is not None]
        delays = sorted(one.delay for one in events if one.delay is not None)
        median = float(np.median(delays)) if delays else None
        table.append({
            "frames": f"{low} or more" if high is None else f"{low} to {high}",
            "absences": sum(map(len, chosen)), "objects": len(chosen),
            "D": _mean([float(np.mean([one.score for one in each])) for each in chosen]),
            "returns": len(events), "objects_returning": len(back),
            "R": _mean([float(np.mean(each)) for each in back]),
            "recovered": len(delays) / len(events) if events else None,
            "censored": len(events) - len(delays),
            "delay_frames": median, "delay_seconds": None if median is None else median * seconds,
        })
    return table


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
