"""Every network that ships: counts, shapes, invariants of the state, and a step with all tensors on a GPU (faked)."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs import load_config, model_config_path, model_names
from inference import Predictor
from inference.predictor import View
from models import build_network
from models.network import Network
from models.start import DETAIL, SAFE, SELF_SCORE, lead_through

SMALL = (65, 81)


def network_of(name: str, *overrides: str) -> Network:
    torch.manual_seed(0)
    return build_network(load_config(model_config_path(name), overrides)).eval()


def on_fake_cuda(network: Network, mode: FakeTensorMode) -> Network:
    """The network with every parameter and buffer a fake tensor on cuda."""
    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            fake = mode.from_tensor(value).detach().to("cuda")
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=value.requires_grad))
        for name, value in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(value).to("cuda"))
    return network


def labels(objects: int, batch: int = 1) -> torch.Tensor:
    rows = torch.arange(SMALL[0]) * (objects + 1) // SMALL[0]
    return rows[None, :, None].expand(batch, *SMALL).contiguous()


@pytest.mark.parametrize("name", [name for name in model_names() if "ddmemory" not in name])
def test_parameter_counts_are_the_official_ones(name, shared):
    manifest = json.loads((shared / "golden" / "aot" / "manifests" / f"{name}.json").read_text())
    network = network_of(name)
    assert sum(p.numel() for p in network.parameters()) == manifest["parameters"]
    assert sum(p.numel() for p in network.encoder.parameters()) == manifest["encoder_parameters"]
    unused = network.mask_token.numel() if hasattr(network, "mask_token") else 0  # official code calls it trainable
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) + unused == manifest["trainable_parameters"]


@pytest.mark.parametrize("name", model_names())
def test_predictor_step_and_training_step_run_with_all_tensors_on_cuda(name):
    """No tensor of either step may stay on another device than its inputs'."""
    config = load_config(model_config_path(name), ["inference.long_edge=null"])
    predictor = Predictor.from_config(config)
    network = build_network(config).train()
    view = SMALL if config.model.align_corners else (64, 80)
    with FakeTensorMode() as mode:
        predictor.network, predictor.device = on_fake_cuda(predictor.network, mode), torch.device("cuda")
        with torch.device("cuda"), torch.inference_mode():
            image = predictor._look(torch.zeros(*SMALL, 3, dtype=torch.uint8), View(0, view, True, []))
            features = predictor.network.encode(image)
            masks = torch.zeros(1, *view, dtype=torch.uint8)
            state = predictor.network.start(features, masks, 3)
            _, tokens = predictor.network.segment(features, state)
            state = predictor.network.memorise(tokens, masks, state)
            state = predictor.network.add_objects(features, masks, state, 4)
            logits, _ = predictor.network.segment(features, state)
            assert logits.device.type == "cuda" and logits.shape[1] == 5
            assert predictor.network.upsample(logits, SMALL).argmax(1).device.type == "cuda"

        network = on_fake_cuda(network, mode)
        with torch.device("cuda"):
            features = network.encode(torch.zeros(2 * 3, 3, *view)).chunk(3)
            masks = torch.zeros(2, *view, dtype=torch.int64)
            slots = torch.stack([torch.arange(10), torch.arange(10).flip(0)])
            state = network.start(features[0], masks, [1, 2], slots=slots)
            total = network.reference_logits(features[0], state).sum()
            for frame in features[1:]:
                logits, tokens = network.segment(frame, state)
                total = total + logits.sum()
                state = network.memorise(tokens, masks, state)
            # The autograd engine asks for a real card, so the backward pass runs in `pytest -m cuda`.
            assert total.device.type == "cuda" and total.requires_grad


@pytest.mark.parametrize("name", ["aott", "deaots"])
def test_segmenting_changes_neither_state_nor_network(name):
    network = network_of(name)
    with torch.inference_mode():
        features = network.encode(torch.rand(1, 3, *SMALL))
        state = network.start(features, labels(2), 2)
        before = [tensor.clone() for kept in state.long.tensors for tensor in kept]
        first, _ = network.segment(features, state)
        second, _ = network.segment(features, state)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, [t for kept in state.long.tensors for t in kept], strict=True))


@pytest.mark.parametrize("name", ["aots", "deaots"])
def test_training_and_inference_memory_give_the_same_logits(name):
    """The joined memory of training and the pre-allocated one of inference are read by the same code."""
    network = network_of(name, "memory.gap=1")
    frames = torch.rand(4, 3, *SMALL)

    def run() -> torch.Tensor:
        features = network.encode(frames).chunk(4)
        state = network.start(features[0], labels(2), 2)
        for frame in features[1:3]:
            _, tokens = network.segment(frame, state)
            state = network.memorise(tokens, labels(2), state)
        return network.segment(features[3], state)[0]

    trained = run()
    assert trained.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(run(), trained.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["aott", "deaott"])
def test_a_shuffled_identity_is_only_a_renaming(name):
    """With identity slots swapped both in the masks and in the weights, the logits are the same."""
    network = network_of(name)
    slots = torch.randperm(10, generator=torch.Generator().manual_seed(1))[None]
    features = network.encode(torch.rand(1, 3, *SMALL))
    with torch.no_grad():
        plain = network.segment(features, network.start(features, labels(3), 3))[0]
        order = torch.cat([torch.zeros(1, dtype=torch.int64), slots[0] + 1])
        for weight in (network.identity.conv.weight.data.transpose(0, 1), network.decoder.conv_out.weight.data,
                       network.decoder.conv_out.bias.data):
            weight[order] = weight.clone()
        shuffled = network.segment(features, network.start(features, labels(3), 3, slots=slots))[0]
    torch.testing.assert_close(shuffled, plain, rtol=1e-4, atol=1e-4)


