"""J and F equal the official values bit for bit, and a slow reference written from the definitions on any mask."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation import contour_accuracy, region_similarity
from evaluation.metrics import tolerance


def test_golden_pairs(shared):
    pairs = np.load(shared / "golden/evaluation/mask_pairs.npz")
    bits = {name: np.unpackbits(pairs[name]) for name in ("truth_bits", "pred_bits")}
    start = 0
    for height, width, j, f in zip(pairs["height"], pairs["width"], pairs["J"], pairs["F"], strict=True):
        size = int(height) * int(width)
        truth, prediction = (bits[name][start:start + size].reshape(height, width).astype(bool)
                             for name in ("truth_bits", "pred_bits"))
        start += (size + 7) // 8 * 8
        before = truth.copy(), prediction.copy()
        assert region_similarity(prediction, truth) == j
        assert contour_accuracy(prediction, truth) == f
        assert (truth == before[0]).all() and (prediction == before[1]).all()


@pytest.mark.parametrize(("height", "width", "radius"), [
    (75, 100, 1), (150, 200, 2), (225, 300, 3), (300, 400, 4), (375, 500, 5), (1, 1, 1), (76, 100, 2),
    (480, 854, 8), (720, 1280, 12), (1080, 1920, 18)])
def test_tolerance(height, width, radius):
    assert tolerance(height, width) == radius


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        region_similarity(np.zeros((4, 5), bool), np.zeros((5, 4), bool))


# A reference without any cleverness: loops over pixels, straight from the definitions.

def slow_boundary(mask):
    height, width = mask.shape
    return [(y, x) for y in range(height) for x in range(width)
            if (x + 1 < width and mask[y, x] != mask[y, x + 1])
            or (y + 1 < height and mask[y, x] != mask[y + 1, x])
            or (x + 1 < width and y + 1 < height and mask[y, x] != mask[y + 1, x + 1])]


def slow_f(prediction, truth):
    height, width = truth.shape
    radius = math.ceil(0.008 * math.sqrt(height * height + width * width))
    predicted, true = slow_boundary(prediction), slow_boundary(truth)
    if not predicted or not true:
        return 1.0 if not predicted and not true else 0.0

    def share(points, targets):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius ** 2 for v, u in targets) for y, x in points) / len(points)

    precision, recall = share(predicted, true), share(true, predicted)
    return 0.0 if precision + recall == 0 else ((2 * precision) * recall) / (precision + recall)


def slow_j(prediction, truth):
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


@st.composite
def small_pairs(draw):
    """Two masks of one odd little shape: noise, or rectangles that may touch the border or fill the frame."""
    shape = draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    if draw(st.booleans()):
        return draw(arrays(bool, shape)), draw(arrays(bool, shape))
    return tuple(draw(rectangles(*shape)) for _ in range(2))


@st.composite
def rectangles(draw, height, width):
    mask = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(0, 2))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[top:top + draw(st.integers(1, height)), left:left + draw(st.integers(1, width))] = True
    return mask


@settings(max_examples=300, deadline=None)
@given(small_pairs())
def test_equals_reference_on_small_masks(pair):
    assert region_similarity(*pair) == slow_j(*pair)
    assert contour_accuracy(*pair) == slow_f(*pair)


@st.composite
def large_pairs(draw):
    """Sparse masks in frames whose radius is an exact integer (75 x 100 k), or just not: points near the radius."""
    k = draw(st.integers(1, 5))
    height, width = 75 * k + draw(st.integers(-1, 1)), 100 * k
    masks = []
    centre = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    for _ in range(2):
        mask = np.zeros((height, width), bool)
        for _ in range(draw(st.integers(0, 3))):
            y = min(max(centre[0] + draw(st.integers(-2 * k - 2, 2 * k + 2)), 0), height - 1)
            x = min(max(centre[1] + draw(st.integers(-2 * k - 2, 2 * k + 2)), 0), width - 1)
            mask[y:y + draw(st.integers(1, 3)), x:x + draw(st.integers(1, 3))] = True
        masks.append(mask)
    return tuple(masks)


def sparse_f(prediction, truth):
    """The slow reference, on the part of a large frame that holds both masks (with the frame's own radius)."""
    height, width = truth.shape
    radius = math.ceil(0.008 * math.sqrt(height * height + width * width))
    padded = [np.pad(mask, ((0, 1), (0, 1)), mode="edge") for mask in (prediction, truth)]  # edge: the border is none

    def boundary(mask):
        differs = ((mask[:-1, :-1] != mask[:-1, 1:]) | (mask[:-1, :-1] != mask[1:, :-1])
                   | (mask[:-1, :-1] != mask[1:, 1:]))
        return [tuple(point) for point in np.argwhere(differs)]

    predicted, true = (boundary(mask) for mask in padded)
    if not predicted or not true:
        return 1.0 if not predicted and not true else 0.0

    def share(points, targets):
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= radius ** 2 for v, u in targets) for y, x in points) / len(points)

    precision, recall = share(predicted, true), share(true, predicted)
    return 0.0 if precision + recall == 0 else ((2 * precision) * recall) / (precision + recall)


@settings(max_examples=300, deadline=None)
@given(large_pairs())
def test_equals_reference_near_the_radius(pair):
    assert region_similarity(*pair) == slow_j(*pair)
    assert contour_accuracy(*pair) == sparse_f(*pair)
