"""Policies inside the network: every one with AOT and DeAOT, late objects, groups, and a bank of constant size."""

import gc
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs import load_config, model_config_path
from inference import Predictor
from inference.predictor import gather_evidence
from models import build_network
from models.memory import POLICIES

BOUNDED = sorted(name for name, policy in POLICIES.items() if policy.bounded)
SMALL = ["model.blocks=2", "model.channels=64", "memory.capacity=2", "memory.gap=1"]


def predictor_of(model: str, policy: str, *overrides: str) -> Predictor:
    torch.manual_seed(0)
    config = load_config(model_config_path(model), [*SMALL, f"memory.policy={policy}", "memory.min_confidence=0.0",
                                                    *overrides])
    return Predictor.from_config(config, build_network(config))


def test_evidence_is_what_the_probabilities_say():
    chances = torch.tensor([[.1, .8, .1], [.6, .3, .1], [.2, .2, .6], [.9, .05, .05]])  # (pixels, background and two)

    def gathered(chances: torch.Tensor):  # each of two by two tokens has four by four pixels of the logits
        logits = chances.log().T.reshape(1, 3, 2, 2)
        return gather_evidence(logits.repeat_interleave(4, 2).repeat_interleave(4, 3), align_corners=False)

    found = gathered(chances)
    assert found.presence.tolist() == [.25, .25]
    torch.testing.assert_close(found.confidence, torch.tensor([.7, .4]))
    torch.testing.assert_close(found.rival, torch.tensor((.4 + .1) / 2))
    torch.testing.assert_close(found.entropy, -(chances * chances.log()).sum(1)[[0, 2]].mean())
    torch.testing.assert_close(found.foreground, torch.tensor([.9, .4, .8, .1]))
    nothing = gathered(chances[[1, 3, 1, 3]])
    assert nothing.presence.tolist() == nothing.confidence.tolist() == [0, 0] and nothing.entropy == 0


def frame(seed: int) -> torch.Tensor:
    return (255 * torch.rand(49, 65, 3, generator=torch.Generator().manual_seed(seed))).byte()


def labels(*ids: int) -> torch.Tensor:
    mask = torch.zeros(49, 65, dtype=torch.uint8)
    for place, value in enumerate(ids):
        mask[12 * (place // 4) : 12 * (place // 4) + 12, 16 * (place % 4) : 16 * (place % 4) + 16] = value
    return mask


@pytest.mark.parametrize("model", ["aott", "deaott"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_segments_with_untrained_weights(model, policy):
    predictor = predictor_of(model, policy)
    predictor.inspect = True
    predictor.start(frame(0), labels(1, 2))
    sizes = []
    for number in range(1, 9):
        out = predictor.add_objects(frame(number), labels(0, 0, 3)) if number == 3 else predictor.step(frame(number))
        assert set(out.unique().tolist()) <= {0, 1, 2, 3}
        sizes.append(predictor.num_bytes())
    stored = predictor.inspection()["groups"][0]["stored"]
    if policy == "unbounded":
        assert stored == list(range(9)) and sizes[-1] > sizes[0]
    else:
        assert sizes[-1] == sizes[-3]
    if POLICIES[policy].protects_references:
        assert {0, 3} <= set(stored)


@pytest.mark.parametrize("model", ["aott", "deaott"])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_runs_in_the_network_on_a_device_without_looking_at_values(model, policy):
    network = predictor_of(model, policy).network
    with FakeTensorMode() as mode, torch.no_grad():
        for module in network.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = torch.nn.Parameter(mode.from_tensor(value).to("cuda"), False)
            for name, value in module._buffers.items():
                module._buffers[name] = value if value is None else mode.from_tensor(value).to("cuda")
        features = network.encode(torch.empty(1, 3, 49, 65, device="cuda"))
        masks = torch.empty(1, 49, 65, dtype=torch.uint8, device="cuda")
        state = network.start(features, masks, 2)
        for number in range(1, 7):
            logits, tokens = network.segment(features, state)
            if number == 3:
                state = network.add_objects(features, masks, state, 3)
            else:
                state = network.memorise(tokens, masks, state, gather_evidence(logits, network.align_corners))
        assert logits.device.type == state.long.frame.device.type == "cuda"


@torch.inference_mode()
def test_an_empty_slot_is_never_read():
    """A policy that declines leaves slots empty within reach; what is in them must not matter."""
    predictor = predictor_of("aott", "absence_aware", "memory.min_confidence=1.0")
    predictor.start(frame(0), labels(1, 2))
    for number in range(1, 4):
        predictor.step(frame(number))
    bank = predictor._views[0].states[0].long
    assert bank.filled.tolist() == [True, False, False, False] and bank.offered == 4
    features = predictor.network.encode(torch.zeros(1, 3, 49, 65))
    before, _ = predictor.network.segment(features, predictor._views[0].states[0])
    for kept in bank.tensors:
        for tensor in kept:
            tensor[:, 1:] = 1e3
    after, _ = predictor.network.segment(features, predictor._views[0].states[0])
    assert torch.equal(before, after)


def test_groups_of_ten_objects_remember_apart():
    predictor = predictor_of("aott", "rmem")
    predictor.start(frame(0), labels(*range(1, 12)))
    predictor.step(frame(1))
    first, second = predictor._views[0].states
    assert (first.objects, second.objects) == ([10], [1])
    assert first.long is not second.long and first.long.tensors[0][0].data_ptr() != second.long.tensors[0][0].data_ptr()
    assert not torch.equal(first.long.tensors[0][1], second.long.tensors[0][1])  # values carry the identities


def resident() -> int:
    """Pages of memory that the process holds now (its peak would hide growth below what an earlier test needed)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pytest.skip("no /proc/self/statm on this system")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "policy", "form"), [
    *(("aott", policy, "dense") for policy in BOUNDED), ("ddmemory", "references", "dense"),
    ("ddmemory", "references", "slots"), ("ddmemory", "fifo", "dense")])
def test_process_memory_is_flat(model, policy, form):
    """What the process holds at frame 3,000 is within 2 % of frame 300, and the memory itself to the byte."""
    predictor = predictor_of(model, policy, "model.blocks=1", "memory.capacity=4", f"model.global_bank={form}",
                             "memory.global_interval=1")
    predictor.start(frame(0), labels(1, 2))
    held, sizes = {}, {}
    for number in range(1, 3001):
        predictor.step(frame(number % 50))
        if number in (300, 3000):
            gc.collect()
            held[number], sizes[number] = resident(), predictor.num_bytes()
    assert sizes[3000] == sizes[300]
    assert held[3000] <= 1.02 * held[300]
