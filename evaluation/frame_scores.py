"""The scores of one frame: both masks decoded once, every object scored, and what an audit should know of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from evaluation.metrics import Box, Region, common_area, region_of, score_regions
from evaluation.png import NotALabelMap, decode_labels
from evaluation.protocols import PROPOSALS


@dataclass(frozen=True)
class FrameTask:
    """One frame to score. ``objects``: (position in the video's list, pixel value) of those scored in it."""

    video: int  # position in the plan
    stem: str
    truth: Path
    prediction: Path
    objects: tuple[tuple[int, int], ...]
    known: frozenset[int]  # pixel values that the video's objects have
    task: str
    binary: bool


@dataclass
class FrameScore:
    """What one frame gave. Arrays are ordered like the task's ``objects`` (n); p is 1, or 20 proposals.

    ``J``, ``F``: (p, n) float64. ``area_predicted``: (p, n) int64. ``area_true``: (n,) int64. ``box``: (n, 4) int32
    rows and columns of the true mask (half open), zeros where it is empty. ``centre``: (n, 2) float32, its centroid
    (row, column). ``taken_for``: (n,) int16, position in ``objects`` of the true object that the prediction covers
    with an IoU of at least 0.5, -1 for none. ``digests``: SHA-256 of the truth's and the prediction's bytes.
    ``problems``: why it could not be scored, as lines; then the arrays are missing.
    """

    video: int
    stem: str
    problems: list[str] = field(default_factory=list)
    digests: tuple[bytes, bytes] = (b"", b"")
    size: tuple[int, int] = (0, 0)
    foreign: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())  # values outside ``known``: in truth, in prediction
    only_255: bool = False  # the prediction holds 255 and, but for background, nothing else
    J: np.ndarray | None = None
    F: np.ndarray | None = None
    area_predicted: np.ndarray | None = None
    area_true: np.ndarray | None = None
    box: np.ndarray | None = None
    centre: np.ndarray | None = None
    taken_for: np.ndarray | None = None


def score_frame(task: FrameTask, check_only: bool = False) -> FrameScore:
    """Read, check and score one frame; with ``check_only`` nothing is scored, but every problem is found."""
    result = FrameScore(task.video, task.stem)
    maps, digests = [], []
    for path, what in ((task.truth, "ground truth"), (task.prediction, "prediction")):
        if check_only and not path.parent.is_dir():
            continue  # told once for the whole folder
        try:
            data = path.read_bytes()
        except OSError as error:
            result.problems.append(_missing(path, what, error))
            continue
        digests.append(hashlib.sha256(data).digest())
        try:
            maps.append(decode_labels(data))
        except NotALabelMap as error:
            result.problems.append(f"{path}: {what}: {error}; masks must be palette or grey PNG, the index being the "
                                   "object id")
    if len(maps) == 2 and maps[0].shape != maps[1].shape:
        sizes = ["x".join(map(str, labels.shape[::-1])) for labels in maps]
        result.problems.append(f"{task.prediction}: the prediction is {sizes[1]} pixels, its ground truth {sizes[0]}; "
                               "write masks at the original size of the frame")
    if result.problems or len(maps) < 2:
        return result
    truth, prediction = maps
    result.digests, result.size = (digests[0], digests[1]), truth.shape
    try:
        if not check_only:
            _score(task, truth, prediction, result)
        elif task.task == "unsupervised_single":
            _salient(prediction)
    except ValueError as error:
        result.problems.append(f"{task.prediction}: {error}")
    return result


