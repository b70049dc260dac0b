"""Run a predictor over videos: decode ahead, segment, write behind, one video or several at once."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from typing import IO, Any

import numpy as np
import torch

from common.errors import UserError
from common.files import write_json, written_whole
from common.progress import Progress
from configs import Config
from datasets.readers import write_labels
from inference.predictor import Predictor
from inference.results import Cost, Outputs, discard
from inference.sources import Frame, Source, decode_ahead
from inference.writer import Overlays, Writer, probabilities_to_write, write_scores
from models import FAMILIES
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
    with Progress(total, "segmenting") as progress:
        def advance() -> None:
            if stop.is_set():
                raise Stopped
            with lock:
                progress.advance()

        def work(source: Source) -> None:
            discard(outputs, source.name)
            record = segment_video(predictor.fork(), source, outputs, advance)
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
                  advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Segment one video from its first frame to its last; one PNG for every frame.

    Returns:
        the video's record: what it was, frames, size, seconds of the model and of the whole, bytes of its memory.
    """
    begun, model_seconds, count, started = time.perf_counter(), 0.0, 0, False
    predictor.keep_probabilities = outputs.scores
    predictor.inspect = outputs.inspect
    size: tuple[int, ...] = ()
    with ExitStack() as stack:
        films = None
        if outputs.overlays:
            films = Overlays(outputs.overlays_of(source.name), outputs.film(source.name), source.rate)
            stack.callback(films.abandon)
        log = stack.enter_context(_log(outputs, source.name))
        writer = stack.enter_context(Writer())
        for frame in stack.enter_context(closing(decode_ahead(source))):
            size = size or frame.image.shape[:2]
            _check(frame, size)
            clock = time.perf_counter()
            labels, started = _segment(predictor, frame, started)
            model_seconds += time.perf_counter() - clock
            writer.put(write_labels, outputs.masks_of(source.name) / f"{frame.stem}.png", labels)
            if outputs.scores and started:
                scores = probabilities_to_write(predictor.probabilities, frame.given, labels, predictor.object_ids)
                writer.put(write_scores, outputs.scores_of(source.name) / f"{frame.stem}.npz", scores,
                           predictor.object_ids)
            if films:
                writer.put(films.add, frame.stem, frame.image, labels)
            if log and started:
                log.write(json.dumps({"stem": frame.stem, **predictor.inspection()}) + "\n")
            count += 1
            advance()
        if not started:
            raise UserError(f"{source.name}: {'no mask gives an object' if count else 'has no frames'}; check the "
                            "folders of the video")
        if films:
            writer.put(films.finish)
    return {"video": source.name, "frames": count, "height": size[0], "width": size[1],
            "objects": len(predictor.object_ids), "memory_bytes": predictor.num_bytes(),
            "model_seconds": round(model_seconds, 4), "seconds": round(time.perf_counter() - begun, 4),
            "model_frames_per_second": round(count / model_seconds, 3), "peak_bytes": peak_bytes(predictor.device),
            "scores": outputs.scores, "fingerprint": source.fingerprint()}


def _segment(predictor: Predictor, frame: Frame, started: bool) -> tuple[np.ndarray, bool]:
    """The frame's label map, and whether the video has begun (an object was given)."""
    gives = frame.given is not None and bool(((frame.given > 0) & (frame.given < 255)).any())
    if not started:
        if not gives:
            return np.zeros(frame.image.shape[:2], np.uint8), False
        return predictor.start(frame.image, frame.given), True
    return (predictor.add_objects(frame.image, frame.given) if gives else predictor.step(frame.image)), True


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


def expected_bytes(config: Config, size: tuple[int, int], frames: int) -> int:
    """Bytes that an unbounded memory will hold at the end of a video, for one group of objects in each view.

    Args:
        size: (H, W) of the video; frames: how many it has.
    """
    settings, model = config.inference, config.model
    number_bytes = 4 if settings.amp == "none" else 2
    stored = 1 + (frames - 1) // config.memory.gap
    tokens = 0
    for scale in settings.scales:
        h, w = input_size(*size, model.align_corners, settings.short_edge, settings.long_edge, scale)
        tokens += (h // 16 + model.align_corners) * (w // 16 + model.align_corners) * (2 if settings.flip else 1)
    entry = FAMILIES[model.family].block_type.entry_channels(model.channels)
    return stored * tokens * model.blocks * entry * number_bytes


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: what the allocator gave on an accelerator, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
