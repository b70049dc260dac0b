"""A generated scene for timing: textured boxes that move over a textured ground; and a predictor that is told where."""

from __future__ import annotations

from typing import Any

import numpy as np


def moving_boxes(size: tuple[int, int], frames: int, objects: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames (H, W, 3) uint8 and label maps (H, W) uint8, deterministic; every object is visible in every frame."""
    rng = np.random.default_rng(0)
    height, width = size
    ground = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    side = min(height, width) // 4
    patches = rng.integers(0, 256, (objects, side, side, 3), dtype=np.uint8)
    pictures, labels = [], []
    for time in range(frames):
        picture, label = ground[:height, :width].copy(), np.zeros(size, np.uint8)
        for index in range(objects):
            y = int((height - side) * (0.5 + 0.5 * np.sin(0.05 * time + 2.1 * index)))
            x = int((width - side) * (0.5 + 0.5 * np.cos(0.04 * time + 1.3 * index)))
            picture[y : y + side, x : x + side] = patches[index]
            label[y : y + side, x : x + side] = index + 1
        pictures.append(picture)
        labels.append(label)
    return pictures, labels


def fed(predictor: Any) -> Any:
    """The predictor, with its attribute ``truth`` (1, H, W) fed to its memory instead of its own masks."""
    from models.preprocess import resize_labels

    assert hasattr(predictor, "_to_view"), "where its own masks go into the memory"

    class Fed(type(predictor)):
        def _to_view(self, labels, view):
            return resize_labels(self.truth, view.size)

    predictor.__class__ = Fed
    return predictor
