"""All frames of a plan, spread over processes; the scores come back as one track an object, in order of time."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np

from common.errors import UserErrors
from evaluation.frame_scores import FrameScore, FrameTask, score_frame
from evaluation.protocols import PROPOSALS, Plan, ScoredVideo

CHUNK = 8  # frames that go to a worker at once
WAITING = 4  # chunks a worker that are under way or waiting: bounds the memory, keeps every worker busy


@dataclass
class Track:
    """The scores of one object in its m scored frames, in order of time.

    ``J``, ``F``: (p, m) float64; ``area_predicted``: (p, m) int64, where p is 1, or 20 proposals. ``area_true``:
    (m,) int64; ``box``: (m, 4) int32; ``centre``: (m, 2) float32; ``size``: (m, 2) int32, height and width;
    ``taken_for``: (m,) int16, position in the video of the true object that the prediction covers, -1 for none.
    """

    J: np.ndarray
    F: np.ndarray
    area_predicted: np.ndarray
    area_true: np.ndarray
    box: np.ndarray
    centre: np.ndarray
    size: np.ndarray
    taken_for: np.ndarray

    @classmethod
    def empty(cls, proposals: int, frames: int) -> Track:
        """A track of zeros."""
        shape = proposals, frames
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64), np.zeros(frames, np.int64),
                   np.zeros((frames, 4), np.int32), np.zeros((frames, 2), np.float32),
                   np.zeros((frames, 2), np.int32), np.full(frames, -1, np.int16))


@dataclass
class VideoScores:
    """The tracks of a video's objects, in the plan's order, and what the audit should know of its files."""

    tracks: list[Track]
    foreign_truth: Counter[int] = field(default_factory=Counter)  # value -> frames that hold it
    foreign_prediction: Counter[int] = field(default_factory=Counter)
    only_255: int = 0  # predictions with 0 and 255 only


@dataclass
class AllScores:
    """One entry a video of the plan; the number of pairs of files, and a hash over each side's names and bytes."""

    videos: list[VideoScores]
    frames: int
    truth_hash: str
    prediction_hash: str


def score_all(plan: Plan, workers: int, advance: Callable[[int], None] | None = None) -> AllScores:
    """Score every frame of the plan.

    Args:
        plan: what to score.
        workers: number of processes; 1 stays in this one. No number depends on it.
        advance: called with the number of frames that are done since the last call.

    Raises:
        UserErrors: everything that is wrong with any needed file, and the plan's own problems; nothing is scored then.
    """
    problems = list(plan.problems) + _missing_folders(plan)
    tasks = _tasks(plan)
    scores = [VideoScores([Track.empty(PROPOSALS if plan.task == "unsupervised_multiple" else 1, len(scored.stems))
                           for scored in video.objects]) for video in plan.videos]
    places = [[{stem: place for place, stem in enumerate(scored.stems)} for scored in video.objects]
              for video in plan.videos]
    digests: list[dict[str, tuple[bytes, bytes]]] = [dict.fromkeys(video.stems, (b"", b"")) for video in plan.videos]
    check_only = bool(problems)
    for chunk in _spread(tasks, check_only, workers):
        for (positions, result) in chunk:
            problems += result.problems
            if not result.problems and not check_only:
                _file(result, positions, scores[result.video], places[result.video])
                digests[result.video][result.stem] = result.digests
        if advance is not None:
            advance(len(chunk))
    if problems:
        raise UserErrors(problems)
    truth, prediction = hashlib.sha256(), hashlib.sha256()
    for video, found in zip(plan.videos, digests, strict=True):
        for stem, (of_truth, of_prediction) in found.items():
            name = f"{video.name}/{stem}\n".encode()
            truth.update(name + of_truth)
            prediction.update(name + of_prediction)
    return AllScores(scores, sum(map(len, digests)), truth.hexdigest(), prediction.hexdigest())


def _missing_folders(plan: Plan) -> list[str]:
    problems = []
    for video in plan.videos:
        for folder, what, remedy in ((video.truth, "true masks", ""),
                                     (video.prediction, "predictions", ", or score a part of the split (--videos)")):
            if video.stems and not folder.is_dir():
                problems.append(f"{folder}: the folder with {len(video.stems)} {what} is missing; add it{remedy}")
    return problems


def _tasks(plan: Plan) -> list[FrameTask]:
    tasks = []
    for position, video in enumerate(plan.videos):
        known = frozenset(scored.id for scored in video.objects)
        for stem, objects in _objects_of_frames(video).items():
            tasks.append(FrameTask(position, stem, video.truth / f"{stem}.png", video.prediction / f"{stem}.png",
                                   objects, known, plan.task, video.binary))
    return tasks


def _objects_of_frames(video: ScoredVideo) -> dict[str, tuple[tuple[int, int], ...]]:
    frames: dict[str, list[tuple[int, int]]] = {stem: [] for stem in video.stems}
    for position, scored in enumerate(video.objects):
        for stem in scored.stems:
            frames[stem].append((position, scored.id))
    return {stem: tuple(objects) for stem, objects in frames.items()}


def _spread(tasks: list[FrameTask], check_only: bool, workers: int) -> Iterator[list[tuple[list[int], FrameScore]]]:
    """Yield the results of chunk after chunk, in order; at most a few chunks are in memory."""
    chunks = [tasks[start:start + CHUNK] for start in range(0, len(tasks), CHUNK)]
    workers = min(workers, len(chunks))
    if workers <= 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            for chunk in chunks:
                yield _score_chunk(chunk, check_only)
        finally:
            cv2.setNumThreads(threads)
        return
    # Spawned, not forked: the caller may hold threads or a GPU. An executor notices when a worker dies.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        under_way: list[Future[list[tuple[list[int], FrameScore]]]] = []
        try:
            for chunk in chunks:
                under_way.append(pool.submit(_score_chunk, chunk, check_only))
                if len(under_way) >= WAITING * workers:
                    yield under_way.pop(0).result()
            while under_way:
                yield under_way.pop(0).result()
        finally:
            for future in under_way:
                future.cancel()


def _score_chunk(chunk: list[FrameTask], check_only: bool) -> list[tuple[list[int], FrameScore]]:
    return [([position for position, _ in task.objects], score_frame(task, check_only)) for task in chunk]


def _file(result: FrameScore, positions: list[int], video: VideoScores, places: list[dict[str, int]]) -> None:
    """Put one frame's scores into the tracks of its objects."""
    assert result.J is not None and result.F is not None and result.taken_for is not None
    assert result.area_predicted is not None and result.area_true is not None
    assert result.box is not None and result.centre is not None
    for n, position in enumerate(positions):
        track, place = video.tracks[position], places[position][result.stem]
        track.J[:, place], track.F[:, place] = result.J[:, n], result.F[:, n]
        track.area_predicted[:, place] = result.area_predicted[:, n]
        track.area_true[place], track.box[place] = result.area_true[n], result.box[n]
        track.centre[place], track.size[place] = result.centre[n], result.size
        track.taken_for[place] = positions[result.taken_for[n]] if result.taken_for[n] >= 0 else -1
    video.foreign_truth.update(result.foreign[0])
    video.foreign_prediction.update(result.foreign[1])
    video.only_255 += result.only_255
