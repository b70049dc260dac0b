"""Run a predictor over videos: decode ahead, segment, write behind, one video or several at once."""

from __future__ import annotations

import json
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from common.errors import UserError
from common.files import write_json, written_whole
from common.progress import Progress
from configs import Config
from datasets.readers import write_labels
from inference.lanes import Lane
from inference.predictor import Picture, Predictor
from inference.results import Cost, Outputs, beside, discard, read_record, take_over, with_earlier
from inference.sources import Frame, Source, decode_ahead
from inference.writer import Overlays, Writer, probabilities_to_write, write_scores
from models import FAMILIES
from models.precision import autocast_type
from models.preprocess import input_size


class Stopped(Exception):
    """Another video of this run failed, or the run is to end."""


def run_videos(predictor: Predictor, sources: Sequence[Source], outputs: Outputs, streams: int = 1) -> Cost:
    """Segment videos, ``streams`` at once over one network; each video's record is written when it is whole.

    Raises:
        UserError: a frame or mask that cannot be read; what was finished stays, the rest can be continued.
        OSError: a file that cannot be written.
    """
    total = sum(len(source) for source in sources) if all(len(source) for source in sources) else None
    begun, stop, lock = time.perf_counter(), threading.Event(), threading.Lock()
    free: queue.SimpleQueue[tuple[Predictor, Lane]] = queue.SimpleQueue()
    for _ in range(min(streams, max(1, len(sources)))):
        free.put((predictor.fork(), Lane(predictor.device)))
    with Progress(total, "segmenting") as progress:
        def advance() -> None:
            if stop.is_set():
                raise Stopped
            with lock:
                progress.advance()

        def work(source: Source) -> None:
            wanted = with_earlier(outputs, source.name)
            anew = read_record(outputs, source.name) is not None
            made = beside(wanted, source.name) if anew else wanted
            discard(made, source.name)
            own, lane = free.get()
            try:
                record = segment_video(own, source, made, advance, lane)
            finally:
                free.put((own, lane))
            if anew:
                take_over(made, outputs, source.name)
            write_json(outputs.record(source.name), record)

        if streams == 1:
            for source in sources:
                work(source)
        else:
            with ThreadPoolExecutor(streams) as pool:
                futures = [pool.submit(work, source) for source in sources]
                try:
                    for future in as_completed(futures):
                        future.result()
                except BaseException:  # also SIGTERM: the videos in work stop at their next frame
                    stop.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        return Cost(progress.done, time.perf_counter() - begun, peak_bytes(predictor.device))


def segment_video(predictor: Predictor, source: Source, outputs: Outputs,
                  advance: Callable[[], None] = lambda: None, lane: Lane | None = None) -> dict[str, Any]:
    """Segment one video from its first frame to its last; one PNG for every frame.

    Returns:
        the video's record: what it was, frames, size, seconds of the model and of the whole, bytes of its memory.
    """
    begun, count, scored, started = time.perf_counter(), 0, 0, False
    lane = lane or Lane(predictor.device)
    lane.begin_video()
    predictor.keep_probabilities = outputs.scores
    predictor.inspect = outputs.inspect
    size: tuple[int, ...] = ()
    with ExitStack() as stack:
        stack.enter_context(lane.active())
        films = film_writer = None
        if outputs.overlays:
            films = Overlays(outputs.overlays_of(source.name), outputs.film(source.name), source.rate)
            stack.callback(films.abandon)
            film_writer = stack.enter_context(Writer())
        log = stack.enter_context(_log(outputs, source.name))
        writer = stack.enter_context(Writer(lane.writers))
        staged = ((frame, lane.stage(frame.image)) for frame in source)
        for frame, picture in stack.enter_context(closing(decode_ahead(staged))):
            size = size or frame.image.shape[:2]
            _check(frame, size)
            with lane.timed():
                labels, started = _segment(predictor, frame, picture, started)
                landed = lane.land(labels)
            writer.put(_write_mask, outputs.masks_of(source.name) / f"{frame.stem}.png", landed)
            if outputs.scores and started:
                scored += 1
                scores = probabilities_to_write(predictor.probabilities, frame.given, landed(), predictor.object_ids)
                writer.put(write_scores, outputs.scores_of(source.name) / f"{frame.stem}.npz", scores,
                           predictor.object_ids)
            if films and film_writer:
                film_writer.put(_add_picture, films, frame, landed)
            if log and started:
                log.write(json.dumps({"stem": frame.stem, **predictor.inspection()}) + "\n")
            count += 1
            advance()
        if not started:
            raise UserError(f"{source.name}: {'no mask gives an object' if count else 'has no frames'}; check the "
                            "folders of the video")
        if not predictor.finite():
            raise UserError(f"{source.name}: the network's outputs are no numbers (NaN or infinite); set "
                            "inference.amp=none, or bf16 in place of fp16, and another --output")
        if films and film_writer:
            film_writer.put(films.finish)
        model_seconds = lane.seconds()
    return {"video": source.name, "frames": count, "height": size[0], "width": size[1],
            "objects": len(predictor.object_ids), "memory_bytes": predictor.num_bytes(),
            "model_seconds": round(model_seconds, 4), "seconds": round(time.perf_counter() - begun, 4),
            "model_frames_per_second": round(count / model_seconds, 3), "peak_bytes": peak_bytes(predictor.device),
            "scores": scored, "fingerprint": source.fingerprint()}


