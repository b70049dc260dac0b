"""The worst frames of an evaluation, and their pictures: prediction beside truth, as data for one HTML page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError
from datasets.readers import DAVIS_PALETTE, read_image, read_labels
from evaluation.aggregate import Entry
from evaluation.png import decode_labels
from evaluation.protocols import ScoredVideo

WORST = 12
A_VIDEO = 3  # at most so many of one video
APART = 10  # scored frames between two of one object
WIDTH = 420  # pixels
_COLOURS = np.array(DAVIS_PALETTE, np.uint8).reshape(256, 3)


@dataclass(frozen=True)
class Shown:
    """One frame of the gallery; ``prediction`` and ``truth`` are data URIs, ``what`` says why it is bad."""

    video: str
    object: str
    stem: str
    J: float
    F: float
    what: str
    prediction: str
    truth: str


def worst_frames(entries: tuple[Entry, ...]) -> list[tuple[Entry, int]]:
    """(entry, place in time) of the worst frames by J&F: several videos, and frames apart from each other."""
    candidates = []
    for number, entry in enumerate(entries):
        both = (entry.track.J[entry.proposal - 1] + entry.track.F[entry.proposal - 1]) / 2
        candidates += [(value, -area, number, place) for place, (value, area)
                       in enumerate(zip(both.tolist(), entry.track.area_true.tolist(), strict=True)) if value < 1]
    chosen: list[tuple[Entry, int]] = []
    for _, _, number, place in sorted(candidates):  # equal scores: the larger object first
        entry = entries[number]
        if sum(one.video is entry.video for one, _ in chosen) >= A_VIDEO:
            continue
        if all(one is not entry or abs(place - other) >= APART for one, other in chosen):
            chosen.append((entry, place))
        if len(chosen) == WORST:
            break
    return chosen


def gallery(entries: tuple[Entry, ...]) -> list[Shown]:
    """The worst frames with their pictures, on the images of the data set where it has them."""
    shown = []
    for entry, place in worst_frames(entries):
        scored, row, video = entry.video.objects[entry.matched], entry.proposal - 1, entry.video
        stem = scored.stems[place]
        # Paths are those that were scored; 16-bit grey masks are read with their values.
        prediction, truth = (_labels(folder / f"{stem}.png", video.binary)
                             for folder in (video.prediction, video.truth))
        image = _image(video, stem, truth.shape)
        area, predicted = int(entry.track.area_true[place]), int(entry.track.area_predicted[row, place])
        what = "false alarm: not there" if not area else "missed" if not predicted else f"{area} true pixels"
        shown.append(Shown(video.name, scored.key, stem, float(entry.track.J[row, place]),
                           float(entry.track.F[row, place]), what,
                           *(_picture(image, labels, scored.id) for labels in (prediction, truth))))
    return shown


def _labels(path: Path, binary: bool) -> np.ndarray:
    try:
        return read_labels(path, binary)
    except UserError:  # values above 255 score as they are, and have no colour of their own
        return decode_labels(path.read_bytes()).clip(0, 255).astype(np.uint8)


def _image(video: ScoredVideo, stem: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: the frame's image, or grey where there is none of this size, or a broken one, which it says."""
    grey = np.full((*size, 3), 96, np.uint8)
    if video.images is None or not (path := video.images / f"{stem}{video.image_suffix}").is_file():
        return grey
    try:
        image = read_image(path)
    except UserError:  # the scores need no image
        return cv2.putText(grey, "image unreadable", (4, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255))
    return image if image.shape[:2] == size else grey


def _picture(image: np.ndarray, labels: np.ndarray, number: int) -> str:
    """Data URI of the image under coloured objects; the object in question is outlined in white, the others pale."""
    coloured = image.astype(np.float32)
    for value in np.unique(labels):
        if value:
            strength = 0.6 if value == number else 0.3
            region = labels == value
            coloured[region] = (1 - strength) * coloured[region] + strength * _COLOURS[value]
    picture = coloured.astype(np.uint8)
    outline, _ = cv2.findContours((labels == number).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outline, -1, (255, 255, 255), max(1, image.shape[1] // WIDTH))
    height = max(1, round(image.shape[0] * WIDTH / image.shape[1]))
    way = cv2.INTER_AREA if image.shape[1] > WIDTH else cv2.INTER_NEAREST
    picture = cv2.resize(picture, (WIDTH, min(height, 4 * WIDTH)), interpolation=way)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