def _missing(path: Path, what: str, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        return f"{path}: the {what} cannot be read ({error.strerror}); mend the file"
    hint = ""
    if path.stem.isdecimal() and path.parent.is_dir():
        same = sorted(other.name for other in path.parent.iterdir()
                      if other.stem.isdecimal() and int(other.stem) == int(path.stem))
        hint = f" (there is {same[0]}; names must be the data set's own, ending in .png)" if same else ""
    return f"{path}: the {what} is missing{hint}; add the file"


def _score(task: FrameTask, truth: np.ndarray, prediction: np.ndarray, result: FrameScore) -> None:
    if task.binary:
        truth, prediction = (truth != 0).astype(np.uint8), (prediction != 0).astype(np.uint8)
    true_map, predicted_map = _LabelMap(truth), _LabelMap(prediction)
    true = [true_map.region(number) for _, number in task.objects]
    result.foreign = true_map.others(task.known), ()
    if task.task == "unsupervised_single":
        foreground = region_of(_salient(prediction))
        predicted = [[foreground] * len(true)]
    elif task.task == "unsupervised_multiple":
        predicted = [[predicted_map.region(proposal)] * len(true) for proposal in range(1, PROPOSALS + 1)]
        result.foreign = result.foreign[0], predicted_map.others(frozenset(range(1, PROPOSALS + 1)))
    else:
        predicted = [[predicted_map.region(number) for _, number in task.objects]]
        result.foreign = result.foreign[0], predicted_map.others(task.known)
        result.only_255 = predicted_map.only_255()
    shape = len(predicted), len(true)
    result.J, result.F = np.empty(shape), np.empty(shape)
    result.area_predicted = np.array([[region.area for region in row] for row in predicted], np.int64).reshape(shape)
    for p, row in enumerate(predicted):
        for n, region in enumerate(row):
            result.J[p, n], result.F[p, n], _ = score_regions(region, true[n])
    result.area_true = np.array([region.area for region in true], np.int64)
    result.box = np.array([region.box or (0, 0, 0, 0) for region in true], np.int32).reshape(-1, 4)
    result.centre = np.array([_centroid(region) for region in true], np.float32).reshape(-1, 2)
    result.taken_for = np.array([_taken_for(n, region, true, result.J[0, n]) for n, region in enumerate(predicted[0])],
                                np.int16)


class _LabelMap:
    """A label map whose non-zero part is found once, so that objects are looked for inside it only."""

    def __init__(self, labels: np.ndarray):
        self.labels = labels
        self.regions: dict[int, Region] = {}
        if labels.dtype == np.uint8:
            left, top, width, height = cv2.boundingRect(labels) if labels.size else (0, 0, 0, 0)
            self.box = Box(top, top + height, left, left + width)
        else:
            self.box = Box(0, labels.shape[0], 0, labels.shape[1])

    def region(self, number: int) -> Region:
        """Where the map has the value ``number``."""
        if number not in self.regions:
            if number == 0:  # background as an object: it may lie anywhere
                self.regions[0] = region_of(self.labels == 0)
            else:
                mask = self.box.cut(self.labels) == number
                self.regions[number] = region_of(mask, (self.box.top, self.box.left), self.labels.shape)
        return self.regions[number]

    def others(self, known: frozenset[int]) -> tuple[int, ...]:
        """Values in the map that are neither 0 nor ``known``, ascending."""
        inside = self.box.cut(self.labels)
        count = cv2.countNonZero(inside) if inside.dtype == np.uint8 and inside.size else np.count_nonzero(inside)
        if count == sum(self.region(number).area for number in known if number):
            return ()
        present = np.unique(inside) if inside.dtype != np.uint8 else np.flatnonzero(np.bincount(inside.reshape(-1)))
        return tuple(int(value) for value in present if value and value not in known)

    def only_255(self) -> bool:
        """Whether the map's non-zero values are all 255 (and there is one)."""
        area = self.region(255).area
        return area > 0 and area == np.count_nonzero(self.box.cut(self.labels))


def _salient(prediction: np.ndarray) -> np.ndarray:
    """The foreground of a mask of unsupervised_single, by the official rule on the set of its values."""
    highest = int(prediction.max(initial=0))
    if highest == 0:
        return np.zeros(prediction.shape, bool)
    foreground = prediction == highest
    below = prediction[~foreground]
    if highest in (1, 255) and not below.any():
        return foreground  # 0/1 or 0/255; without any zero it is the full frame
    if len(values := np.unique(below)) >= 2:
        return prediction >= 127
    found = ", ".join(str(value) for value in [*values.tolist(), highest])
    raise ValueError(f"no salient mask: its values are {{{found}}}; write 0 and 255 (or 0 and 1, or grey levels)")


def _centroid(region: Region) -> tuple[float, float]:
    if region.box is None:
        return 0.0, 0.0
    moments = cv2.moments(region.pixels, binaryImage=True)
    return region.box.top + moments["m01"] / moments["m00"], region.box.left + moments["m10"] / moments["m00"]


def _taken_for(own: int, predicted: Region, true: list[Region], own_j: float) -> int:
    """Position of the true object with the largest IoU with ``predicted``, if that is at least 0.5; else -1."""
    if predicted.box is None:
        return -1
    if own_j > 0.5 and true[own].area:  # true objects do not overlap: no other one can have more
        return own
    best, found = 0.0, -1
    for n, region in enumerate(true):
        low, high = sorted((region.area, predicted.area))
        if 2 * low < high:
            continue  # the IoU is below 0.5 whatever they share
        common = common_area(predicted, region)
        iou = common / (low + high - common)
        if iou >= 0.5 and iou > best:
            best, found = iou, n
    return found
