"""Every recipe loads, its chain holds together, and one training step of every model runs with all tensors on cuda."""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.errors import UserError
from configs import load_config, model_config_path, model_names
from models import build_network
from models.noise import SampleNoise
from tests.conftest import REPOSITORY
from tests.test_networks import on_fake_cuda
from train import chain
from training.clip_model import ClipModel
from training.loop import check
from training.optimiser import build_optimiser, learning_rate, set_learning_rate

RECIPES = sorted(path.stem for path in (REPOSITORY / "configs" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_and_its_stages_load(name):
    configs = chain(Path("configs/recipes") / f"{name}.yaml", ["train.batch=4"])
    assert configs[-1].name == name
    assert len({config.model.name for config in configs}) == 1
    for config in configs:
        check(config)
        assert config.train.batch == 4


@pytest.mark.parametrize(("text", "message"), [
    ("train: {lr: 0.5}\nseed: 1\ntrain: {batch: 2}\n", "the key 'train' occurs twice"),
    ("train: {frames: 3, frames: 9}\n", "the key 'frames' occurs twice"),
    ("name: 2024-13-45\n", "month must be in"),
])
def test_a_file_that_says_two_things_or_none_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(tmp_path / "mine.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path / "mine.yaml" / "x")


def test_a_file_may_merge_what_it_names(tmp_path):
    (tmp_path / "merged.yaml").write_text("train:\n  <<: {lr: 0.5, batch: 2}\n  batch: 3\n")
    merged = load_config(tmp_path / "merged.yaml").train
    assert (merged.lr, merged.batch) == (0.5, 3)


def test_the_official_stages_have_the_official_numbers():
    pre, main = chain(REPOSITORY / "configs" / "recipes" / "pre_ytb_dav.yaml", [])
    assert (pre.train.lr, pre.train.weight_decay, pre.train.aux_ratio, pre.train.merge) == (4e-4, 0.03, 0.1, 1.0)
    assert (main.train.lr, main.train.weight_decay, main.train.aux_ratio, main.train.merge) == (2e-4, 0.07, 1.0, 0.3)
    assert [(source.repeat, source.max_gap) for source in main.data.sources] == [(1, 3), (5, 12)]
    # Measured on the official code (facts, section 8.4): step, others, encoder.
    for train, rows in ((main.train, [(0, 2e-5, 2e-5), (1000, 5.6e-5, 2.36e-5), (5000, 2e-4, 3.8e-5),
                                      (20000, 1.7420662e-4, 3.5420662e-5), (50000, 1.2101781e-4, 3.0101781e-5),
                                      (99999, 2.00111236e-5, 2.00011124e-5)]),
                        (pre.train, [(1000, 9.6e-5, 2.76e-5), (20000, 3.45547310e-4, 5.25547310e-5),
                                     (50000, 2.33259830e-4, 4.13259830e-5)])):
        for step, others, encoder in rows:
            assert learning_rate(step, train) == pytest.approx(others, rel=1e-7)
            assert learning_rate(step, train, part="encoder") == pytest.approx(encoder, rel=1e-7)


def test_weight_decay_spares_vectors_and_the_official_exceptions():
    network = build_network(load_config(model_config_path("aott")))
    groups = build_optimiser(network, load_config().train).param_groups
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            spared = parameter.dim() == 1 or "conv_out" in name or "relative_value" in name
            assert id(parameter) in (free if spared else decayed), name


def test_what_a_family_adds_can_learn_faster():
    config = load_config(model_config_path("ddmemory"), ["train.added_lr_ratio=5", "train.lr_min=1e-5"])
    network = build_network(config)
    optimiser = build_optimiser(network, config.train)
    set_learning_rate(optimiser, 30_000, config.train)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    of = {name: rates[id(p)] for name, p in network.named_parameters() if id(p) in rates}
    rest = of["decoder.conv_in.conv.weight"]
    assert of["global_marks"] == of["global_banks.0.gate.update.bias"] == pytest.approx(5 * rest - 4e-5)
    assert of["encoder.conv_head.weight"] == pytest.approx(0.1 * rest + 0.9e-5)


def test_muon_moves_matrices_alone_and_the_rest_as_adamw_does():
    config = load_config(model_config_path("aott"), ["train.optimiser=muon", "train.matrix_lr_ratio=5"])
    network = build_network(config)
    optimiser = build_optimiser(network, config.train)
    set_learning_rate(optimiser, 30_000, config.train)
    rates = {id(p): (group["part"], group["lr"]) for group in optimiser.param_groups for p in group["params"]}
    of = {name: rates[id(p)] for name, p in network.named_parameters() if id(p) in rates}
    matrices = {name for name, (part, _) in of.items() if part == "matrices"}
    assert {"projector.weight", "blocks.0.linear_q.weight", "decoder.conv_4x.conv.weight"} <= matrices
    assert not {name for name in matrices if name.startswith(("encoder.", "identity.", "decoder.conv_out."))
                or name.endswith("bias") or "relative" in name or "feed_forward.conv" in name}
    assert of["projector.weight"][1] - 2e-5 == pytest.approx(5 * (of["projector.bias"][1] - 2e-5))

    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    reference = {name: torch.nn.Parameter(before[name].clone()) for name, (part, _) in of.items() if part != "matrices"}
    groups = [{"params": [], "lr": group["lr"], "weight_decay": group["weight_decay"]}
              for group in optimiser.param_groups]
    for name, parameter in network.named_parameters():
        if name in reference:
            reference[name].grad = parameter.grad.clone()
            place = next(i for i, g in enumerate(optimiser.param_groups) if any(p is parameter for p in g["params"]))
            groups[place]["params"].append(reference[name])
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    optimiser.step()
    torch.optim.AdamW([group for group in groups if group["params"]]).step()
    for name, parameter in network.named_parameters():
        if name in reference:
            assert torch.equal(parameter, reference[name]), name
        elif name in matrices:
            rate = of[name][1]
            change = (parameter - before[name] * (1 - rate * config.train.weight_decay)).flatten(1)
            # Of a square matrix a few values are near 0.
            values = torch.linalg.svdvals(change.double()) / (0.2 * rate * max(change.shape) ** 0.5)
            assert values.quantile(0.05) > 0.5 and values.max() < 1.3, f"{name}: {values}"
            assert torch.sum(change * gradients[name].flatten(1)) < 0, f"{name} moved uphill"


@pytest.mark.parametrize("name", model_names())
def test_the_clip_step_runs_with_all_tensors_on_cuda(name):
    config = load_config(model_config_path(name), ["train.frames=3", "train.detach_every=1",
                                                   "train.previous_frame_reference=false"])
    network = build_network(config).train()
    side = 65 if config.model.align_corners else 64
    with FakeTensorMode() as mode:
        model = ClipModel(on_fake_cuda(network, mode), config)
        with torch.device("cuda"):
            frames = torch.zeros(3, 2, 3, side, side, dtype=torch.uint8)
            masks = torch.zeros(3, 2, side, side, dtype=torch.uint8)
            slots = torch.stack([torch.arange(10), torch.arange(10).flip(0)])
            for step in (0, config.train.steps - 1):  # true masks first, own ones last
                with SampleNoise([1, 2]):
                    result = model(frames, masks, [1, 2], step, slots)
                assert all(value.device.type == "cuda" for value in result.values())
                assert result["loss"].requires_grad and result["predictions"].shape == (2, 2, side, side)


def test_broken_yaml_is_told_with_its_place(tmp_path):
    (tmp_path / "broken.yaml").write_text("name: x\ntrain: {steps: 4\n")
    with pytest.raises(UserError, match=r"broken.yaml: not valid YAML \(line 3, column 1: expected ',' or '}'"):
        load_config(tmp_path / "broken.yaml")
    with pytest.raises(UserError, match=r"data.sources: .* \(line 1, column 5: "):
        load_config(None, ["data.sources=[{a:"])