def _segment(predictor: Predictor, frame: Frame, picture: Picture, started: bool) -> tuple[Picture | np.ndarray, bool]:
    """The label map of the frame, whose image is ``picture``, and whether the video has begun (an object was given)."""
    gives = frame.given is not None and bool(((frame.given > 0) & (frame.given < 255)).any())
    if not started:
        if not gives:
            return np.zeros(frame.image.shape[:2], np.uint8), False
        return predictor.start(picture, frame.given), True
    return (predictor.add_objects(picture, frame.given) if gives else predictor.step(picture)), True


def _write_mask(path: Path, labels: Callable[[], np.ndarray]) -> None:
    write_labels(path, labels())


def _add_picture(films: Overlays, frame: Frame, labels: Callable[[], np.ndarray]) -> None:
    films.add(frame.stem, frame.image, labels())


def _check(frame: Frame, size: tuple[int, ...]) -> None:
    if frame.image.shape[:2] != size:
        raise UserError(f"{frame.where}: {frame.image.shape[1]}x{frame.image.shape[0]} pixels in a video of "
                        f"{size[1]}x{size[0]}; all frames of a video must have one size")
    if frame.given is not None and frame.given.shape != size:
        raise UserError(f"mask of {frame.where}: {frame.given.shape[1]}x{frame.given.shape[0]} pixels for a frame of "
                        f"{size[1]}x{size[0]}; give a mask of the frame's size")


@contextmanager
def _log(outputs: Outputs, name: str) -> Iterator[IO[str] | None]:
    """The lines of OUT/inspect/<video>.jsonl, whole or absent; None where nobody asked for them."""
    if not outputs.inspect:
        yield None
        return
    with written_whole(outputs.log(name)) as beside, open(beside, "w", encoding="utf-8") as stream:
        yield stream


def expected_bytes(config: Config, size: tuple[int, int], frames: int, device: torch.device) -> int:
    """Bytes that an unbounded memory will hold at the end of a video, for one group of objects in each view.

    Args:
        size: (H, W) of the video; frames: how many it has.
    """
    settings, model = config.inference, config.model
    number_bytes = 4 if autocast_type(settings.amp, device) is None else 2
    stored = 1 + (frames - 1) // config.memory.gap
    tokens = 0
    for scale in settings.scales:
        h, w = input_size(*size, model.align_corners, settings.short_limit, settings.long_edge, scale)
        tokens += (h // 16 + model.align_corners) * (w // 16 + model.align_corners) * (2 if settings.flip else 1)
    entry = FAMILIES[model.family].block_type.entry_channels(model.channels)
    return stored * tokens * model.blocks * entry * number_bytes


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: what the allocator gave on an accelerator, the process's resident set elsewhere.

    CUDA graphs keep what they need between their tensors for themselves; the allocator counts it as free.
    """
    if device.type == "cuda":
        kept = sum(segment["total_size"] - segment["allocated_size"] for segment in torch.cuda.memory_snapshot()
                   if tuple(segment["segment_pool_id"]) != (0, 0))
        return torch.cuda.max_memory_allocated(device) + kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
