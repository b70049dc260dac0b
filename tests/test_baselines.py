"""The trivial baselines: copied masks stay, carried masks follow a moving picture, late objects join."""

import cv2
import numpy as np
from PIL import Image

from datasets.baselines import copy_first, flow
from datasets.readers import read_labels, write_labels
from datasets.records import open_videos

SIZE = (96, 160)


def moving_square(root, frames=6, speed=3):
    """A textured square that moves right over a still texture; object 2 appears in the fourth frame, at rest."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8), (9, 9), 0)
    square = 60 + cv2.GaussianBlur(rng.integers(0, 255, (48, 48, 3)).astype(np.uint8), (9, 9), 0)
    for index in range(frames):
        image, labels = ground.copy(), np.zeros(SIZE, np.uint8)
        x = 8 + speed * index
        image[20:68, x : x + 48] = square
        labels[20:68, x : x + 48] = 1
        if index >= 3:
            labels[76:90, 100:120] = 2
        stem = f"{1 + 5 * index:08d}"
        (root / "val/JPEGImages/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "val/JPEGImages/a" / f"{stem}.jpg", quality=95)
        write_labels(root / "val/Annotations/a" / f"{stem}.png", labels)
    return open_videos(root, "val")


def test_copy_repeats_the_given_masks_and_adds_late_objects(tmp_path):
    found = moving_square(tmp_path)
    done = []
    copy_first(found, tmp_path / "out", done.append)
    video = found.videos[0]
    masks = [read_labels(tmp_path / "out/masks/a" / f"{stem}.png") for stem in video.frames]
    assert len(done) == 6
    for index, labels in enumerate(masks):
        assert np.array_equal(labels == 1, masks[0] == 1)
        assert (labels == 2).any() == (index >= 3)


def test_flow_follows_the_object(tmp_path):
    found = moving_square(tmp_path)
    flow(found, tmp_path / "out")
    last = found.videos[0].frames[-1]
    predicted = read_labels(tmp_path / "out/masks/a" / f"{last}.png") == 1
    truth = read_labels(found.videos[0].mask_path(last)) == 1
    assert (predicted & truth).sum() / (predicted | truth).sum() > 0.8


def test_the_published_numbers_of_the_shared_clips_come_out(shared, tmp_path):
    from evaluation.metrics import region_similarity

    found = open_videos(shared / "data/davis16", "val", videos=["car-shadow"])
    expected = {"copy_first": 40.8, "flow": 61.6}  # J, from the README of the clips
    for baseline in (copy_first, flow):
        baseline(found, tmp_path / baseline.__name__)
        video = found.videos[0]
        masks = tmp_path / baseline.__name__ / "masks" / video.name
        scores = [region_similarity(read_labels(masks / f"{stem}.png") > 0, read_labels(video.mask_path(stem)) > 0)
                  for stem in video.frames[1:-1]]
        assert abs(100 * np.mean(scores) - expected[baseline.__name__]) < 1.0
