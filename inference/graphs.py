"""CUDA graphs of a frame: all work whose shapes stay is captured once, then replayed without the host's labour.

The read of the long-term memory grows with the memory. It runs by itself between the graphs: one graph reaches from
the frame to the first block's query, one from each block's read to the next block's query, the last one down to the
labels and to what the memory stores. So neither a growing bank nor a policy ever makes a graph be captured again.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from models.blocks import Entry, Tokens
from models.memory import State, TrainingBank
from models.memory.bank import map_tensors

KEPT = 4  # graphs kept at once: sizes and numbers of objects that take turns
CAPTURING = threading.Lock()  # one capture at a time in a process


@dataclass(frozen=True)
class Outcome:
    """What a frame gives: labels (1, H, W) uint8 at its size and (1, h, w) at the network's, tokens and fused entries
    of each block, logits (1, 1 + n, h4, w4)."""

    labels: Tensor
    own: Tensor
    tokens: list[Tokens]
    entries: list[Entry]
    logits: Tensor


class Recorder(Protocol):
    """Records work on the device in pieces. ``begin`` and ``end`` are called within a ``session``."""

    def session(self) -> AbstractContextManager[None]: ...

    def begin(self) -> None: ...

    def end(self) -> Callable[[], None]:
        """Stop recording; returns what does the recorded work again, on the same tensors."""
        ...


class CudaRecorder:
    """Records CUDA graphs. Those of a session share a pool of memory: they are replayed in order, never two at once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.graph: torch.cuda.CUDAGraph | None = None

    @contextmanager
    def session(self) -> Iterator[None]:
        here, there = torch.cuda.current_stream(self.device), capture_stream(self.device)
        with CAPTURING:
            self.pool = torch.cuda.graph_pool_handle()  # a new one each time: a pool dies with its last graph
            there.wait_stream(here)
            with torch.cuda.stream(there):  # a capture must end on the stream on which it began
                try:
                    yield
                except BaseException:
                    if self.graph is not None:
                        with suppress(RuntimeError):  # the capture is invalid by now; the first error counts
                            self.graph.capture_end()
                    raise
                finally:
                    self.graph = None
                    drop_workspaces()
            here.wait_stream(there)

    def begin(self) -> None:
        drop_workspaces()  # those of the recorded products shall lie in the graph's own pool, which lives as long
        self.graph = torch.cuda.CUDAGraph()
        # Other threads, with videos of their own, may allocate meanwhile.
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")

    def end(self) -> Callable[[], None]:
        graph, self.graph = self.graph, None
        assert graph is not None
        graph.capture_end()
        return graph.replay


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which graphs are recorded, one a device. PyTorch hands out 32 streams of each priority in turn,
    again and again; nothing else here asks for this priority, so that no lane ever works on the same stream."""
    return torch.cuda.Stream(device, priority=-1)


def drop_workspaces() -> None:
    """Let cuBLAS forget its workspaces, of which PyTorch keeps one for each stream: graphs that were recorded on one
    stream would share it, and the end of one of them could free it under the others (PyTorch's issue 193402)."""
    torch._C._cuda_clearCublasWorkspaces()


class FrameGraph:
    """One frame's work, recorded for one size, number of objects and kind of state; call it with frame and state."""

    def __init__(self, recorder: Recorder, body: Callable[..., Outcome], attend: Callable[[int, Any, State], Tensor],
                 frame: Tensor, state: State):
        """
        Args:
            body: ``body(frame, state, attend)``, the whole work up to writing the memory; ``attend(index, query)``.
            attend: the read of the long-term memory, ``attend(index, query, state)``.
            frame, state: an example of each; frame on the device.
        """
        self.attend = attend
        self.frame = frame.clone()
        # Of a state the body sees the previous frames; the bank and what the family adds it reads through `attend`.
        self.state = dataclasses.replace(state, short=map_tensors(state.short[:1], Tensor.clone),
                                         long=TrainingBank([]), reference=[], extra=None)
        self.inputs = _changing(self.state)
        self.pieces: list[tuple[Callable[[], None], int, Any, Tensor]] = []

        def between(index: int, query: Any) -> Tensor:
            replay = recorder.end()
            attended = torch.empty_like(attend(index, query, state))  # nothing was computed yet: only the shape counts
            self.pieces.append((replay, index, query, attended))
            recorder.begin()
            return attended

        with recorder.session():
            # Once without recording: plans and workspaces belong to a thread and its stream.
            body(self.frame, self.state, lambda index, query: attend(index, query, state))
            recorder.begin()
            self.outcome = body(self.frame, self.state, between)
            self.last = recorder.end()

    def __call__(self, frame: Tensor, state: State) -> Outcome:
        """The outcome's tensors are overwritten by the next call."""
        self.frame.copy_(frame, non_blocking=True)
        torch._foreach_copy_(self.inputs, _changing(state))
        for replay, index, query, attended in self.pieces:
            replay()
            attended.copy_(self.attend(index, query, state))
        self.last()
        return self.outcome


class Graphs:
    """The graphs of one predictor, by what their shapes depend on.

    The first frame of a kind runs without a graph, which readies what capturing needs; the second is recorded.
    """

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.known: dict[Hashable, FrameGraph | None] = {}

    def get(self, kind: Hashable, record: Callable[[Recorder], FrameGraph]) -> FrameGraph | None:
        """The graph for frames of a kind; None: run this one without."""
        if kind not in self.known:
            while len(self.known) >= KEPT:
                del self.known[next(iter(self.known))]
            self.known[kind] = None
            return None
        graph = self.known[kind]
        if graph is None:
            graph = self.known[kind] = record(self.recorder)
        return graph


def graphs_for(device: torch.device, wanted: bool) -> Graphs | None:
    """New graphs where they are wanted and the device has such."""
    return Graphs(CudaRecorder(device)) if device.type == "cuda" and wanted else None


def _changing(state: State) -> list[Tensor]:
    """The tensors of a state that change from frame to frame and that the recorded work reads."""
    found: list[Tensor] = []
    map_tensors(state.short[0], found.append)
    return found