def test_samples_of_a_batch_do_not_see_each_other():
    network = network_of("aots", "memory.gap=1")
    frames, masks = torch.rand(2, 3, *SMALL), torch.cat([labels(1), labels(3)])

    def run(rows: slice, objects: list[int]) -> torch.Tensor:
        features = network.encode(frames[rows])
        state = network.start(features, masks[rows], objects)
        _, tokens = network.segment(features, state)
        state = network.memorise(tokens, masks[rows], state)
        return network.segment(features, state)[0]

    with torch.inference_mode():
        both, first = run(slice(0, 2), [1, 3]), run(slice(0, 1), [1])
        torch.testing.assert_close(both[:1, :2], first, rtol=1e-3, atol=1e-3)
        assert (both[0, 2:] < -1e9).all(), "channels past a sample's own objects must be out of the race"


def test_any_timm_encoder_with_features_can_be_named():
    network = network_of("aott", "model.encoder=regnety_004")
    with torch.inference_mode():
        features = network.encode(torch.rand(1, 3, *SMALL))
        assert network.start(features, labels(1), 1).grid == (5, 6)


def test_state_clone_is_independent_and_detach_has_no_history():
    network = network_of("aott", "memory.gap=1")
    features = network.encode(torch.rand(1, 3, *SMALL))
    state = network.start(features, labels(2), 2)
    assert state.short[0][0][1].requires_grad and not state.detach().short[0][0][1].requires_grad
    with torch.inference_mode():
        state = network.start(features, labels(2), 2)
        copy = state.clone()
        _, tokens = network.segment(features, state)
        network.memorise(tokens, labels(2), state)
        assert copy.frame == 0 and copy.long.offered == 1 and state.long.offered == 2
        assert copy.num_bytes() < state.num_bytes()


def test_a_matching_start_leads_the_map_of_96_channels_to_the_last(shared):
    """It arrives unchanged, and most weights are as they were."""
    network = network_of("aott", f"model.encoder_weights={shared}/weights/mobilenet_v2_1.0_imagenet.safetensors")
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    recovered = lead_through(network.encoder)
    with torch.inference_mode():
        *_, detail, last = network.encoder(torch.randn(2, 3, 129, 161, generator=torch.Generator().manual_seed(0)))
    detail, last = (feature_map.permute(0, 2, 3, 1).flatten(0, 2) for feature_map in (detail, last))
    arrived = last @ recovered
    whole = arrived.abs().amax(1) < 0.99 * 6 / SAFE  # the others are cut off
    assert whole.float().mean() > 0.8
    mixture = torch.linalg.lstsq(detail[whole], arrived[whole]).solution.T  # (DETAIL, 96)
    assert torch.allclose(detail[whole] @ mixture.T, arrived[whole], atol=1e-3)
    assert torch.allclose(mixture @ mixture.T, torch.eye(DETAIL), atol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items()
               if not name.startswith(("blocks.5", "blocks.6", "conv_head", "bn2")))
    tail = network.encoder.conv_head.weight == before["conv_head.weight"]
    assert 0.7 < float(tail.float().mean()) < 0.9, "what counts stays"


@pytest.mark.parametrize("name", ["aott", "deaott", "ddmemory"])
def test_a_matching_start_tells_objects_apart(name, shared):
    """Exchanging two objects in the memory changes what enters the last layer: a lot; at the official start, hardly."""
    def change(start: str) -> float:
        network = network_of(name, f"model.start={start}",
                             f"model.encoder_weights={shared}/weights/mobilenet_v2_1.0_imagenet.safetensors")
        torch.manual_seed(1)
        frames = torch.randn(2, 1, 3, 129, 129)
        masks = torch.zeros(1, 129, 129, dtype=torch.long)
        masks[:, 20:60, 20:60], masks[:, 70:110, 60:120] = 1, 2
        seen = []
        network.decoder.conv_out.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.inference_mode():
            features = [network.encode(frame) for frame in frames]
            for labels in (masks, torch.tensor([0, 2, 1])[masks]):
                network.segment(features[1], network.start(features[0], labels, 2))
        return float((seen[0] - seen[1]).norm() / seen[0].norm())

    assert change("official") < 0.001 and change("matching") > 0.1


def test_a_matching_start_is_sharp_and_its_identities_are_at_right_angles():
    network = network_of("aott", "model.start=matching")
    tokens = torch.nn.functional.layer_norm(torch.randn(1, 500, 256), (256,))
    key = network.blocks[0].linear_q(tokens).unflatten(-1, (8, 32)).detach()
    assert abs(float((key * key).sum(-1).mean()) / 32**0.5 - SELF_SCORE) < 1
    weight = network.blocks[0].linear_q.weight.detach()
    assert torch.allclose(weight @ weight.T, weight[0].square().sum() * torch.eye(256), atol=1e-4), "angles stay"
    patches = torch.arange(11).view(11, 1, 1).expand(11, 33, 33)  # each wholly of one identity
    vectors = (network.identity(patches, 10)[:, 4] - network.identity.conv.bias).detach()  # (11, 256)
    assert torch.allclose(vectors @ vectors.T, 4 * 256 * torch.eye(11), atol=8)
