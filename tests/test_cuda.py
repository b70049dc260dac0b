"""What must hold on a real GPU: `pytest -m cuda`. VOS_CUDA_TESTS_ON=cpu runs the same bodies on the processor."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts: its part of determinism

import dataclasses
import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from benchmarks.scene import moving_boxes
from configs import load_config, model_config_path, model_names
from datasets.readers import read_labels
from datasets.records import open_videos
from evaluation import evaluate
from inference import Predictor
from inference.graphs import KEPT, Graphs
from inference.results import Outputs
from inference.runner import run_videos
from inference.sources import DatasetSource
from models import build_network
from models.memory import POLICIES
from models.precision import ready
from models.preprocess import normalise
from tests.test_graphs import TapeRecorder
from tests.training_helper import lines, quick_run, small_data, tiny
from tools.check_parity import Rule, run_case
from training.checkpoints import load_newest
from training.clip_model import ClipModel

DEVICE = os.environ.get("VOS_CUDA_TESTS_ON", "cuda")
ON_CPU = DEVICE == "cpu"  # a dry run: the same bodies, less data
SIZE = (97, 129)
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(),
                                                   reason="no CUDA device was found")]


@pytest.fixture(autouse=True)
def exact_float32():
    """float32 means float32: no TF32. Whatever a test changes is put back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@contextmanager
def no_waiting():
    """Any wait of the host for the device is an error."""
    if ON_CPU:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def predictor_of(model: str, *settings: str) -> Predictor:
    torch.manual_seed(0)
    predictor = Predictor.from_config(load_config(model_config_path(model), list(settings)), device=DEVICE)
    if ON_CPU and "inference.graphs=true" in settings:
        predictor._graphs = Graphs(TapeRecorder())
    return predictor


def scene(frames: int, objects: int = 3, size: tuple[int, int] = SIZE) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Frames and the first labels, tensors on the device."""
    pictures, labels = moving_boxes(size, frames, objects)
    return [torch.from_numpy(picture).to(DEVICE) for picture in pictures], torch.from_numpy(labels[0]).to(DEVICE)


def masks_of(predictor: Predictor, frames: list[torch.Tensor], first: torch.Tensor) -> torch.Tensor:
    """(T, H, W) of a video without further objects."""
    return torch.stack([predictor.start(frames[0], first), *(predictor.step(frame) for frame in frames[1:])])


def equal_share(one: torch.Tensor, two: torch.Tensor) -> float:
    return (one == two).double().mean().item()


# The official numbers.


def test_golden_cases_in_float32_with_the_recorded_masks_fed_to_the_memory(shared):
    golden = shared / "golden" / "aot"
    rule, rows = Rule(golden / "manifests"), []
    for path in sorted(golden.glob("cases/*/case.json")):
        case = json.loads(path.read_text())
        if not ON_CPU or case["name"] in ("aott_round_newobj", "deaott_stskip3_gap2"):
            rows.append(run_case(path.parent, case, rule, True, DEVICE))
    assert len(rows) == (2 if ON_CPU else 16) and all(row.passed for row in rows), rows


class Leading(Predictor):
    """Keeps the labels that it feeds to its memory."""

    def _to_view(self, labels, view):
        self.fed = labels
        return super()._to_view(labels, view)


class Following(Predictor):
    """Feeds its memory with another predictor's labels."""

    def _to_view(self, labels, view):
        return super()._to_view(self.leader.fed, view)


def clips(shared, name: str) -> list[DatasetSource]:
    found = open_videos(shared / "data" / name, "val", objects="first")
    sources = [DatasetSource(video, found.objects) for video in found.videos]
    if ON_CPU:
        del sources[1:]
        sources[0].video = dataclasses.replace(sources[0].video, frames=sources[0].video.frames[:5])
    return sources


def trained(shared, kind: type[Predictor], *settings: str) -> Predictor:
    weights = shared / "golden" / "aot" / "real" / "aott_official_names.safetensors"
    return kind(weights, "aott", device=DEVICE, overrides=settings)


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["davis16", "real"])
def test_half_precision_agrees_with_float32s_masks_fed_to_its_memory(name, amp, shared):
    leader, follower = trained(shared, Leading), trained(shared, Following, f"inference.amp={amp}")
    follower.leader = leader
    equal, total = 0, 0
    for source in clips(shared, name):
        for number, frame in enumerate(source):
            masks = [predictor.start(frame.image, frame.given) if number == 0 else predictor.step(frame.image)
                     for predictor in (leader, follower)]
            if number:
                equal, total = equal + int((masks[0] == masks[1]).sum()), total + masks[0].size
    assert equal >= 0.995 * total, f"{equal / total:.4%} of the pixels"


