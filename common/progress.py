"""Progress with the time left: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts work and shows how much is left, on standard error.

    Use as a context manager; call :meth:`advance` after each unit. ``total`` may be None (unknown).
    On a terminal this is a tqdm bar; elsewhere a line every ``every`` seconds.
    """

    def __init__(self, total: int | None, what: str, unit: str = "frame", done: int = 0, every: float = 15.0):
        self.total, self.what, self.unit, self.done, self.every = total, what, unit, done, every
        self._first = done
        self._start = self._spoke = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm  # heavy only where a terminal wants it

            self._bar = tqdm(total=total, desc=what, unit=unit, initial=done, dynamic_ncols=True, leave=False)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Say that ``units`` more are done; ``note`` stands behind the numbers."""
        self.done += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._spoke >= self.every:
            self._say(note)

    def _say(self, note: str) -> None:
        self._spoke = time.monotonic()
        elapsed = self._spoke - self._start
        rate = (self.done - self._first) / max(elapsed, 1e-9)
        of = f"/{self.total}" if self.total is not None else ""
        left = f", {duration((self.total - self.done) / rate)} left" if self.total is not None and rate > 0 else ""
        print(f"{self.what}: {self.done}{of} {self.unit}s, {rate:.3g}/s{left}{'  ' + note if note else ''}",
              file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Format seconds as ``1h 02m``, ``3m 05s`` or ``7s``."""
    seconds = round(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m {seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
