"""Checkpoints of a run: written whole, the newest few kept, read without running code, damaged ones passed over."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import written_whole

_NAME = re.compile(r"step_(\d{7,})\.pt")


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step_0001000.pt`` (seven digits) after ``step`` steps, then remove all but the newest ``keep``.

    Beside it lies a ``.sha256`` of its bytes, by which a damaged file is known.
    """
    buffer = io.BytesIO()
    torch.save({**content, "step": step}, buffer)
    path = folder / f"step_{step:07d}.pt"
    with written_whole(_digest_path(path)) as beside:
        beside.write_text(hashlib.sha256(buffer.getbuffer()).hexdigest() + "\n")
    with written_whole(path) as beside:
        beside.write_bytes(buffer.getbuffer())
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
        _digest_path(old).unlink(missing_ok=True)
    return path


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if _NAME.fullmatch(path.name))


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the newest checkpoint that is whole.

    Returns:
        its content (None: the folder has no checkpoint), and a line for each damaged one that was passed over.
    Raises:
        UserError: there are checkpoints, but all are damaged.
    """
    problems = []
    for path in reversed(checkpoints(folder)):
        try:
            return _load(path), problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError(f"{folder}: every checkpoint is damaged; remove the run's folder and start again")
    return None, problems


def _load(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    digest = _digest_path(path)
    if digest.is_file() and digest.read_text().strip() != hashlib.sha256(data).hexdigest():
        raise UserError(f"{path}: damaged (its bytes do not fit its .sha256); an older checkpoint is used")
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is no checkpoint, or holds code
        raise UserError(f"{path}: not a checkpoint ({type(error).__name__}); an older one is used") from error


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
