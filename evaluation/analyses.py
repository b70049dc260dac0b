"""The analyses of an evaluation: what a paper on long videos shows beside J&F, as tables of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation import attributes, events
from evaluation.aggregate import Entry, columns_of, object_numbers
from evaluation.bootstrap import intervals
from evaluation.protocols import STEP, Plan, ScoredVideo
from evaluation.scoring import AllScores, Track

BINS = 20  # of relative time
MINUTES = 0.5  # width of a bin of absolute time
RATES = {"lvos": 30.0, "v1-2022": 30.0, "davis2017": 24.0}  # frames of the source a second; names count them
SIZES = (("small", 0.0, 0.01), ("medium", 0.01, 0.1), ("large", 0.1, math.inf))  # mean share of the image
TABLES = ("attributes", "relative_time", "absolute_time", "absences", "sizes", "video_kinds")  # lists of rows


@dataclass(frozen=True)
class Course:
    """One object in time: its m scored frames. ``clean``: its numbers; ``seconds`` (m,) since the video's start."""

    entry: Entry
    clean: dict[str, float]
    j: np.ndarray
    jf: np.ndarray
    visible: np.ndarray
    area_predicted: np.ndarray
    pixels: np.ndarray
    seconds: np.ndarray
    appeared: bool  # it was visible before the first scored frame

    @property
    def size(self) -> float:
        """Mean share of the image that the object takes while it is visible; NaN where it never is."""
        pixels = int(self.pixels[self.visible].sum())  # counted before dividing: a share at a border stays there
        return int(self.entry.track.area_true[self.visible].sum()) / pixels if pixels else math.nan


def analyse(plan: Plan, scores: AllScores, entries: Sequence[Entry], objects: Sequence[dict[str, Any]]
            ) -> dict[str, Any]:
    """All analyses, as the table ``analyses`` of ``scores.json``.

    Args:
        plan, scores, entries: what was scored, and the scores.
        objects: the list ``objects`` of the scores, for the confidence intervals.

    Scores in it are clean (frames that exist only) fractions 0..1; means are over objects; None: nothing to tell.
    """
    courses = [_course(plan, entry) for entry in entries]
    seconds = _frame_seconds(plan, courses)
    absent = [events.absences(course.j, course.jf, course.visible, course.appeared) for course in courses]
    each = [_of_object(plan, course) for course in courses]
    stated = {video.name: _attributes(video, found.tracks, _given(plan))
              for video, found in zip(plan.videos, scores.videos, strict=True)}
    return {
        "seconds_a_frame": seconds,
        "confidence_95": intervals(objects, columns_of(plan.protocol)),
        "attributes": _by_attribute(courses, stated),
        "video_attributes": {name: {"attributes": list(names), "source": source}
                             for name, (names, source) in stated.items()},
        "relative_time": _relative_time(courses),
        "absolute_time": _absolute_time(courses),
        "drift": _means(each, ("drop", "slope")) | {"slope_a_minute": _slope_a_minute(courses)},
        "absences": events.by_length(absent, seconds),
        "false_alarms": _means(each, ("rate", "tolerant_rate", "area")),
        "misses": _means(each, ("miss", "off_target")),
        "identity_switches": _switches(courses, each),
        "sizes": _by_size(courses),
        "video_kinds": [_row("kind", kind, [course for course in courses if several == _of_several(course)])
                        for kind, several in (("single object", False), ("several objects", True))],
        "objects": each,
    }


def _course(plan: Plan, entry: Entry) -> Course:
    track, row = entry.track, entry.proposal - 1
    scored = entry.video.objects[entry.matched]
    numbers = np.array([_number(stem, place) for place, stem in enumerate(scored.stems)], float)
    first = _number(entry.video.stems[0], 0) if entry.video.stems else 0
    return Course(entry, object_numbers(entry, plan.protocol, clean=True), track.J[row],
                  (track.J[row] + track.F[row]) / 2, track.area_true > 0, track.area_predicted[row],
                  track.size.astype(np.int64).prod(axis=1), (numbers - first) / RATES[plan.protocol], _given(plan))


def _given(plan: Plan) -> bool:
    """Whether every object was given, so visible, in a frame that the protocol leaves out."""
    return plan.task == "semi-supervised" and plan.protocol != "v1-2022"


def _number(stem: str, place: int) -> int:
    return int(stem) if stem.isdecimal() else place


def _frame_seconds(plan: Plan, courses: Sequence[Course]) -> float:
    steps = [float(np.median(np.diff(course.seconds))) for course in courses if len(course.seconds) > 1]
    return float(np.median(steps)) if steps else STEP / RATES[plan.protocol]


