"""Changes of clips: images and masks stay together, numbers stay in range, objects are kept and numbered by rule."""

from itertools import pairwise

import numpy as np
import pytest

from datasets.augment import (
    FILL,
    Clip,
    away,
    camera_path,
    choose_window,
    cut_in_two,
    jittered,
    merged,
    mirrored,
    moved_image,
    numbered,
    recoloured,
    warped,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def painted(height: int = 120, width: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A frame whose red channel says where the object is."""
    labels = np.zeros((height, width), np.uint8)
    labels[30:80, 60:120] = 1
    frame = np.full((height, width, 3), 20, np.uint8)
    frame[labels == 1, 0] = 220
    return frame, labels


def agreement(frame: np.ndarray, labels: np.ndarray) -> float:
    return float(((frame[..., 0] > 150) == (labels == 1)).mean())


@pytest.mark.parametrize("seed", range(5))
def test_window_moves_frames_and_masks_alike(seed):
    frame, labels = painted()
    matrix = choose_window(labels, 97, rng(seed), (0.7, 1.3), 120)
    small, small_labels = warped(frame, matrix, 97), warped(labels, matrix, 97)
    assert small.shape == (97, 97, 3) and (small_labels == 1).sum() > 100
    assert agreement(small, small_labels) > 0.98


def test_a_reduced_frame_gives_the_same_window():
    # What a JPEG decoder gives at half size: the mean of 2 x 2 pixels.
    frame = np.kron(rng().integers(0, 255, (15, 25, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    half = frame.reshape(60, 2, 100, 2, 3).mean((1, 3)).astype(np.uint8)
    matrix = np.array([[0.4, 0, -3.3], [0, 0.4, 1.7]])
    whole, reduced = warped(frame, matrix, 33), warped(half, matrix, 33, reduced=2)
    assert np.abs(whole.astype(int) - reduced).mean() < 8
    shifted = warped(half, matrix + np.array([[0, 0, 0.5], [0, 0, 0]]), 33, reduced=2)
    assert np.abs(whole.astype(int) - shifted).mean() > np.abs(whole.astype(int) - reduced).mean() * 1.5


def test_a_video_smaller_than_the_window_lies_on_the_mean_colour():
    frame, labels = painted(40, 40)
    labels[5:30, 5:30] = 1
    matrix = choose_window(labels, 97, rng(), (1.0, 1.0), 40)
    out = warped(frame, matrix, 97)
    assert (out == np.array(FILL, np.uint8)).all(-1).mean() > 0.5 and (warped(labels, matrix, 97) == 1).sum() > 100


@pytest.mark.parametrize("seed", range(5))
def test_static_motion_moves_picture_and_mask_alike(seed):
    frame, labels = painted()
    moved, moved_labels = moved_image(frame, labels, 97, rng(seed), moves=True)
    assert moved.shape == (97, 97, 3) and agreement(moved, moved_labels) > 0.97
    still, _ = moved_image(frame, labels, 97, rng(seed), moves=False)
    assert not np.array_equal(moved, still)


def test_no_jitter_changes_nothing_and_some_does():
    frame = rng().integers(0, 255, (30, 40, 3)).astype(np.uint8)
    assert np.abs(jittered(frame, rng(), (0, 0, 0, 0)).astype(int) - frame).max() <= 1
    assert np.abs(jittered(frame, rng(), (0.4, 0.4, 0.2, 0.1)).astype(int) - frame).mean() > 2


def test_a_turn_of_hue_keeps_the_brightness():
    frame = np.full((8, 8, 3), (120, 90, 60), np.uint8)
    turned = jittered(frame, rng(3), (0, 0, 0, 0.1))
    weights = np.array([0.299, 0.587, 0.114])
    assert abs(turned[0, 0] @ weights - frame[0, 0] @ weights) < 2 and not np.array_equal(turned, frame)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_colour_changes_keep_shape_and_type(version):
    frame = rng().integers(0, 255, (30, 40, 3)).astype(np.uint8)
    for seed in range(10):
        out = recoloured(frame, rng(seed), version)
        assert out.shape == frame.shape and out.dtype == np.uint8


def test_objects_are_numbered_in_order_small_and_later_ones_dropped_and_255_kept():
    first = np.zeros((40, 40), np.uint8)
    first[:15, :15], first[20:35, :15], first[0, 39], first[39] = 7, 3, 9, 255
    later = np.full((40, 40), 5, np.uint8)
    later[0, :3] = 7
    clip, count = numbered(Clip([], [first, later]), rng())
    assert count == 2
    assert set(np.unique(clip.labels[0])) == {0, 1, 2, 255} and clip.labels[0][25, 0] == 1 and clip.labels[0][0, 0] == 2
    assert set(np.unique(clip.labels[1])) == {0, 2}


def test_at_most_ten_objects_stay():
    labels = np.kron(np.arange(16).reshape(4, 4), np.ones((12, 12))).astype(np.uint8)
    clip, count = numbered(Clip([], [labels]), rng())
    assert count == 10 and clip.labels[0].max() == 10


def test_merging_pastes_the_objects_alone():
    frame, labels = painted()
    other, blank = np.full_like(frame, 200), np.zeros_like(labels)
    blank[60:100, 100:150] = 2
    blank[:5] = 255
    result = merged(Clip([frame], [labels]), Clip([other], [blank]))
    assert (result.frames[0][60:100, 100:150] == 200).all() and (result.frames[0][:5] == frame[:5]).all()
    assert result.labels[0][70, 110] == 12 and result.labels[0][40, 70] == 1 and result.labels[0][0, 0] == 0


def test_what_leaves_is_away_for_one_stretch_and_may_come_back():
    frame, labels = painted()
    clip = Clip([frame + index for index in range(6)], [labels] * 6)
    elsewhere = Clip([np.full_like(frame, 200)] * 6, [np.ones_like(labels)] * 6)
    stretches = []
    for seed in range(60):
        pasted, scene = away(clip, rng(seed)), away(clip, rng(seed), elsewhere)
        gone = [place for place in range(6) if not pasted.labels[place].any()]
        assert gone and gone[0] > 0 and gone == list(range(gone[0], gone[-1] + 1))
        stretches.append((gone[0], gone[-1]))
        for place in range(6):
            assert np.array_equal(pasted.frames[place], clip.frames[place])
            assert np.array_equal(scene.labels[place], pasted.labels[place])
            assert np.array_equal(scene.frames[place], (elsewhere if place in gone else clip).frames[place])
    assert {(1, 1), (1, 5), (5, 5), (4, 4)} <= set(stretches)
    assert 20 < sum(last < 5 for _, last in stretches) < 40, "half of them come back"
    assert clip.labels[5] is labels, "the clip itself stays"


def test_mirror_twice_is_nothing():
    frame, labels = painted()
    clip = Clip([frame], [labels])
    twice = mirrored(mirrored(clip))
    assert np.array_equal(twice.frames[0], frame) and np.array_equal(twice.labels[0], labels)
    assert not np.array_equal(mirrored(clip).labels[0], labels)


@pytest.mark.parametrize("seed", range(8))
def test_an_object_is_cut_alike_in_all_frames(seed):
    _, first = painted()
    second = np.roll(first, (12, 30), (0, 1))
    first[:20, :20] = second[:20, :20] = 255
    cut = cut_in_two([first, second], rng(seed))
    assert (first == 1).sum() == 3000  # what was given is as it was
    for before, after in zip((first, second), cut, strict=True):
        assert ((after == 255) == (before == 255)).all() and set(np.unique(after[before == 1])) in ({0, 1}, {1, 2})
        assert (after[before != 1] == before[before != 1]).all()
        assert 0.28 < (after == 1).sum() / 3000 < 0.72
    assert (np.roll(cut[0], (12, 30), (0, 1))[second == 1] == cut[1][second == 1]).all()  # it moved: so did the cut


def test_without_an_object_nothing_is_cut():
    empty = np.zeros((10, 10), np.uint8)
    assert cut_in_two([empty], rng())[0] is empty


@pytest.mark.parametrize("seed", range(5))
def test_a_camera_starts_at_the_centre_and_wanders_a_little(seed):
    path = camera_path(6, 101, rng(seed))
    centre, corner = np.array([50, 50, 1]), np.array([100, 50, 1])
    assert np.allclose(path[0] @ centre, centre)
    assert all(0.7 < np.linalg.det(view[:2, :2]) < 1.4 and np.allclose(view[2], [0, 0, 1]) for view in path)
    turn = np.degrees(np.arctan2(*(path[0] @ corner - centre)[1::-1]))
    assert 0 < abs(turn) < 15.1  # the edge along x shows the rotation alone
    for before, after in pairwise(path):  # each frame close to the one before, none the same
        step = after @ np.linalg.inv(before)
        assert 0 < np.linalg.norm((step @ centre - centre)[:2]) < 5 * 0.03 * 101 * np.sqrt(2)
        assert abs(np.log(np.linalg.det(step[:2, :2]))) < 2 * 5 * 0.03
