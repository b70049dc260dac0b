"""The folder OUT: whose it is, which videos in it are finished, and what they cost."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from common.errors import UserError
from common.files import write_json
from configs import Config
from datasets.headers import cut_short, read_header
from inference.sources import Source
from inference.writer import film_part
from models.memory import POLICIES
from models.precision import autocast_type


@dataclass(frozen=True)
class Outputs:
    """OUT, and what to write into it besides the masks."""

    folder: Path
    overlays: bool = False
    scores: bool = False
    inspect: bool = False

    def masks_of(self, video: str) -> Path:
        """Folder of <stem>.png."""
        return self.folder / "masks" / video

    def scores_of(self, video: str) -> Path:
        """Folder of <stem>.npz."""
        return self.folder / "scores" / video

    def overlays_of(self, video: str) -> Path:
        """Folder of <stem>.jpg."""
        return self.folder / "overlays" / video

    def film(self, video: str) -> Path:
        """The overlays as a film."""
        return self.folder / "overlays" / f"{video}.mp4"

    def log(self, video: str) -> Path:
        return self.folder / "inspect" / f"{video}.jsonl"

    def record(self, video: str) -> Path:
        """Written last: the sign that a video is finished."""
        return self.folder / "videos" / f"{video}.json"

    @property
    def run(self) -> Path:
        return self.folder / "run.json"


@dataclass(frozen=True)
class Cost:
    """What this run did, apart from earlier ones that it continues. ``seconds``: of the videos, by the clock."""

    frames: int
    seconds: float
    peak_bytes: int


# Whose it is.


def identity(config: Config, weights_hash: str, objects: str) -> dict[str, Any]:
    """What makes masks comparable: the weights, the objects rule, every setting that changes them, the memory rule."""
    settings = config.model_dump(mode="json", include={"model", "memory", "inference"})
    settings["model"].pop("encoder_weights")
    files = {inspect.getfile(kind): None for kind in POLICIES[config.memory.policy].__mro__[:-1]}  # in order
    rule = b"".join(Path(file).read_bytes() for file in files)  # of its class and of those that it builds on
    settings["memory"]["rule_code"] = hashlib.sha256(rule).hexdigest()[:16]
    for name in ("streams", "graphs"):  # they change no mask
        settings["inference"].pop(name)
    return {"weights": weights_hash, "data.objects": objects, **settings}


def claim(outputs: Outputs, own: dict[str, Any]) -> None:
    """Make OUT this run's, or continue it where it is.

    Raises:
        UserError: OUT was made with other weights or settings, or holds something else.
    """
    folder = outputs.folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose another --output")
    if outputs.run.is_file():
        try:
            other = json.loads(outputs.run.read_text())["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{outputs.run}: is no record of infer.py; choose another --output") from error
        if other == own:
            return
        if any(True for kind in ("masks", "videos") for _ in (folder / kind).glob("**/*.*")):  # else nothing was made
            raise UserError(f"{folder}: was made with {_difference(other, own)}; choose another --output, or delete it")
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder}: is not empty and no output of infer.py; choose another --output")
    write_json(outputs.run, {"identity": own})


def _difference(other: dict[str, Any], own: dict[str, Any]) -> str:
    for key, value in own.items():
        theirs = other.get(key)
        if isinstance(value, dict) and isinstance(theirs, dict):
            for name, setting in value.items():
                if theirs.get(name) != setting:
                    return f"{key}.{name}={theirs.get(name)}, not {setting}"
        elif theirs != value:
            return "other weights" if key == "weights" else f"{key}={theirs}, not {value}"
    return "settings of another version of this program"


# What is finished.


def finished(source: Source, outputs: Outputs) -> bool:
    """Whether the video was segmented whole: its record is there, and every file that was asked for is whole.

    Raises:
        UserError: OUT holds the masks of another video of this name.
    """
    record = read_record(outputs, source.name)
    if record is None:
        return False
    if record["fingerprint"] != source.fingerprint():
        raise UserError(f"{outputs.masks_of(source.name)}: was made from other frames or given masks of this name; "
                        f"choose another --output, or delete {outputs.record(source.name)} to replace it")
    name, count, size = source.name, record["frames"], (record["width"], record["height"])
    whole = [_whole_masks(outputs.masks_of(name), size) == count]
    if outputs.overlays:
        whole += [outputs.film(name).is_file(), _count(outputs.overlays_of(name), "jpg") == count]
    if outputs.scores:
        whole += [0 < record["scores"] == _count(outputs.scores_of(name), "npz")]
    if outputs.inspect:
        whole += [outputs.log(name).is_file()]
    return all(whole)


def with_earlier(outputs: Outputs, video: str) -> Outputs:
    """What to write when a finished video is made anew: what is asked for now, and what it had before."""
    record = read_record(outputs, video)
    if record is None:
        return outputs
    return replace(outputs, overlays=outputs.overlays or outputs.film(video).is_file(),
                   scores=outputs.scores or record["scores"] > 0,
                   inspect=outputs.inspect or outputs.log(video).is_file())


def read_record(outputs: Outputs, video: str) -> dict[str, Any] | None:
    """The record of a finished video; None where there is none, or none that can be read."""
    try:
        record = json.loads(outputs.record(video).read_text())
        return record if {"fingerprint", "frames", "width", "height", "scores"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _count(folder: Path, suffix: str) -> int:
    return len(list(folder.glob(f"[!.]*.{suffix}")))


def _whole_masks(folder: Path, size: tuple[int, int]) -> int:
    """How many masks of a size (width, height) are whole, judged by the first and last bytes of the files."""
    count = 0
    for path in folder.glob("[!.]*.png"):
        try:
            header = read_header(path)
            count += (header.width, header.height) == size and not cut_short(path)
        except UserError:  # damaged: the video is made anew
            return -1
    return count


def discard(outputs: Outputs, video: str) -> None:
    """Remove what a run that was cut short left of a video; the record first, so that no rest counts as finished."""
    outputs.record(video).unlink(missing_ok=True)
    for folder in (outputs.masks_of(video), outputs.scores_of(video), outputs.overlays_of(video)):
        shutil.rmtree(folder, ignore_errors=True)
    film, log = outputs.film(video), outputs.log(video)
    own = re.compile(rf"\.{re.escape(video)}\.\d+\.part\.jsonl")  # not those of a video called {video}.something
    unfinished = [path for path in log.parent.glob(".*.part.jsonl") if own.fullmatch(path.name)]
    for path in (film, film_part(film), log, *unfinished):
        path.unlink(missing_ok=True)


def beside(outputs: Outputs, video: str) -> Outputs:
    """Where a video that is finished is made anew, so that a stop in between takes nothing away."""
    return replace(outputs, folder=outputs.folder / ".remade" / video)


def take_over(made: Outputs, outputs: Outputs, video: str) -> None:
    """Put what was made :func:`beside` in the place of what the video had."""
    discard(outputs, video)
    for kind in (Outputs.masks_of, Outputs.scores_of, Outputs.overlays_of, Outputs.film, Outputs.log):
        if kind(made, video).exists():
            kind(outputs, video).parent.mkdir(parents=True, exist_ok=True)
            kind(made, video).replace(kind(outputs, video))
    shutil.rmtree(made.folder)
    with suppress(OSError):  # others are being made there
        made.folder.parent.rmdir()


# What it cost.


def summarise(outputs: Outputs, own: dict[str, Any], config: Config, device: torch.device,
              costs: Sequence[Cost]) -> dict[str, Any]:
    """Write OUT/run.json from the records of all finished videos; returns it.

    Args:
        costs: what each process of this run did.
    """
    records = [record for path in sorted((outputs.folder / "videos").glob("[!.]*.json"))
               if (record := read_record(outputs, path.name.removesuffix(".json"))) is not None]
    summary = {
        "command": shlex.join(sys.argv), "identity": own, "config": config.model_dump(mode="json"),
        "weights_sha256": own["weights"],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
                     "opencv": cv2.__version__},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "arithmetic": str(autocast_type(config.inference.amp, device) or torch.float32).removeprefix("torch."),
        "frames": sum(record["frames"] for record in records),
        "model_frames_per_second": None if config.inference.streams > 1 else _rate(  # several at once overlap
            sum(record["frames"] for record in records), sum(record["model_seconds"] for record in records)),
        # By the clock, of what this run did; where all was finished before, by the videos' own times.
        "frames_per_second": _rate(sum(cost.frames for cost in costs), max(cost.seconds for cost in costs))
        or _rate(sum(record["frames"] for record in records), sum(record["seconds"] for record in records)),
        "peak_bytes": max(cost.peak_bytes for cost in costs),
        "processes": [asdict(cost) for cost in costs],
        "videos": records,
    }
    write_json(outputs.run, summary)
    return summary


def _rate(frames: int, seconds: float) -> float | None:
    return round(frames / seconds, 3) if frames and seconds else None
