"""Run a predictor over videos: decode ahead, segment, write behind, resume, and say what it cost."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from common.errors import UserError
from common.files import write_json, written_whole
from common.progress import Progress
from configs import Config
from datasets.own_video import OwnVideo
from datasets.readers import write_labels
from inference.predictor import Predictor
from inference.sources import Frame, Source, decode_ahead
from inference.writer import Overlays, Writer, write_scores
from models import FAMILIES
from models.preprocess import input_size


@dataclass(frozen=True)
class Outputs:
    """What to write into OUT besides the masks."""

    folder: Path
    overlays: bool = False
    scores: bool = False
    inspect: bool = False


def share(sources: Sequence[Source], rank: int, world: int) -> list[Source]:
    """The videos of one of ``world`` processes: longest first, each to whoever has least so far."""
    loads = [0] * world
    mine = []
    for source in sorted(sources, key=lambda source: (-len(source), source.name)):
        target = loads.index(min(loads))
        loads[target] += len(source)
        if target == rank:
            mine.append(source)
    return mine


def run_videos(predictor: Predictor, sources: Sequence[Source], outputs: Outputs, streams: int = 1) -> dict[str, int]:
    """Segment the videos that are not finished yet, ``streams`` at once.

    Returns:
        numbers of videos: {"done": newly segmented, "skipped": finished earlier}
    Raises:
        UserError: a frame or mask that cannot be read; what was finished stays, the rest can be continued.
    """
    waiting = [source for source in sources if not finished(source, outputs)]
    total = sum(len(source) for source in waiting)
    with Progress(total, "segmenting") as progress:
        def work(source: Source) -> None:
            record = segment_video(predictor.fork(), source, outputs, progress.advance)
            write_json(_record(outputs, source.name), record)

        if streams == 1:
            for source in waiting:
                work(source)
        else:
            with ThreadPoolExecutor(streams) as pool:
                for future in [pool.submit(work, source) for source in waiting]:
                    future.result()
    return {"done": len(waiting), "skipped": len(sources) - len(waiting)}


def segment_video(predictor: Predictor, source: Source, outputs: Outputs,
                  advance: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Segment one video from its first frame to its last; one PNG for every frame.

    Returns:
        the video's record: frames, size, seconds of the model and of the whole, bytes of the memory at the end.
    """
    begun = time.perf_counter()
    masks = outputs.folder / "masks" / source.name
    shutil.rmtree(masks, ignore_errors=True)  # of a run that was cut short
    predictor.keep_probabilities = outputs.scores
    predictor.inspect = outputs.inspect
    model_seconds, count, started, size = 0.0, 0, False, (0, 0)
    with ExitStack() as stack:
        films = Overlays(outputs.folder / "overlays" / source.name, getattr(source, "rate", None)) \
            if outputs.overlays else None
        if films:
            stack.callback(films.abandon)
        log = stack.enter_context(_log(outputs, source.name))
        writer = stack.enter_context(Writer())
        for frame in stack.enter_context(closing(decode_ahead(source))):
            _check(frame, size if count else frame.image.shape[:2])
            size = frame.image.shape[:2]
            clock = time.perf_counter()
            labels, started = _segment(predictor, frame, started)
            model_seconds += time.perf_counter() - clock
            writer.put(write_labels, masks / f"{frame.stem}.png", labels)
            if outputs.scores and started and predictor.probabilities is not None:
                writer.put(write_scores, outputs.folder / "scores" / source.name / f"{frame.stem}.npz",
                           predictor.probabilities[0].float().cpu().numpy(), predictor.object_ids)
            if films:
                writer.put(films.add, frame.stem, frame.image, labels)
            if log is not None and started and (entry := predictor.inspection()) is not None:
                log.write(json.dumps({"frame": frame.stem, **entry}) + "\n")
            count += 1
            advance()
        if films:
            writer.put(films.finish)
    if not count:
        raise UserError(f"{source.name}: has no frames; check the folder or the film")
    if not started:
        raise UserError(f"{source.name}: no mask gives an object; give the frame where one first appears")
    return {"video": source.name, "frames": count, "height": size[0], "width": size[1],
            "objects": len(predictor.object_ids), "memory_bytes": predictor.num_bytes(),
            "model_seconds": round(model_seconds, 4), "seconds": round(time.perf_counter() - begun, 4)}


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


