"""Random changes of whole clips: one geometric pass with OpenCV, one linear colour pass, and pasting of another clip.

A clip is a list of frames (H, W, 3) uint8 RGB and a list of label maps (H, W) uint8 (255 = ignored). Every function
draws from the numpy generator that it is given. Numbers: facts of aot-benchmark, dataloaders/video_transforms.py and
image_transforms.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

FILL = (124, 116, 104)  # the mean colour of ImageNet
MOST_OBJECTS = 10
SEEN = 100  # pixels that an object must have in the reference frame
_GREY = np.array([0.299, 0.587, 0.114])
# RGB to YIQ, in which a change of hue is a rotation.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_RGB = np.linalg.inv(_YIQ)


@dataclass
class Clip:
    """Frames (H, W, 3) uint8 and label maps (H, W) uint8, one of each for every time; the first is the reference."""

    frames: list[np.ndarray]
    labels: list[np.ndarray]


# Geometry.


def choose_window(reference: np.ndarray, size: int, rng: np.random.Generator, scales: tuple[float, float],
                  short_edge: int) -> np.ndarray:
    """Where to cut a window of size x size out of a video whose short edge is scaled to U(scales) * ``short_edge``.

    Up to five windows are tried until the reference (label map) shows an object of more than 100 pixels. Where the
    scaled video is smaller than the window, it will lie at a random place in it on the mean colour.

    Returns:
        (2, 3) matrix from source to window pixels, for :func:`warped`
    """
    height, width = reference.shape
    scale = rng.uniform(*scales) * short_edge / min(height, width)
    for _ in range(5):
        # Corner of the window on the scaled frame; negative where the frame is smaller than the window.
        top, left = (rng.integers(0, edge - size + 1) if edge > size else -rng.integers(0, size - edge + 1)
                     for edge in (round(height * scale), round(width * scale)))
        # Pixel centres: output x + left + 0.5 = scale * (source x + 0.5).
        matrix = np.array([[scale, 0, 0.5 * scale - 0.5 - left], [0, scale, 0.5 * scale - 0.5 - top]])
        if (np.bincount(warped(reference, matrix, size).ravel(), minlength=256)[1:255] > SEEN).any():
            break
    return matrix


def warped(image: np.ndarray, matrix: np.ndarray, size: int, reduced: int = 1) -> np.ndarray:
    """Warp a frame (cubic, or linear where it shrinks much) or a label map (nearest) to size x size.

    ``matrix``: (2, 3) from pixels of the source to pixels of the output; ``reduced``: the image is 1/reduced of the
    source (a JPEG decoded at a part of its size).
    """
    if reduced > 1:  # source x + 0.5 = reduced * (image x + 0.5)
        matrix = np.column_stack([matrix[:, :2] * reduced, matrix[:, 2] + matrix[:, :2].sum(1) * (reduced - 1) / 2])
    if image.ndim == 2:
        return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_NEAREST)
    kernel = cv2.INTER_LINEAR if abs(np.linalg.det(matrix[:, :2])) < 0.5 else cv2.INTER_CUBIC
    return cv2.warpAffine(image, matrix, (size, size), flags=kernel, borderValue=FILL)


def camera_path(frames: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A viewpoint for a clip and a camera that wanders from it: matrices to put behind the window's own (ours).

    All frames share a rotation of +-15 degrees, a shear of +-8 degrees and an aspect of 0.85 to 1.17; from each frame
    to the next the camera turns, zooms and shifts a little (standard deviations: 2 degrees, 3 %, 3 % of the window).

    Returns:
        ``frames`` (3, 3) matrices from window to window pixels, that keep the centre of the first frame.
    """
    centre = np.array([[1, 0, (size - 1) / 2], [0, 1, (size - 1) / 2], [0, 0, 1]])
    stretch = np.exp(rng.uniform(-0.16, 0.16))
    shear = np.tan(np.radians(rng.uniform(-8, 8)))
    path = [_turned(np.radians(rng.uniform(-15, 15))) @ np.array([[1, shear, 0], [0, 1, 0], [0, 0, 1]])
            @ np.diag([np.sqrt(stretch), 1 / np.sqrt(stretch), 1])]
    for _ in range(frames - 1):
        step = np.exp(rng.normal(0, 0.03)) * _turned(np.radians(rng.normal(0, 2)))
        step[:2, 2], step[2, 2] = rng.normal(0, 0.03 * size, 2), 1
        path.append(step @ path[-1])
    return [centre @ view @ np.linalg.inv(centre) for view in path]


