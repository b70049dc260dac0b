"""Attributes of videos: as the data set states them, else the five that masks alone can tell (LVOS, IJCV table 4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.events import LONG_ABSENCE, runs
from evaluation.scoring import Track

NAMES = {
    "BC": "background clutter", "DEF": "deformation", "MB": "motion blur", "FM": "fast motion", "LR": "low resolution",
    "OCC": "occlusion", "OV": "out of view", "SV": "scale variation", "DB": "dynamic background",
    "SC": "shape complexity", "AC": "appearance change", "LRA": "long-term reappearance",
    "CTC": "cross-temporal confusion",
}
FAST = 20.0  # pixels that the centroid moves between two annotated frames, on average
LOW = 0.1  # mean share of the image that the bounding box takes
SCALES = 2.0  # ratio of the areas of any two bounding boxes


def from_masks(tracks: Sequence[Track], appeared: bool = False) -> tuple[str, ...]:
    """FM, LR, OV, SV and LRA of a video, in this order, each where any of its objects (one track each) has it.

    ``appeared``: every object was visible in a frame before its track.
    """
    found = {name for track in tracks for name in _of_object(track, appeared)}
    return tuple(name for name in ("FM", "LR", "OV", "SV", "LRA") if name in found)


def _of_object(track: Track, appeared: bool) -> set[str]:
    visible = track.area_true > 0
    if not visible.any():
        return set()
    found = set()
    both = visible[1:] & visible[:-1]
    moves = np.linalg.norm(np.diff(track.centre, axis=0), axis=1)[both]
    if len(moves) and moves.mean() > FAST:
        found.add("FM")
    box = track.box[visible].astype(np.int64)
    areas = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    if (areas / track.size[visible].prod(axis=1)).mean() < LOW:
        found.add("LR")
    if areas.max() > SCALES * areas.min():
        found.add("SV")
    touches = visible & ((track.box[:, 0] == 0) | (track.box[:, 2] == 0) | (track.box[:, 1] == track.size[:, 0])
                         | (track.box[:, 3] == track.size[:, 1]))
    for start, end in runs(~visible):
        if (start and touches[start - 1]) or (end < len(visible) and touches[end]):
            found.add("OV")  # gone, and at the image's border just before or after
        if (start or appeared) and end < len(visible) and end - start >= LONG_ABSENCE:
            found.add("LRA")
    return found
