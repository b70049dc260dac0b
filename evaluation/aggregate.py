"""From the scores of frames to the numbers of objects and of the whole set, in the official order of every sum.

Two readings stand side by side: the official one, with its padding zeros and NaN, and a clean one that scores only
frames that exist and leaves out objects that have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.protocols import Plan, ScoredObject, ScoredVideo
from evaluation.scoring import AllScores, Track

NAN = math.nan
LVOS_COLUMNS = ("J&F", "J-Mean", "J-seen-Mean", "J-unseen-Mean", "F-Mean", "F-seen-Mean", "F-unseen-Mean",
                "V-Mean", "V-seen-Mean", "V-unseen-Mean")
DAVIS_COLUMNS = ("J&F", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
Numbers = dict[str, float]


@dataclass(frozen=True)
class Entry:
    """The scores that are reported under one object.

    ``J``, ``F``: (N,) float64, the official arrays, padding included; ``filled``: (m,) int64, their entries that have a
    frame, ascending. ``matched``: position in the video of the object that the scores belong to, which the official
    unsupervised_multiple files under another label; ``proposal``: its number there, else 1 for the only row of tracks.
    """

    video: ScoredVideo
    object: ScoredObject
    track: Track
    J: np.ndarray
    F: np.ndarray
    filled: np.ndarray
    matched: int
    proposal: int


def columns_of(protocol: str) -> tuple[str, ...]:
    """The headline numbers of a protocol: keys of ``global``, in the order of the official table."""
    return DAVIS_COLUMNS if protocol == "davis2017" else LVOS_COLUMNS


def entries_of(plan: Plan, scores: AllScores) -> list[Entry]:
    """One entry an object, in the official order."""
    entries = []
    for video, found in zip(plan.videos, scores.videos, strict=True):
        if plan.task == "unsupervised_multiple":
            entries += _matched(video, found.tracks)
        else:
            for position, (scored, track) in enumerate(zip(video.objects, found.tracks, strict=True)):
                j, f = _stored(track.J, scored)[0], _stored(track.F, scored)[0]
                entries.append(Entry(video, scored, track, j, f, _filled(scored), position, 1))
    return entries


def _stored(values: np.ndarray, scored: ScoredObject) -> np.ndarray:
    """(p, m) scores in order of time -> (p, N), each at its place in the official array, zeros elsewhere."""
    array = np.zeros((len(values), scored.length))
    array[:, list(scored.places)] = values
    return array


def _filled(scored: ScoredObject) -> np.ndarray:
    return np.sort(np.array(scored.places, np.intp))


def _matched(video: ScoredVideo, tracks: Sequence[Track]) -> list[Entry]:
    """The assignment of proposals to objects. The i-th pair, by proposal, is filed under the i-th label of the meta,
    as the official tool does, although it belongs to another object."""
    from scipy.optimize import linear_sum_assignment  # heavy, and this task's alone

    if not tracks:
        return []
    stored = [(_stored(track.J, scored), _stored(track.F, scored))
              for track, scored in zip(tracks, video.objects, strict=True)]
    means = np.stack([(np.mean(j, axis=-1) + np.mean(f, axis=-1)) / 2 for j, f in stored], axis=1)  # (20, n)
    entries = []
    for label, (proposal, position) in enumerate(zip(*linear_sum_assignment(-means), strict=True)):
        j, f = stored[position]
        entries.append(Entry(video, video.objects[label], tracks[position], j[proposal], f[proposal],
                             _filled(video.objects[position]), int(position), int(proposal) + 1))
    return entries


def object_numbers(entry: Entry, protocol: str, clean: bool = False) -> Numbers:
    """Mean, Recall and Decay of J and F, and V where the protocol has it, of one object."""
    j, f = (entry.J[entry.filled], entry.F[entry.filled]) if clean else (entry.J, entry.F)
    decay = (_decay if clean else _wrapping_decay) if protocol == "davis2017" else _no_decay
    numbers = {}
    for name, values in (("J", j), ("F", f)):
        numbers[f"{name}-Mean"] = _mean(values)
        numbers[f"{name}-Recall"] = _mean(values > 0.5)
        numbers[f"{name}-Decay"] = decay(values)
    if protocol != "davis2017":
        numbers["V-Mean"] = variation(j, f)
    return numbers


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN


def _no_decay(values: np.ndarray) -> float:
    """Decay of the LVOS tool: always zero, since each of its four bins is the whole array."""
    return 0.0 if len(values) else NAN


def _wrapping_decay(values: np.ndarray) -> float:
    """Decay of the DAVIS-2017 toolkit: the first quarter's mean less the last one's, with bounds kept in 8 bits."""
    if not len(values):
        return NAN
    bounds = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(np.int64) % 256
    return _mean(values[bounds[0]:bounds[1] + 1]) - _mean(values[bounds[3]:bounds[4] + 1])


def _decay(values: np.ndarray) -> float:
    """The same without the wrap."""
    if not len(values):
        return NAN
    bounds = (np.round(np.linspace(1, len(values), 5) + 1e-10) - 1).astype(np.int64)
    return _mean(values[bounds[0]:bounds[1] + 1]) - _mean(values[bounds[3]:bounds[4] + 1])


def variation(j: np.ndarray, f: np.ndarray) -> float:
    """V (LVOS V2): the root of the variance of (J + F) / 2 over frames, the variance rounded to four decimals."""
    if not len(j):
        return NAN
    both = (j + f) / 2
    return math.sqrt(np.round(np.sum((np.mean(both) - both) ** 2) / len(both), 4))


def global_numbers(numbers: Sequence[Numbers], unseen: Sequence[bool | None], protocol: str, clean: bool = False
                   ) -> Numbers:
    """The numbers of the whole set from those of its objects, both in the official order.

    ``clean``: objects without a scored frame are left out, and where one of the two groups, seen and unseen, is
    empty, the other one speaks for both.
    """
    def mean(key: str, chosen: Iterable[int]) -> float:
        values = [numbers[i][key] for i in chosen]
        return _mean([value for value in values if not (clean and math.isnan(value))])

    every = range(len(numbers))
    if protocol == "davis2017":
        result = {f"{m}-{s}": mean(f"{m}-{s}", every) for m in "JF" for s in ("Mean", "Recall", "Decay")}
        return {"J&F": (result["J-Mean"] + result["F-Mean"]) / 2.0, **result}
    groups = {"seen": [i for i in every if not unseen[i]], "unseen": [i for i in every if unseen[i]]}
    result = {}
    for key in ("J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay", "V-Mean"):
        metric, statistic = key.split("-")
        seen, hidden = (mean(key, groups[group]) for group in ("seen", "unseen"))
        result |= {key: (seen + hidden) / 2, f"{metric}-seen-{statistic}": seen, f"{metric}-unseen-{statistic}": hidden}
        if clean and math.isnan(result[key]):
            result[key] = hidden if math.isnan(seen) else seen
    s_j, s_f, u_j, u_f = (result[f"{m}-{g}-Mean"] for g in ("seen", "unseen") for m in "JF")
    balanced = ((s_j + s_f) + (u_j + u_f)) / 4.0
    if clean and math.isnan(balanced):
        balanced = (result["J-Mean"] + result["F-Mean"]) / 2
    j_all, f_all = mean("J-Mean", every), mean("F-Mean", every)
    return {"J&F": balanced, **result, "J-all-Mean": j_all, "F-all-Mean": f_all, "Overall": (j_all + f_all) / 2.0}


def headline(plan: Plan, entries: Sequence[Entry]) -> dict[str, Any]:
    """The binding part of ``scores.json``: ``protocol``, ``task``, ``global``, ``objects``, ``videos``.

    Keys and their order are those of the golden cases; ``clean`` stands beside ``global``, and in an object where the
    clean numbers differ from the official ones.
    """
    davis = plan.protocol == "davis2017"
    numbers = [object_numbers(entry, plan.protocol) for entry in entries]
    clean = [object_numbers(entry, plan.protocol, clean=True) for entry in entries]
    unseen = [entry.video.unseen for entry in entries]
    objects = []
    for entry, official, plain in zip(entries, numbers, clean, strict=True):
        item: dict[str, Any] = {"video": entry.video.name, "object": entry.object.key, "index": entry.object.index}
        if not davis:
            item["unseen"] = entry.video.unseen
        item |= {"frames": len(entry.J), **official}
        if differ(official, plain):
            item["clean"] = {"frames": len(entry.filled), **plain}
        if plan.task == "unsupervised_multiple":
            item |= {"matched_object": entry.video.objects[entry.matched].key, "proposal": entry.proposal}
        objects.append(item)
    videos: list[dict[str, Any]] = []
    for video in plan.videos:
        if count := sum(entry.video is video for entry in entries):
            videos.append({"video": video.name, "objects": count} | ({} if davis else {"unseen": video.unseen}))
    return {
        "protocol": plan.protocol, "task": plan.task,
        "global": global_numbers(numbers, unseen, plan.protocol),
        "clean": global_numbers(clean, unseen, plan.protocol, clean=True),
        "objects": objects, "videos": videos,
    }


def differ(one: Numbers, other: Numbers) -> bool:
    """Whether any number of two tables differs; NaN equals NaN."""
    return any(one[key] != other[key] and not (math.isnan(one[key]) and math.isnan(other[key])) for key in one)
