"""What a training run writes: RUN/config.yaml, metrics.jsonl, tensorboard/, checkpoints/, weights.safetensors."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import check_output_folder, hold, write_text, written_whole
from configs import Config, dump_config, load_config
from datasets.mixture import all_sources
from datasets.readers import DAVIS_PALETTE

_COLOURS = np.array(DAVIS_PALETTE, np.uint8).reshape(-1, 3)


def settle(run: Path, configs: list[Config], resume: bool, settings: list[str]) -> IO[str]:
    """Begin a run's folder, or check that an earlier one can go on; either way keep other processes from it.

    The last configuration is the run's own; those before it are stages, each a run of its own in ``RUN/stages``, whose
    weights the next one starts from.

    Args:
        configs: of a new run, in order; resume: the folder's own configurations hold, and ``settings`` may only name
            ``train.stop_at``, or what they say already; a run that was ended before its first step takes any.
    Returns:
        the lock of the folder: while it is open no other process can settle there.
    Raises:
        UserError: a new run in the folder of another or in that of its data, nothing to resume, or another process
            trains there.
    """
    file = run / "config.yaml"
    written = ("**/checkpoints", "**/tensorboard", "**/weights.safetensors")  # by training itself
    begun = file.exists() and any(path for pattern in written for path in run.glob(pattern))
    if resume and not file.is_file():
        raise UserError(f"{file}: nothing to resume there; start without --resume")
    if resume and (begun or not settings or not configs):
        kept = load_config(file)
        for key, text in ((text.partition("=")[0], text) for text in settings):
            if key != "train.stop_at" and load_config(file, [text]) != kept:
                raise UserError(f"{key}: cannot change in a resumed run, which keeps {file}; leave it out, or begin "
                                "another run with another --output")
        return _take(run)
    if begun:
        raise UserError(f"{run}: holds a run already; continue it with --resume, or choose another --output")
    check_output_folder(run, [source.root for config in configs for source in all_sources(config)])
    ended = file.exists()  # by a mistake, before its first step; or it is somebody's own file
    if ended and file.read_text(encoding="utf-8") != dump_config(load_config(file)):
        raise UserError(f"{file}: is no training run's, which would replace it; choose another --output")
    lock = _take(run)
    for part in parts(run)[:-1] if ended else []:
        shutil.rmtree(part)
    earlier = None
    for number, config in enumerate(configs, 1):
        part = run if config is configs[-1] else run / "stages" / f"{number}_{config.name}"
        if earlier is not None:
            config.train.weights, config.train.after = str(earlier / "weights.safetensors"), None
        write_text(part / "config.yaml", dump_config(config))
        earlier = part
    return lock


def _take(run: Path) -> IO[str]:
    """Hold the folder, and remove checkpoints that a killed process left half-written."""
    lock = hold(run)
    for left in run.glob("**/checkpoints/.*.part*"):
        left.unlink()
    return lock


def parts(run: Path) -> list[Path]:
    """The folders of a run's stages in order, its own last."""
    found = [file.parent for file in (run / "stages").glob("[0-9]*_*/config.yaml")]
    return [*sorted(found, key=lambda part: int(part.name.split("_")[0])), run]


def reopened(run: Path, part: Path, resume: bool = True, settings: Iterable[str] = ()) -> Config:
    """The configuration of ``run``, or of a stage of it; where the run is resumed, with the stop of ``settings``, else
    with none. (A stage before the last keeps its own.) It starts from the stage before, wherever the run lies by now.
    """
    stop = [text for text in settings if text.startswith("train.stop_at=")] or ["train.stop_at=null"]
    config = load_config(part / "config.yaml", stop if resume and part == run else [])
    if earlier := parts(run)[: parts(run).index(part)]:
        config.train.weights = str(earlier[-1] / "weights.safetensors")
    return config


class Journal:
    """metrics.jsonl and TensorBoard of a run. Lines past ``step`` (written after the checkpoint) are taken back."""

    def __init__(self, run: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # heavy: only where a run is written

        self.path = run / "metrics.jsonl"
        if self.path.is_file():
            kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= step]
            write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def holds(self, step: int, name: str) -> bool:
        """Whether a line of ``step`` has the value ``name``."""
        rows = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []
        return any(row["step"] == step and name in row for row in rows)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and a scalar of TensorBoard for each number (nested names join with "/").

        JSON knows no NaN: what is not finite (the gradient of a half-precision step that overflowed) is null there.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **_finite(values)}, allow_nan=False) + "\n")
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise
        for name, value in values.items():
            for key, number in ((f"{name}/{part}", one) for part, one in value.items()) \
                    if isinstance(value, dict) else [(name, value)]:
                if isinstance(number, (int, float)):
                    self.board.add_scalar(key, number, step)

    def strip(self, step: int, frames: Tensor, masks: Tensor, predictions: Tensor) -> None:
        """A picture of one clip: frames above their targets above the predictions.

        frames: (T, 3, H, W) uint8; masks: (T, H, W); predictions: (P, H, W), of the last P frames.
        """
        images = frames.permute(0, 2, 3, 1).cpu().numpy()
        predicted = masks.clone()
        predicted[len(masks) - len(predictions):] = predictions
        rows = [images, *(0.4 * images + 0.6 * _COLOURS[labels.cpu().numpy()] for labels in (masks, predicted))]
        picture = np.concatenate([np.concatenate(list(row), 1) for row in rows], 0).astype(np.uint8)
        self.board.add_image("clip", picture, step, dataformats="HWC")

    def close(self) -> None:
        self.board.close()


def save_batch(path: Path, batch: Any) -> None:
    """Keep the batch of a step whose loss is not finite: a torch file with frames, masks and the rest."""
    with written_whole(path) as beside:
        torch.save({key: value.cpu() if isinstance(value, Tensor) else value for key, value in vars(batch).items()},
                   beside)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")  # a line cut short by a crash
