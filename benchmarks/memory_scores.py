"""Scores of one long video: J&F over time, after long absences, and how it decays (facts: LVOS metrics, section 4)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import numpy as np

from datasets.readers import given_labels, read_image, read_labels
from datasets.records import Video
from evaluation.metrics import contour_accuracy, region_similarity
from inference import Predictor

LONG_ABSENCE = 100  # decoded frames
AFTER = 10  # visible frames after a return that count
TENTH = 0.1  # share of the visible frames at each end, for the decay


def segment_video(predictor: Predictor, video: Video) -> dict[str, Any]:
    """Segment a video and score it; plain values.

    Returns:
        ``objects``: for each object :func:`object_scores`; ``seconds``: mean processor time of this thread a frame,
        after the first ten; ``bytes``: of the memory at the end, and ``bytes_at_300``.
    """
    given = given_labels(video)
    truths, predictions, times, held = [], [], [], {}
    began = False
    for number, stem in enumerate(video.frames):
        frame, truth = read_image(video.image_path(stem)), read_labels(video.mask_path(stem))
        start = time.thread_time()
        if stem in given:
            labels = predictor.add_objects(frame, given[stem]) if began else predictor.start(frame, given[stem])
            began = True
        else:
            labels = predictor.step(frame) if began else np.zeros_like(truth)
        times.append(time.thread_time() - start)
        truths.append(truth)
        predictions.append(labels)
        if number == 300:
            held["bytes_at_300"] = predictor.num_bytes()
    objects = {str(value): object_scores(truths, predictions, value, start)
               for value, start in starts(video, given).items()}
    return {"objects": objects, "seconds": float(np.mean(times[10:])), "bytes": predictor.num_bytes(), **held}


def silent_scores(video: Video) -> list[float]:
    """The J&F of each object, 0..1, if nothing were ever predicted: the share of its scored frames that lack it."""
    truths = [read_labels(video.mask_path(stem)) for stem in video.frames]
    return [fmean(not (truth == value).any() for truth in truths[start + 1 : -1])
            for value, start in starts(video, given_labels(video)).items()]


def starts(video: Video, given: dict[str, np.ndarray]) -> dict[int, int]:
    """The number of the frame in which each object is given, by its id."""
    return dict(sorted((int(value), video.frames.index(stem)) for stem, labels in given.items()
                       for value in np.unique(labels) if value))


def object_scores(truths: list[np.ndarray], predictions: list[np.ndarray], value: int, start: int) -> dict[str, Any]:
    """Scores of one object from the frame after its first to the last but one, 0..1 each.

    Returns:
        ``jf``: mean J&F (a frame without the object and without a prediction scores 1); ``visible``: mean over the
        frames that show the object; ``after``: mean over the first frames after each absence of 100 and more, None
        without one; ``drop``: mean J&F of the first tenth of the visible frames less that of the last tenth;
        ``false_alarm``: share of the absent frames with a prediction, None without one; ``curve``: J&F of each frame.
    """
    curve, visible, alarms = [], [], []
    for truth, prediction in zip(truths[start + 1 : -1], predictions[start + 1 : -1], strict=True):
        true, predicted = truth == value, prediction == value
        visible.append(bool(true.any()))
        curve.append((region_similarity(predicted, true) + contour_accuracy(predicted, true)) / 2)
        if not visible[-1]:
            alarms.append(bool(predicted.any()))
    seen = [score for score, there in zip(curve, visible, strict=True) if there]
    tenth = max(5, round(TENTH * len(seen)))
    returns = [fmean(curve[place] for place in window) for window in frames_after_absences(visible)]
    return {"jf": fmean(curve), "visible": fmean(seen) if seen else None,
            "after": fmean(returns) if returns else None,
            "drop": fmean(seen[:tenth]) - fmean(seen[-tenth:]) if seen else None,
            "false_alarm": fmean(alarms) if alarms else None, "curve": [round(score, 4) for score in curve]}


def frames_after_absences(visible: Iterable[bool]) -> list[list[int]]:
    """For each absence of 100 and more frames the (at most ten) visible frames that follow it without a gap."""
    windows: list[list[int]] = []
    away, open_window = 0, False
    for place, there in enumerate(visible):
        if not there:
            away, open_window = away + 1, False
            continue
        if away >= LONG_ABSENCE:
            windows.append([])
            open_window = True
        away = 0
        if open_window and len(windows[-1]) < AFTER:
            windows[-1].append(place)
    return windows