# What is finished, and what belongs together.


def finished(source: Source, outputs: Outputs) -> bool:
    """Whether the video was segmented whole: its record is there and so are all its masks."""
    record = _record(outputs, source.name)
    if not record.is_file():
        return False
    masks = outputs.folder / "masks" / source.name
    count = json.loads(record.read_text())["frames"]
    extras = (not outputs.overlays or (outputs.folder / "overlays" / f"{source.name}.mp4").is_file()) \
        and (not outputs.scores or (outputs.folder / "scores" / source.name).is_dir()) \
        and (not outputs.inspect or (outputs.folder / "inspect" / f"{source.name}.jsonl").is_file())
    whole = len(source) == count or isinstance(source, OwnVideo)  # a film says its length only about
    return extras and whole and masks.is_dir() and sum(1 for _ in masks.glob("*.png")) == count


def identity(config: Config, weights_hash: str) -> dict[str, Any]:
    """What makes masks comparable: weights and every setting that changes them."""
    settings = config.model_dump(include={"model", "memory", "inference"})
    settings["model"].pop("encoder_weights")
    settings["inference"].pop("streams")
    return {"weights": weights_hash, "objects": config.data.objects, **settings}


def claim(outputs: Outputs, own: dict[str, Any]) -> None:
    """Make OUT this run's, or continue it where it is.

    Raises:
        UserError: OUT was made with other weights or settings, or holds something else.
    """
    path = outputs.folder / "run.json"
    if path.is_file():
        other = json.loads(path.read_text()).get("identity")
        if other != json.loads(json.dumps(own)):
            raise UserError(f"{outputs.folder}: was made with {_difference(other, own)}; choose another --output, "
                            "or delete it")
    elif outputs.folder.is_dir() and any(outputs.folder.iterdir()):
        raise UserError(f"{outputs.folder}: is not empty and no run of infer.py; choose another --output")
    else:
        write_json(path, {"identity": own})


def summarise(outputs: Outputs, own: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Write OUT/run.json from the records of all finished videos (of all ranks); returns it."""
    records = [json.loads(path.read_text()) for path in sorted((outputs.folder / "videos").glob("*.json"))]
    frames = sum(record["frames"] for record in records)
    summary = {
        "command": sys.argv, "identity": own,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "frames": frames,
        "model_frames_per_second": _rate(frames, sum(record["model_seconds"] for record in records)),
        "frames_per_second": _rate(frames, sum(record["seconds"] for record in records)),
        "peak_bytes": peak_bytes(device),
        "videos": records,
    }
    write_json(outputs.folder / "run.json", summary)
    return summary


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
    """Peak memory: what the allocator gave on an accelerator, the process's resident set elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _record(outputs: Outputs, name: str) -> Path:
    return outputs.folder / "videos" / f"{name}.json"


def _rate(frames: int, seconds: float) -> float | None:
    return round(frames / seconds, 3) if seconds else None


def _difference(other: Any, own: dict[str, Any]) -> str:
    if not isinstance(other, dict):
        return "another version of this program"
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(other.get(key), dict):
            for name, setting in value.items():
                if other[key].get(name) != setting:
                    return f"{key}.{name}={other[key].get(name)!r}, not {setting!r}"
        elif other.get(key) != value:
            return "other weights" if key == "weights" else f"{key}={other.get(key)!r}, not {value!r}"
    return "other settings"


@contextmanager
def _log(outputs: Outputs, name: str) -> Iterator[IO[str] | None]:
    """The lines of OUT/inspect/<video>.jsonl, whole or absent; None where nobody asked for them."""
    if not outputs.inspect:
        yield None
        return
    with written_whole(outputs.folder / "inspect" / f"{name}.jsonl") as beside, open(beside, "w") as stream:
        yield stream
