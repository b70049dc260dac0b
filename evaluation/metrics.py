"""Region similarity J and contour accuracy F of two masks, equal to the official tools to the last bit.

Definitions: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(CVPR 2016), in the form of davis2017-evaluation and lvos-evaluation (their Python variant).

Everything is computed on the bounding box of a mask: outside it there is neither region nor boundary.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

BOUND_TH = 0.008  # tolerance of a boundary match, as a share of the image's diagonal (official default)


class Box(NamedTuple):
    """Rows ``top:bottom`` and columns ``left:right`` of an image, half open."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, by: int, height: int, width: int) -> Box:
        """The box with ``by`` more pixels on each side, clipped to the image."""
        return Box(max(0, self.top - by), min(height, self.bottom + by),
                   max(0, self.left - by), min(width, self.right + by))

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The part of an (H, W) image that lies in the box, as a view."""
        return image[self.top:self.bottom, self.left:self.right]


class Region(NamedTuple):
    """One object's mask: its pixels inside ``box`` (0/1 uint8), how many there are, and the image's size."""

    pixels: np.ndarray  # (box height, box width) uint8
    area: int
    box: Box | None  # None: the mask is empty
    size: tuple[int, int]  # (H, W) of the whole image


class PairScore(NamedTuple):
    """J and F of one pair of masks, with the count of common pixels."""

    J: float
    F: float
    common: int


def region_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    """J: the intersection of two masks over their union; 1.0 where both are empty.

    Args: two (H, W) boolean arrays of one shape (other dtypes: non-zero is set). Returns a float in [0, 1].
    Raises ValueError where the shapes differ or are not two-dimensional.
    """
    _check(prediction, truth)
    predicted, true = region_of(prediction.astype(bool)), region_of(truth.astype(bool))
    return _region_similarity(predicted, true, common_area(predicted, true))


def contour_accuracy(prediction: np.ndarray, truth: np.ndarray) -> float:
    """F: the harmonic mean of boundary precision and recall, matched within 0.008 of the image's diagonal.

    Args: two (H, W) boolean arrays of one shape (other dtypes: non-zero is set). Returns a float in [0, 1]; 1.0 where
    neither mask has a boundary (a full frame has none). Raises ValueError where the shapes differ.
    """
    _check(prediction, truth)
    return _contour_accuracy(region_of(prediction.astype(bool)), region_of(truth.astype(bool)))


def score_regions(predicted: Region, true: Region) -> PairScore:
    """J and F of two regions of one image."""
    common = common_area(predicted, true)
    j = _region_similarity(predicted, true, common)
    if j == 1.0:  # equal masks have equal boundaries: p = r = 1, and ((2 * 1) * 1) / (1 + 1) is exactly 1
        return PairScore(j, 1.0, common)
    return PairScore(j, _contour_accuracy(predicted, true), common)


def region_of(mask: np.ndarray, corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None) -> Region:
    """Cut a (H, W) boolean mask down to its bounding box.

    A mask that is itself a part of an image says where its upper left ``corner`` (row, column) lies in the image, and
    the image's ``size`` (H, W).
    """
    pixels = mask.view(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels) if mask.size else (0, 0, 0, 0)
    inside = pixels[top:top + height, left:left + width]
    top, left = top + corner[0], left + corner[1]
    box = Box(top, top + height, left, left + width) if width else None
    return Region(inside, cv2.countNonZero(inside) if width else 0, box, size or mask.shape)


def common_area(one: Region, other: Region) -> int:
    """How many pixels two regions of one image share."""
    if one.box is None or other.box is None:
        return 0
    top, bottom = max(one.box.top, other.box.top), min(one.box.bottom, other.box.bottom)
    left, right = max(one.box.left, other.box.left), min(one.box.right, other.box.right)
    if top >= bottom or left >= right:
        return 0
    parts = [pixels[top - box.top:bottom - box.top, left - box.left:right - box.left]
             for pixels, box in ((one.pixels, one.box), (other.pixels, other.box))]
    return cv2.countNonZero(cv2.bitwise_and(*parts))


def tolerance(height: int, width: int) -> int:
    """The radius of a boundary match in pixels: ceil(0.008 * diagonal), at least 1."""
    return math.ceil(BOUND_TH * math.sqrt(height * height + width * width))


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.ndim != 2 or prediction.shape != truth.shape:
        raise ValueError(f"masks must be two (H, W) arrays of one shape, not {prediction.shape} and {truth.shape}")


def _region_similarity(predicted: Region, true: Region, common: int) -> float:
    union = predicted.area + true.area - common
    return common / union if union else 1.0


def _contour_accuracy(predicted: Region, true: Region) -> float:
    radius = tolerance(*true.size)
    predicted_points, true_points = _boundary(predicted), _boundary(true)
    if not len(predicted_points) or not len(true_points):
        return 1.0 if len(predicted_points) == len(true_points) else 0.0
    precision = _matched(predicted_points, true_points, radius) / len(predicted_points)
    recall = _matched(true_points, predicted_points, radius) / len(true_points)
    # Exactly this order of operations: other forms of the harmonic mean differ in the last bit.
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(region: Region) -> np.ndarray:
    """Coordinates (n, 2) int (row, column) of a region's boundary pixels, sorted by row.

    A pixel is boundary where it differs from its right, lower or lower-right neighbour. The image's own border is
    none: in the last row only the right neighbour counts, in the last column only the lower one.
    """
    if region.box is None:
        return np.empty((0, 2), np.intp)
    height, width = region.size
    box = region.box.grown(1, height, width)  # one empty row and column around, except at the image's border
    mask = np.zeros((box.bottom - box.top, box.right - box.left), np.uint8)
    top, left = region.box.top - box.top, region.box.left - box.left
    mask[top:top + region.pixels.shape[0], left:left + region.pixels.shape[1]] = region.pixels
    edges = np.zeros_like(mask)
    edges[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edges[:-1] |= mask[:-1] ^ mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    rows, columns = np.divmod(np.flatnonzero(edges.view(bool)), edges.shape[1])
    return np.stack((rows + box.top, columns + box.left), axis=1)


def _matched(points: np.ndarray, targets: np.ndarray, radius: int) -> int:
    """How many of ``points`` (n, 2) have one of ``targets`` (m, 2) within ``radius`` pixels (Euclidean, inclusive).

    The same count as dilating the targets with a full disk and looking the points up, without the cost of the disk:
    a square inside the disk, which dilates fast, settles most points; only the rest look at what of the disk is left.
    """
    # One canvas around the targets, wide enough that no offset of the disk leaves it.
    (top, left), (bottom, right) = targets.min(axis=0) - 2 * radius, targets.max(axis=0) + 2 * radius + 1
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    width = canvas.shape[1]
    flat = canvas.reshape(-1)
    flat[(targets[:, 0] - top) * width + (targets[:, 1] - left)] = 1
    near = ((points[:, 0] >= top + radius) & (points[:, 0] < bottom - radius)
            & (points[:, 1] >= left + radius) & (points[:, 1] < right - radius))
    candidates = ((points[:, 0] - top) * width + (points[:, 1] - left))[near]
    half = math.isqrt(radius * radius // 2)  # the largest square inside the disk: 2 * half**2 <= radius**2
    square = cv2.dilate(canvas, np.ones((2 * half + 1, 2 * half + 1), np.uint8)).reshape(-1)
    open_ = candidates[square[candidates] == 0]
    matched = len(candidates) - len(open_)
    offsets = _outer_disk(radius, half, width)
    step = max(1, (1 << 20) // len(offsets))  # bounds the memory of the look-ups
    for start in range(0, len(open_), step):
        around = open_[start:start + step, None] + offsets  # (points, offsets)
        matched += int(np.count_nonzero(flat[around].any(axis=1)))
    return matched


@functools.lru_cache(maxsize=256)
def _outer_disk(radius: int, half: int, width: int) -> np.ndarray:
    """Offsets, in a flat image of ``width`` columns, of the disk's pixels outside its inner square."""
    rows, columns = np.mgrid[-radius:radius + 1, -radius:radius + 1]
    outside = (np.abs(rows) > half) | (np.abs(columns) > half)
    chosen = (rows * rows + columns * columns <= radius * radius) & outside
    return (rows * width + columns)[chosen]
