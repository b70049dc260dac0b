"""Training clips of videos: which frames, then one geometric and one colour pass (facts, section 8.8)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from common.errors import UserError, UserErrors
from configs.schema import SourceConfig, TrainConfig
from datasets.augment import Clip, camera_path, choose_window, cut_in_two, mirrored, numbered, recoloured, warped
from datasets.check import check_videos
from datasets.readers import read_image, read_labels
from datasets.records import Video, open_videos

FOREGROUND = 200  # pixels that a reference frame should show
LOOKED_AT = 96  # frames of a video whose masks are read to find an object that leaves and comes back


class VideoClips:
    """Clips of the videos of one data root. Frames without a mask file are not used."""

    def __init__(self, source: SourceConfig, train: TrainConfig):
        self.source, self.train = source, train
        found = open_videos(source.root, source.split, format=source.format, objects="late")  # any frame's may be given
        problems = check_videos(found)
        if problems:
            raise UserErrors(problems)
        self.notes = [*problems.notes, *problems.warnings]  # for people
        self.videos = [(video, stems) for video in found.videos if len(stems := _labelled(video)) >= 2]
        if left := len(found.videos) - len(self.videos):
            self.notes.append(f"{source.root}: {left} videos of split '{source.split}' have fewer than two frames with "
                              "masks; they are not used")
        if not self.videos:
            raise UserError(f"{source.root}: no video of split '{source.split}' has two frames with masks; "
                            "training needs masks on many frames")
        self._presences: dict[int, tuple[list[str], np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        return self.videos[index][0].name

    def clip(self, index: int, rng: np.random.Generator) -> tuple[Clip, int]:
        """A random clip of video ``index`` at ``train.crop`` pixels, its objects numbered 1..n, and n (possibly 0)."""
        train = self.train
        video, stems = self.videos[index]
        chosen = self._with_return(index, rng) if rng.random() < train.returns else None
        chosen, labels = chosen or _stretch(video, stems, self.source.max_gap, train, rng)
        if train.cut and rng.random() < train.cut:
            labels = cut_in_two(labels, rng)
        matrix = choose_window(labels[0], train.crop, rng, train.scales, train.short_edge)
        matrices = [matrix] * len(labels)
        if train.camera and rng.random() < train.camera:
            matrices = [view[:2] @ np.vstack([matrix, [0, 0, 1]]) for view in camera_path(len(labels), train.crop, rng)]
        frames = []
        for stem, one, moved in zip(chosen, labels, matrices, strict=True):
            frame, reduced = _read_frame(video.image_path(stem), one.shape, matrix[0, 0])
            frames.append(warped(frame, moved, train.crop, reduced))
        labels = [warped(one, moved, train.crop) for one, moved in zip(labels, matrices, strict=True)]
        clip, objects = numbered(Clip(frames, labels), rng)
        if train.augmentation == "v2":
            clip.frames = [recoloured(frame, rng, "v2") for frame in clip.frames]
        return (mirrored(clip) if rng.random() < 0.5 else clip), objects

    def _with_return(self, index: int, rng: np.random.Generator) -> tuple[list[str], list[np.ndarray]] | None:
        """Frames in which an object of the first is absent later on and back in the last; None if there are none."""
        video, stems = self.videos[index]
        if index not in self._presences:
            looked = [stems[place] for place in np.linspace(0, len(stems) - 1, min(len(stems), LOOKED_AT)).astype(int)]
            counts = [np.bincount(_labels(video, stem).ravel(), minlength=256) > 0 for stem in looked]
            self._presences[index] = looked, np.stack(counts)
        looked, present = self._presences[index]
        absences = [(one, start, end) for one in range(1, 255) for start, end in _absences(present[:, one])]
        if not absences:
            return None
        one, start, end = absences[rng.integers(len(absences))]
        count = self.train.frames
        first = rng.choice(np.flatnonzero(present[:start, one]))
        last = end + rng.choice(np.flatnonzero(present[end:, one]))
        gone = rng.integers(start, end)
        others = [place for place in range(first + 1, last) if place != gone]
        middle = rng.choice(others, min(count - 3, len(others)), replace=False).tolist() if count > 3 else []
        places = sorted([first, gone, *middle]) + [last] * (count - 2 - len(middle))
        chosen = [looked[place] for place in places[:count]]
        return chosen, [_labels(video, stem) for stem in chosen]


def _labelled(video: Video) -> tuple[str, ...]:
    masks = set(video.masks)
    return tuple(stem for stem in video.frames if stem in masks)


def _stretch(video: Video, stems: tuple[str, ...], max_gap: int, train: TrainConfig, rng: np.random.Generator,
             ) -> tuple[list[str], list[np.ndarray]]:
    """A reference with some foreground, then frames at random gaps; the end of the video reflects.

    Up to five tries until no later frame shows an object that the reference lacks, unless ``train.newcomers``.
    """
    if rng.random() < train.reverse:
        stems = stems[::-1]
    read: dict[str, np.ndarray] = {}

    def labels_of(stem: str) -> np.ndarray:
        if stem not in read:
            read[stem] = _labels(video, stem)
        return read[stem]

    for _ in range(5):
        reference = 0
        for _ in range(20):
            place = int(rng.integers(len(stems)))
            labels = labels_of(stems[place])
            if ((labels > 0) & (labels < 255)).sum() > FOREGROUND:
                reference = place
                break
        places = reference + np.concatenate([[0], np.cumsum(rng.integers(1, max_gap + 1, train.frames - 1))])
        chosen = [stems[_reflected(int(place), len(stems))] for place in places]
        ids = [set(np.flatnonzero(np.bincount(labels_of(stem).ravel())[:255])) for stem in chosen]
        if train.newcomers or set().union(*ids[1:]) <= ids[0] | {0}:
            break
    return chosen, [labels_of(stem) for stem in chosen]


def _reflected(place: int, length: int) -> int:
    place %= max(2 * length - 2, 1)
    return place if place < length else 2 * length - 2 - place


def _absences(present: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the stretches in which an object is absent between two in which it is present."""
    edges = np.flatnonzero(np.diff(present.astype(np.int8)))
    return [(int(a) + 1, int(b) + 1) for a, b in pairwise(edges) if present[a] and present[b + 1]]


def _labels(video: Video, stem: str) -> np.ndarray:
    return read_labels(video.mask_path(stem), video.binary)


def _read_frame(path: Path, shape: tuple[int, int], scale: float) -> tuple[np.ndarray, int]:
    """An RGB frame, and by how much it was reduced: a JPEG needs not be decoded at full size to be shrunk.

    Other formats save nothing by it, and OpenCV rounds their sizes otherwise.
    """
    jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    reduced = 4 if jpeg and scale <= 0.25 else 2 if jpeg and scale <= 0.5 else 1
    if reduced > 1:
        frame = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_4 if reduced == 4 else cv2.IMREAD_REDUCED_COLOR_2)
        frame = None if frame is None else cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    else:
        frame = read_image(path)
    if frame is None or tuple(-(-edge // reduced) for edge in shape) != frame.shape[:2]:
        size = "unreadable" if frame is None else f"{frame.shape[1] * reduced}x{frame.shape[0] * reduced}"
        raise UserError(f"{path}: the image is {size}, its mask {shape[1]}x{shape[0]}; "
                        "run python -m tools.check_dataset on the data root")
    return frame, reduced
