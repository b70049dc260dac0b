"""Files that are whole or absent: everything is written beside its place and then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from common.errors import UserError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it replaces ``path`` in one step, else it is removed.

    The temporary file keeps the suffix, since image and array writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # as the umask says: some writers (safetensors) shut others out
        yield beside
        os.chmod(beside, mode)
        os.replace(beside, path)
    except OSError as error:
        if error.filename is None:  # a write that failed does not say which file it was
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole, in UTF-8 with LF line ends."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write strict JSON whole: NaN and infinities become ``null``, numpy scalars become numbers."""
    write_text(path, json.dumps(_plain(value), indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def check_output_folder(output: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Before work: UserError where ``output`` is no folder and cannot become one, or lies inside one of ``inputs``,
    folders that are only read."""
    place = Path(output).resolve()
    file = next((path for path in (place, *place.parents) if path.exists()), place)
    if not file.is_dir():
        raise UserError(f"{output}: {file} is a file; name a folder to write")
    for folder in inputs:
        if place.is_relative_to(Path(folder).resolve()):
            raise UserError(f"{output}: lies inside {folder}, which is only read; name another place to write")


def check_output_file(output: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """The same for a file."""
    if Path(output).is_dir():
        raise UserError(f"{output}: is a folder; name a file to write")
    check_output_folder(Path(output).absolute().parent, inputs)


def hold(folder: str | Path) -> IO[str]:
    """Keep other processes from ``folder`` (made where it is missing) by a lock of ``folder/.lock``.

    A POSIX record lock: the system lets go of it however the process ends, and loader workers do not inherit it. A
    file system that knows no locks is said on standard error, and nothing is held.
    Returns:
        the locked file; the folder is held until it is closed.
    Raises:
        UserError: another process holds the folder.
    """
    import fcntl  # of POSIX alone: only training needs it

    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "w")  # noqa: SIM115 (the caller closes it)
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            stream.close()
            raise UserError(f"{folder}: another process writes there; let it end or stop it, or choose another "
                            "--output") from error
        print(f"note: {path}: no lock to be had ({error.strerror}): see that no second run writes to {folder}",
              file=sys.stderr)
    return stream


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    # Python 3.10 lacks hashlib.file_digest.
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, str):  # numpy scalars and arrays, 0-d tensors
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
