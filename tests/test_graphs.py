"""Graphs of a frame: what is recorded once gives the same masks and memory as what runs anew for every frame."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from configs import load_config, model_config_path, model_names
from inference import Predictor
from inference.graphs import KEPT, CudaRecorder, Graphs, capture_stream
from inference.predictor import View
from models.memory import POLICIES
from tests.test_networks import on_fake_cuda

SIZE = (49, 65)


class Tape(TorchDispatchMode):
    """A stand-in for a CUDA graph: notes every operation with its very tensors, and does them again on those."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        self.operations.append((function, arguments, keywords or {}, result))
        return result

    def replay(self):
        for function, arguments, keywords, result in self.operations:
            again = function(*arguments, **keywords)
            for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():  # neither a view nor in place
                    old.copy_(new)


def tensors_in(result) -> list[torch.Tensor]:
    return [item for item in (result if isinstance(result, (list, tuple)) else [result])
            if isinstance(item, torch.Tensor)]


class TapeRecorder:
    """Records tapes; ``pieces`` counts them."""

    pieces = 0

    @contextmanager
    def session(self):
        yield

    def begin(self):
        self.tape = Tape()
        self.tape.__enter__()

    def end(self):
        self.tape.__exit__(None, None, None)
        self.pieces += 1
        return self.tape.replay


def predictor_of(model: str, *settings: str) -> Predictor:
    torch.manual_seed(0)
    return Predictor.from_config(load_config(model_config_path(model), ["inference.long_edge=null", *settings]))


def recorded(predictor: Predictor) -> Predictor:
    """The same network with a recorder that works on the processor."""
    other = predictor.fork()
    other._graphs = Graphs(TapeRecorder())
    return other


def video(frames: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=generator) for _ in range(frames)]


def labels(*ids: int) -> torch.Tensor:
    """Stripes of the given ids."""
    rows = torch.arange(SIZE[0]) * len(ids) // SIZE[0]
    return torch.tensor(ids, dtype=torch.uint8)[rows, None].expand(SIZE).contiguous()


def assert_same_video(one: Predictor, two: Predictor, frames: int = 9, late: int = 5) -> None:
    """Both give the same masks and hold the same memory, frame by frame, with an object that comes late."""
    for number, frame in enumerate(video(frames)):
        if number == 0:
            masks = [predictor.start(frame, labels(0, 3, 7)) for predictor in (one, two)]
        elif number == late:
            masks = [predictor.add_objects(frame, labels(0, 0, 9)) for predictor in (one, two)]
        else:
            masks = [predictor.step(frame) for predictor in (one, two)]
        assert torch.equal(*masks), number
        first, second = (predictor._views[0].states[0] for predictor in (one, two))
        assert (first.frame, first.last_offer, first.long.offered) == (second.frame, second.last_offer,
                                                                       second.long.offered)
        for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
            assert torch.equal(a, b), number


def tensors_of(state) -> list[torch.Tensor]:
    found = [token for entries in state.short for entry in entries for token in entry]
    found += [token for kept in state.long.tensors for token in kept]
    found += [state.long.filled, state.long.frame]
    return found + ([] if state.extra is None else [tensor for bank in state.extra.banks for tensor in bank])


@pytest.mark.parametrize("model", ["aott", "aots", "deaott", "r50_aotl", "swinb_deaotl", "ddmemory"])
def test_graphs_change_nothing(model):
    predictor = predictor_of(model, "memory.gap=2", "memory.short_skip=2", "memory.global_interval=2")
    other = recorded(predictor)
    assert_same_video(predictor, other)
    assert other._graphs.recorder.pieces == 2 * (1 + predictor.config.model.blocks), "once for each number of objects"


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_decides_alike_under_graphs(policy, amp, monkeypatch):
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)  # emulated, where the processor has none
    predictor = predictor_of("aott", f"memory.policy={policy}", "memory.gap=1", "memory.capacity=3",
                             f"inference.amp={amp}")
    assert_same_video(predictor, recorded(predictor), 12)


def test_what_masks_alone_cannot_give_runs_without_graphs():
    frames = video(3)
    for settings, change in (((), "keep_probabilities"), ((), "inspect"), (("inference.flip=true",), None)):
        other = recorded(predictor_of("aott", *settings))
        if change:
            setattr(other, change, True)
        other.start(frames[0], labels(0, 1))
        for frame in (*frames, *frames):
            other.step(frame)
        assert other._graphs.recorder.pieces == 0
    assert other.inspection() == {} and len(other._views) == 2