@pytest.mark.parametrize("name", ["davis16", "real"])
def test_half_precision_running_freely_scores_as_float32(name, shared, tmp_path):
    """And float32 gives the official masks, as on the processor."""
    scores = {}
    for amp in ("none", "fp16", "bf16"):
        run_videos(trained(shared, Predictor, f"inference.amp={amp}"), clips(shared, name), Outputs(tmp_path / amp))
        if not ON_CPU:
            scores[amp] = 100 * evaluate(shared / "data" / name, tmp_path / amp, protocol="davis2017").jf
    print(name, scores)
    equal, total = 0, 0
    for source in clips(shared, name):
        for stem in source.video.frames:
            ours, theirs = (read_labels(folder / source.name / f"{stem}.png") for folder in (
                tmp_path / "none" / "masks", shared / "golden" / "aot" / "real" / "masks" / name))
            equal, total = equal + int((ours == theirs).sum()), total + ours.size
    assert equal >= 0.999 * total, f"{equal / total:.4%} of the official pixels"
    assert all(abs(score - scores["none"]) <= 1.0 for score in scores.values()), scores


# The step: no waiting, the same masks every time, graphs and streams.


@pytest.mark.parametrize("graphs", ["false", "true"])
@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_no_policy_makes_the_host_wait(policy, amp, graphs):
    check_no_waiting("aott", f"memory.policy={policy}", "memory.gap=1", "memory.capacity=3",
                     f"inference.graphs={graphs}", f"inference.amp={amp}")


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("model", model_names())
def test_no_model_makes_the_host_wait(model, amp):
    check_no_waiting(model, "memory.gap=2", f"inference.amp={amp}", "inference.graphs=true")


@pytest.mark.parametrize("settings", [("inference.flip=true",), ("inference.scales=[1.0,1.3]",)], ids=str)
def test_no_augmentation_makes_the_host_wait(settings):
    check_no_waiting("aott", *settings)


def check_no_waiting(model: str, *settings: str) -> None:
    predictor = predictor_of(model, *settings)
    frames, first = scene(12)
    predictor.start(frames[0], first)
    for frame in frames[1:6]:  # kernels are loaded and graphs recorded when first needed
        predictor.step(frame)
    with no_waiting():
        labels = [predictor.step(frame) for frame in frames[6:]]
    assert all(label.device.type == DEVICE and label.shape == SIZE for label in labels)


@pytest.mark.parametrize("amp", ["none", "fp16", "bf16"])
@pytest.mark.parametrize("model", ["aott", "deaott", "r50_aotl", "swinb_deaotl", "ddmemory"])
def test_two_runs_and_graphs_give_the_same_masks(model, amp):
    frames, first = scene(10)
    settings = ("memory.gap=2", "memory.global_interval=2", f"inference.amp={amp}")
    plain = predictor_of(model, *settings)
    masks = masks_of(plain, frames, first)
    assert torch.equal(masks, masks_of(plain, frames, first)), "two runs"
    graphed = predictor_of(model, *settings, "inference.graphs=true")
    masks_of(graphed, frames, first)  # records: a first step without a graph is equal but for rounding
    replayed = masks_of(graphed, frames, first)
    assert any(graphed._graphs.known.values())
    assert torch.equal(replayed, masks_of(graphed, frames, first)), "two runs with graphs"
    assert equal_share(masks, replayed) >= 0.9999, "with and without graphs"
    state, other = plain._views[0].states[0], graphed._views[0].states[0]
    assert state.long.offered == other.long.offered and torch.equal(state.long.frame, other.long.frame)


def test_graphs_that_outlive_others_give_the_same_masks():
    """More kinds of frames than graphs are kept: recording a new one ends the oldest, whose memory the others shall not
    need."""
    predictor = predictor_of("r50_aotl", "inference.graphs=true", "inference.amp=bf16")
    plain = predictor_of("r50_aotl", "inference.amp=bf16")
    for objects in (*range(1, 2 + KEPT), *range(2, 2 + KEPT)):
        frames, first = scene(4, objects)
        expected, found = (masks_of(one, frames, first) for one in (plain, predictor))
        assert equal_share(expected, found) >= 0.9999, objects
    assert len(predictor._graphs.known) == KEPT and all(predictor._graphs.known.values())


def test_a_late_object_under_graphs():
    frames, first = scene(12)
    late = torch.zeros_like(first)
    late[:20, :20] = 9
    results = []
    for graphs in ("false", "true"):
        predictor = predictor_of("aott", "memory.gap=2", f"inference.graphs={graphs}")
        predictor.start(frames[0], first)
        masks = [predictor.add_objects(frame, late) if number == 5 else predictor.step(frame)
                 for number, frame in enumerate(frames[1:])]
        results.append(torch.stack(masks))
    assert equal_share(*results) >= 0.9999 and 9 in results[0][5]


