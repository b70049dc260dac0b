"""A lane: what one video in work needs of the device, from a queue of work of its own to copies that nobody waits for.

On the processor a lane does nothing: arrays go in and come out, and time is the clock's.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor

AHEAD = 16  # frames that the host may be ahead of the device
WRITERS = max(1, min(4, (os.cpu_count() or 1) // 2))  # threads that write masks beside a device of its own


class Lane:
    """One video at a time. ``writers``: threads that should write its masks."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream is not None:  # weights and whatever else was begun before
            self.stream.wait_stream(torch.cuda.current_stream(device))
        self.writers = 1 if self.stream is None else WRITERS
        self.begin_video()

    def begin_video(self) -> None:
        """Forget the time of another video."""
        self._seconds = 0.0
        self._laps: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def active(self) -> AbstractContextManager:
        """Within it work goes to the lane's own stream."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def stage(self, image: np.ndarray) -> np.ndarray | Tensor:
        """Ready a frame for its way in (in the decoding thread): page-locked, so that its copy waits for nothing."""
        if self.stream is None:
            return image
        with torch.cuda.device(self.device):  # a new thread's device is the first one
            return torch.from_numpy(np.ascontiguousarray(image)).pin_memory()

    def land(self, labels: np.ndarray | Tensor) -> Callable[[], np.ndarray]:
        """Send labels on their way out; what is returned waits for them (in the writing thread)."""
        if isinstance(labels, np.ndarray):
            return lambda: labels
        host = torch.empty(labels.shape, dtype=labels.dtype, pin_memory=True)
        host.copy_(labels, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # a thread that waits for it sleeps
        done.record()

        def wait() -> np.ndarray:
            done.synchronize()
            return host.numpy()

        return wait

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count what runs within it as the model's time, on the device's own clock where it has one."""
        if self.stream is None:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun
            return
        first, last = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        first.record()
        yield
        last.record()
        self._laps.append((first, last))
        if len(self._laps) > AHEAD:
            self._count()

    def seconds(self) -> float:
        """The model's time of this video; waits for the device."""
        while self._laps:
            self._count()
        return self._seconds

    def _count(self) -> None:
        first, last = self._laps.popleft()
        last.synchronize()
        self._seconds += first.elapsed_time(last) / 1000