def test_few_graphs_are_kept_and_a_second_video_records_none():
    predictor = recorded(predictor_of("aott"))
    frames = video(4)
    for _ in range(2):
        predictor.start(frames[0], labels(0, 1))
        for frame in frames[1:]:
            predictor.step(frame)
    assert predictor._graphs.recorder.pieces == 2
    for objects in range(2, 3 + KEPT):
        predictor.start(frames[0], labels(*range(objects + 1)))
        for frame in frames[1:]:
            predictor.step(frame)
    assert len(predictor._graphs.known) == KEPT


@pytest.mark.parametrize("model", ["aott", "deaott", "r50_deaotl", "swinb_aotl", "ddmemory"])
def test_weights_kept_in_half_precision_give_autocasts_masks(model, monkeypatch):
    """What autocast would cast in every frame is cast once."""
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)  # emulated, where the processor has none
    predictor = predictor_of(model, "inference.amp=bf16")
    config = predictor.config.model_copy(deep=True)
    config.inference.amp = "none"
    torch.manual_seed(0)
    cast = Predictor.from_config(config)
    assert sum(p.dtype == torch.bfloat16 for p in predictor.network.parameters()) > 50
    frames, same = video(4), []
    for number, frame in enumerate(frames):
        mine = predictor.start(frame, labels(0, 1)) if number == 0 else predictor.step(frame)
        with torch.autocast("cpu", torch.bfloat16):
            theirs = cast.start(frame, labels(0, 1)) if number == 0 else cast.step(frame)
        same.append((mine == theirs).float().mean().item())
    assert min(same) > 0.98, same


def test_a_capture_that_fails_ends_on_its_own_stream_and_the_next_has_a_pool_of_its_own(monkeypatch):
    """CUDA refuses to end a capture elsewhere, and the lane's stream must not be drawn into one."""
    told = []

    class Stream:
        def wait_stream(self, other):
            told.append("wait")

    class Graph:
        def capture_begin(self, pool, capture_error_mode):
            told.append(f"begin {pool}")

        def capture_end(self):
            told.append("end")

        def replay(self):
            pass

    @contextmanager
    def on(stream):
        told.append("enter")
        try:
            yield
        finally:
            told.append("leave")

    handles = iter("ab")
    for name, stand_in in (("Stream", lambda device, priority: Stream()), ("current_stream", lambda device: Stream()),
                           ("CUDAGraph", Graph), ("stream", on), ("graph_pool_handle", lambda: next(handles))):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: told.append("forget"))
    capture_stream.cache_clear()
    recorder = CudaRecorder(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="not permitted"), recorder.session():
        recorder.begin()
        raise RuntimeError("operation not permitted when stream is capturing")
    assert told == ["wait", "enter", "forget", "begin a", "end", "forget", "leave"]
    with recorder.session():
        recorder.begin()
        recorder.end()
    assert told[7:] == ["wait", "enter", "forget", "begin b", "end", "forget", "leave", "wait"]
    capture_stream.cache_clear()


class Nothing:
    """A recorder for fake tensors, whose work is never done again."""

    session = staticmethod(nullcontext)

    def begin(self):
        pass

    def end(self):
        return lambda: None


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("model", ["aott", "ddmemory"])
def test_a_graph_is_recorded_with_all_tensors_on_cuda(model, policy):
    assert_steps_on_fake_cuda(predictor_of(model, f"memory.policy={policy}", "memory.gap=2", "memory.capacity=2",
                                           "memory.global_interval=2"))


@pytest.mark.parametrize("model", model_names())
def test_every_model_is_recorded_with_all_tensors_on_cuda(model):
    assert_steps_on_fake_cuda(predictor_of(model, "memory.gap=2"))


def assert_steps_on_fake_cuda(predictor: Predictor) -> None:
    """The predictor's own step, from the frame to the labels: no tensor elsewhere, nobody looks at a value."""
    view = View(0, (49, 65) if predictor.network.align_corners else (48, 64), False, [])
    with FakeTensorMode() as mode:
        predictor.network, predictor.device = on_fake_cuda(predictor.network, mode), torch.device("cuda")
        predictor._graphs, predictor._size, predictor._views = Graphs(Nothing()), SIZE, [view]
        with torch.device("cuda"), torch.inference_mode():
            predictor._ids.ids, predictor._table = [3, 7], torch.zeros(256, dtype=torch.uint8)
            frame = torch.zeros(*SIZE, 3, dtype=torch.uint8)
            with predictor._precision():
                features = predictor.network.encode(predictor._look(frame, view))
                view.states.append(predictor.network.start(features, torch.zeros(1, *view.size, dtype=torch.uint8), 2))
            for _ in range(5):  # the first runs without a graph, the second records
                labels = predictor.step(frame)
        assert labels.device.type == "cuda" and labels.shape == SIZE and labels.dtype == torch.uint8
        graph = predictor._graphs.known[(SIZE, view.size, False, 2)]
        assert len(graph.pieces) == predictor.config.model.blocks and view.states[0].frame == 5