@pytest.mark.parametrize("graphs", ["false", "true"])
def test_several_videos_at_once_give_the_same_files(graphs, tmp_path):
    """Streams, graphs, pinned copies and several writing threads, from JPEG to PNG."""
    root = small_data(tmp_path / "data")
    found = open_videos(root, "train")
    predictor = predictor_of("aott", "memory.gap=2", f"inference.graphs={graphs}", "inference.amp=bf16")
    for name, streams in (("one", 1), ("three", 3)):
        run_videos(predictor, [DatasetSource(video, found.objects) for video in found.videos],
                   Outputs(tmp_path / name), streams)
    files = sorted((tmp_path / "one" / "masks").rglob("*.png"))
    assert len(files) == 30
    for path in files:
        other = tmp_path / "three" / path.relative_to(tmp_path / "one")
        same = (read_labels(path) == read_labels(other)).mean()
        # With graphs a video's first step runs without one where no video before recorded it.
        assert same == 1 if graphs == "false" else same >= 0.9999, (other, same)


def test_arrays_and_tensors_give_the_same_masks():
    frames, first = scene(6, size=(100, 130))  # the network's size differs, so that frames are resized
    predictor = predictor_of("aott")
    tensors = masks_of(predictor, frames, first)
    arrays = [predictor.start(frames[0].cpu().numpy(), first.cpu().numpy()),
              *(predictor.step(frame.cpu().numpy()) for frame in frames[1:])]
    assert all(isinstance(mask, np.ndarray) for mask in arrays)
    assert equal_share(tensors.cpu(), torch.from_numpy(np.stack(arrays))) >= (0.99 if ON_CPU else 1.0)


# Training.


def step_of(model: str, device: str, dtype: torch.dtype, amp: torch.dtype | None = None):
    """Loss and gradients of one training step without any random layer."""
    ready(torch.device(device))
    config = load_config(model_config_path(model), ["model.drop_path=0", "model.conv_dropout=0"])
    torch.manual_seed(0)
    network = build_network(config).to(device, dtype).train()
    side = 97 if config.model.align_corners else 96
    pictures, labels = moving_boxes((side, side), 3, 3)
    frames = normalise(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float())
    frames = frames.unsqueeze(1).to(device, dtype).expand(-1, 2, -1, -1, -1)  # (T, B, 3, H, W)
    masks = torch.from_numpy(np.stack(labels)).long().unsqueeze(1).to(device).expand(-1, 2, -1, -1)
    slots = torch.stack([torch.arange(10), torch.arange(10).flip(0)]).to(device)
    with torch.autocast(torch.device(device).type, amp, enabled=amp is not None):
        loss = ClipModel(network, config)(frames, masks, [3, 3], 0, slots)["loss"]
    loss.backward()
    gradients = [p.grad.double().flatten().cpu() for p in network.parameters() if p.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("model", ["aott", "deaott", "r50_aotl", "ddmemory"])
def test_a_training_step_is_the_processors(model):
    expected, reference = step_of(model, "cpu", torch.float64)
    # DDMemory's state begins with copies of a frame: which of two equal tokens is the likest, rounding decides.
    exact = (1e-5, 1e-2) if model == "ddmemory" else (1e-9, 1e-6)
    for dtype, (loss_allowed, gradient_allowed) in ((torch.float64, exact), (torch.float32, (1e-4, 1e-2))):
        loss, gradient = step_of(model, DEVICE, dtype)
        assert abs(loss / expected - 1) <= loss_allowed, (dtype, loss, expected)
        assert (gradient - reference).norm() <= gradient_allowed * reference.norm(), dtype


@pytest.mark.parametrize("model", ["aott", "deaott"])
def test_a_training_step_in_bf16_is_near(model):
    loss, gradient = step_of(model, DEVICE, torch.float32, torch.bfloat16)
    expected, reference = step_of(model, "cpu", torch.float64)
    assert abs(loss / expected - 1) <= 0.02, (loss, expected)
    assert torch.cosine_similarity(gradient, reference, 0) >= 0.95


@pytest.mark.parametrize("settings", [(), ("train.amp=bf16",), ("train.amp=fp16",),
                                      ("model.encoder=mobilenetv2", "model.name=aott")], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(settings, tmp_path):
    data = small_data(tmp_path / "data")
    own = ("train.deterministic=true", *settings)
    quick_run(tmp_path / "whole", tiny(data, *own), device=DEVICE)
    quick_run(tmp_path / "parts", tiny(data, *own, "train.stop_at=2"), device=DEVICE)
    quick_run(tmp_path / "parts", resume=True, device=DEVICE)
    assert lines(tmp_path / "whole", "loss", "gradient") == lines(tmp_path / "parts", "loss", "gradient")
    whole, parts = (load_newest(tmp_path / name / "checkpoints")[0] for name in ("whole", "parts"))
    for part in ("model", "ema"):
        tensors = {name: value for name, value in whole[part].items() if isinstance(value, torch.Tensor)}
        assert tensors and all(torch.equal(value, parts[part][name]) for name, value in tensors.items()), part