def _turned(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def mirrored(clip: Clip) -> Clip:
    """The whole clip, left and right exchanged."""
    return Clip([np.ascontiguousarray(frame[:, ::-1]) for frame in clip.frames],
                [np.ascontiguousarray(labels[:, ::-1]) for labels in clip.labels])


def moved_image(image: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator, moves: bool,
                ) -> tuple[np.ndarray, np.ndarray]:
    """One frame of a static clip: flip (p 0.3) and affine motion where it ``moves``, then a random resized crop.

    Rotation +-20 degrees, translation 10 %, scale 0.9 to 1.1, shear +-10 degrees; crop of area 0.8 to 1 and aspect
    3/4 to 4/3. All of it is one warp.
    """
    height, width = labels.shape
    total = np.eye(3)
    if moves:
        if rng.random() < 0.3:
            total = np.array([[-1.0, 0, width - 1], [0, 1, 0], [0, 0, 1]])
        angle, shear_x, shear_y = np.radians([rng.uniform(-20, 20), rng.uniform(-10, 10), rng.uniform(-10, 10)])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rng.uniform(0.9, 1.1) * turn @ np.array([[1, np.tan(shear_x)], [np.tan(shear_y), 1]])
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        shift = np.array([rng.uniform(-0.1, 0.1) * width, rng.uniform(-0.1, 0.1) * height])
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = linear, centre + shift - linear @ centre
        total = affine @ total
    top, left, crop_height, crop_width = _resized_crop(height, width, rng)
    x, y = size / crop_width, size / crop_height
    crop = np.array([[x, 0, (0.5 - left) * x - 0.5], [0, y, (0.5 - top) * y - 0.5], [0, 0, 1]])
    matrix = (crop @ total)[:2]
    return warped(image, matrix, size), warped(labels, matrix, size)


def _resized_crop(height: int, width: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """(top, left, height, width) of torchvision's RandomResizedCrop; ten tries, then the centre."""
    for _ in range(10):
        area = height * width * rng.uniform(0.8, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = np.sqrt(area * aspect), np.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            return (rng.uniform(0, height - crop_height), rng.uniform(0, width - crop_width),
                    crop_height, crop_width)
    crop_width, crop_height = min(width, height * 4 / 3), min(height, width * 4 / 3)
    return (height - crop_height) / 2, (width - crop_width) / 2, crop_height, crop_width


# Colour.


def jittered(frame: np.ndarray, rng: np.random.Generator, strengths: tuple[float, float, float, float]) -> np.ndarray:
    """Change brightness, contrast, saturation and hue at random, as one 3 x 4 matrix.

    ``strengths``: brightness, contrast and saturation are factors U(1 - s, 1 + s); hue turns by U(-s, s) of a circle.
    """
    brightness, contrast, saturation = (rng.uniform(1 - strength, 1 + strength) for strength in strengths[:3])
    angle = 2 * np.pi * rng.uniform(-strengths[3], strengths[3])
    mean = float((frame[::8, ::8].reshape(-1, 3) @ _GREY).mean()) * brightness
    grey = np.outer(np.ones(3), _GREY)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    colour = _RGB @ turn @ _YIQ @ (saturation * np.eye(3) + (1 - saturation) * grey)
    matrix = np.column_stack([colour * (contrast * brightness), np.full(3, (1 - contrast) * mean)])
    return cv2.transform(frame, matrix)  # saturates at 0 and 255


def recoloured(frame: np.ndarray, rng: np.random.Generator, version: str) -> np.ndarray:
    """Colour changes of static frames in ``v1`` (jitter), and of all frames in ``v2`` (jitter, grey, blur)."""
    if version == "v1":
        return jittered(frame, rng, (0.1, 0.1, 0.1, 0.03))
    if rng.random() < 0.8:
        frame = jittered(frame, rng, (0.4, 0.4, 0.2, 0.1))
    if rng.random() < 0.2:
        frame = cv2.transform(frame, np.outer(np.ones(3), _GREY))
    if rng.random() < 0.3:
        frame = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.1, 2.0))
    return frame


# Objects.


def merged(below: Clip, above: Clip) -> Clip:
    """Paste the objects of ``above`` onto ``below``, frame by frame; their ids rise by 10 (AOT's dynamic merge)."""
    frames, labels = [], []
    for under, under_labels, over, over_labels in zip(below.frames, below.labels, above.frames, above.labels,
                                                      strict=True):
        pasted = (over_labels > 0) & (over_labels < 255)
        frames.append(np.where(pasted[..., None], over, under))
        labels.append(np.where(pasted, over_labels + MOST_OBJECTS, under_labels).astype(np.uint8))
    return Clip(frames, labels)


def away(clip: Clip, rng: np.random.Generator, elsewhere: Clip | None = None) -> Clip:
    """All objects of ``clip`` are away for a stretch of the frames after the first, and in half of the cases come back.

    They are unlabelled there, so that :func:`merged` does not paste them. With ``elsewhere`` the camera is away: its
    frames are seen instead, and nothing in them is an object.
    """
    start, end = int(rng.integers(1, len(clip.frames))), len(clip.frames)
    if end > 2 and rng.random() < 0.5:
        start, end = sorted(1 + rng.choice(end - 1, 2, replace=False))
    frames, labels = list(clip.frames), list(clip.labels)
    for place in range(start, end):
        labels[place] = np.zeros_like(labels[place])
        if elsewhere is not None:
            frames[place] = elsewhere.frames[place]
    return Clip(frames, labels)


def cut_in_two(labels: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Cut one object of the first label map in two, along a line that leaves the same share of it on one side in all.

    Direction and share (0.3 to 0.7) are random; the part becomes another object, or background (p 0.3). It teaches
    that an object is what was given, not what usually belongs together: a rider without the bike.

    Args:
        labels: label maps (H, W) uint8 of the frames of a clip (they are not changed).
    """
    ids = [int(one) for one in np.unique(labels[0]) if 0 < one < 255]
    unused = [one for one in range(1, 255) if not any((frame == one).any() for frame in labels)] if ids else []
    if not unused:
        return labels
    chosen, angle, share = ids[rng.integers(len(ids))], rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7)
    part = 0 if rng.random() < 0.3 else unused[0]
    cut = []
    for frame in labels:
        rows, columns = np.nonzero(frame == chosen)
        frame = frame.copy()
        if len(rows):
            along = rows * np.sin(angle) + columns * np.cos(angle)
            side = along < np.quantile(along, share)
            frame[rows[side], columns[side]] = part
        cut.append(frame)
    return cut


def numbered(clip: Clip, rng: np.random.Generator, seen: int = SEEN) -> tuple[Clip, int]:
    """Keep the objects with more than ``seen`` pixels in the reference frame, ten at most, as 1..n.

    Returns:
        the clip with new ids (other objects become background, 255 stays), and n.
    """
    counts = np.bincount(clip.labels[0].ravel(), minlength=256)
    kept = [index for index in range(1, 255) if counts[index] > seen]
    if len(kept) > MOST_OBJECTS:
        kept = sorted(rng.choice(kept, MOST_OBJECTS, replace=False).tolist())
    table = np.zeros(256, np.uint8)
    table[255] = 255
    table[kept] = np.arange(1, 1 + len(kept))
    return Clip(clip.frames, [table[labels] for labels in clip.labels]), len(kept)