def _of_object(plan: Plan, course: Course) -> dict[str, Any]:
    """Measures of one object; the keys of ``objects`` in the analyses."""
    entry = course.entry
    taken = entry.track.taken_for if plan.task == "semi-supervised" else np.empty(0, np.int16)
    return {
        "video": entry.video.name, "object": entry.video.objects[entry.matched].key, "frames": len(course.jf),
        "visible": int(course.visible.sum()), "size": course.size,
        **events.drift(course.jf, course.visible),
        **events.false_alarms(course.area_predicted, course.pixels, course.visible, course.appeared),
        **events.misses(course.j, course.area_predicted, course.visible),
        **events.switches(taken, entry.matched),
    }


def _attributes(video: ScoredVideo, tracks: Sequence[Track], given: bool) -> tuple[tuple[str, ...], str]:
    return (video.attributes, "meta") if video.attributes else (attributes.from_masks(tracks, given), "masks")


def _by_attribute(courses: Sequence[Course], stated: dict[str, tuple[tuple[str, ...], str]]) -> list[dict[str, Any]]:
    present = {name for names, _ in stated.values() for name in names}
    rows = []
    for name in [*(known for known in attributes.NAMES if known in present), *sorted(present - set(attributes.NAMES))]:
        videos = {video for video, (names, _) in stated.items() if name in names}
        row = _row("attribute", name, [course for course in courses if course.entry.video.name in videos])
        row["meaning"] = attributes.NAMES.get(name, "")
        row["source"] = " and ".join(sorted({stated[video][1] for video in videos}))
        rows.append(row)
    return rows


def _row(key: str, name: str, courses: Sequence[Course]) -> dict[str, Any]:
    """Mean scores over some objects, those without any score left out."""
    scored = [course for course in courses if not math.isnan(course.clean["J-Mean"])]
    j, f = (_mean(course.clean[metric] for course in scored) for metric in ("J-Mean", "F-Mean"))
    both = None if j is None or f is None else (j + f) / 2
    return {key: name, "videos": len({course.entry.video.name for course in scored}), "objects": len(scored),
            "J&F": both, "J": j, "F": f}


def _relative_time(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Visible frames by their place in the object's scored frames: means of each object, then over objects."""
    return _curve(courses, lambda course: BINS * np.arange(len(course.jf)) // max(1, len(course.jf)),
                  lambda bin_: {"from": bin_ / BINS, "to": (bin_ + 1) / BINS})


def _absolute_time(courses: Sequence[Course]) -> list[dict[str, Any]]:
    """Visible frames by minutes since the video's first scored frame."""
    return _curve(courses, lambda course: (course.seconds // (60 * MINUTES)).astype(int),
                  lambda bin_: {"from_minute": bin_ * MINUTES, "to_minute": (bin_ + 1) * MINUTES})


def _curve(courses: Sequence[Course], bins_of: Callable[[Course], np.ndarray], label: Callable[[int], dict[str, float]]
           ) -> list[dict[str, Any]]:
    found: dict[int, list[float]] = {}
    for course in courses:
        bins = bins_of(course)
        for bin_ in np.unique(bins[course.visible]).tolist():
            found.setdefault(bin_, []).append(float(course.jf[course.visible & (bins == bin_)].mean()))
    return [label(bin_) | {"objects": len(found[bin_]), "J&F": _mean(found[bin_])} for bin_ in sorted(found)]


def _slope_a_minute(courses: Sequence[Course]) -> float | None:
    """Mean over objects of the least-squares slope of J&F on minutes, visible frames, in points (hundredths)."""
    slopes = []
    for course in courses:
        minutes, values = course.seconds[course.visible] / 60, course.jf[course.visible]
        if len(values) >= 10 and np.ptp(minutes) > 0:
            minutes = minutes - minutes.mean()
            slopes.append(100 * float((minutes * values).sum() / (minutes * minutes).sum()))
    return _mean(slopes)


def _by_size(courses: Sequence[Course]) -> list[dict[str, Any]]:
    rows = []
    for name, low, high in SIZES:
        row = _row("size", name, [course for course in courses if low <= course.size < high])
        rows.append(row | {"from_share": low, "to_share": None if math.isinf(high) else high})
    return rows


def _of_several(course: Course) -> bool:
    return len(course.entry.video.objects) > 1


def _switches(courses: Sequence[Course], each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over objects of videos with at least two; proposals without ids of their own have none."""
    chosen = [item for course, item in zip(courses, each, strict=True)
              if _of_several(course) and item["share"] is not None]
    return {"objects": len(chosen), "switches": sum(item["switches"] for item in chosen),
            "objects_with_switches": sum(item["switches"] > 0 for item in chosen),
            "share": _mean(item["share"] for item in chosen)}


def _means(each: Sequence[dict[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Means of measures over the objects that have them, and how many these are."""
    found: dict[str, Any] = {"objects": sum(item[keys[0]] is not None for item in each)}
    return found | {key: _mean(item[key] for item in each if item[key] is not None) for key in keys}


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None
