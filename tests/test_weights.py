"""Weights in and out: names both ways, strictness, damage, and files that hold code."""

import json
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.swin_transformer import WindowAttention

from common.errors import Notice, UserError
from configs import load_config, model_config_path, model_names
from models import build_network, load_encoder_weights, load_state, load_weights, save_weights
from models.weights import read_tensors, recognise, window_index
from tests.conftest import REPOSITORY
from tools.convert_checkpoint import convert_official, export, official_state

OFFICIAL = [name for name in model_names() if "ddmemory" not in name]


@pytest.mark.parametrize("name", OFFICIAL)
def test_names_and_shapes_are_the_official_ones(name, shared):
    manifest = json.loads((shared / "golden" / "aot" / "manifests" / f"{name}.json").read_text())
    config = load_config(model_config_path(name))
    exported = official_state(build_network(config).state_dict(), config)
    assert {key: list(value.shape) for key, value in exported.items()} \
        == {key: entry["shape"] for key, entry in manifest["entries"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recognised = recognise(exported, name)
    assert recognised == (name[:-1] + "l" if name.endswith("b") else name)


def test_a_trained_official_file_survives_there_and_back_to_the_byte(shared, tmp_path):
    source = shared / "golden" / "aot" / "real" / "aott_official_names.safetensors"
    report = convert_official(source, tmp_path / "ours.safetensors")
    assert report[0] == "recognised aott from 323 keys"
    export(tmp_path / "ours.safetensors", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == source.read_bytes()
    export(tmp_path / "ours.safetensors", tmp_path / "back.pth")
    config, tensors = load_weights(tmp_path / "back.pth", "aott")
    load_state(build_network(config), tensors, "back.pth")


def test_b_and_l_are_told_apart_only_by_the_user(tmp_path):
    config = load_config(model_config_path("deaotb"))
    save_file(official_state(build_network(config).state_dict(), config), tmp_path / "b.safetensors")
    report = "\n".join(convert_official(tmp_path / "b.safetensors", tmp_path / "out.safetensors"))
    with pytest.warns(Notice, match="--model deaotb"):
        load_weights(tmp_path / "b.safetensors")
    assert "recognised deaotl" in report and "--model deaotb" in report
    convert_official(tmp_path / "b.safetensors", tmp_path / "out.safetensors", "deaotb")
    assert load_weights(tmp_path / "out.safetensors")[0].memory.gap == 9999


@pytest.mark.parametrize("harm, said", [
    (lambda tensors: tensors.pop("LSTT.layers.0.linear_Q.bias"), "1 missing .first: LSTT.layers.0.linear_Q.bias"),
    (lambda tensors: tensors.update({"LSTT.layers.0.linear_X.bias": torch.zeros(3)}), "LSTT.layers.0.linear_X.bias"),
    (lambda tensors: tensors.update({"decoder.conv_out.bias": torch.zeros(7)}), r"decoder.conv_out.bias \(7,\)"),
], ids=["missing", "extra", "mis-shaped"])
def test_conversion_is_strict_and_names_the_key(harm, said, shared, tmp_path):
    tensors = load_file(shared / "golden" / "aot" / "real" / "aott_official_names.safetensors")
    harm(tensors)
    save_file(tensors, tmp_path / "harmed.safetensors")
    with pytest.raises(UserError, match=said):
        convert_official(tmp_path / "harmed.safetensors", tmp_path / "out.safetensors", "aott")
    assert not (tmp_path / "out.safetensors").exists()


INDEX = "encoder.layers.1.blocks.0.attn.relative_position_index"


@pytest.mark.parametrize("variant, harm, said", [
    ("deaott", lambda tensors: tensors.pop("id_norm.weight"), "1 missing .first: id_norm.weight"),
    ("r50_deaotl", lambda tensors: tensors.pop("encoder.conv1.weight"), "1 missing .first: encoder.conv1.weight"),
    ("aott", lambda tensors: tensors.update({"encoder.conv1.weight": torch.zeros(3), "id_norm.weight": torch.zeros(3)}),
     "2 extra .first: encoder.conv1.weight"),
    ("aott", lambda tensors: tensors.update({"bogus.relative_position_index": torch.zeros(3),
                                             "bogus.num_batches_tracked": torch.zeros(())}), "2 extra .first: bogus"),
    ("aott", lambda tensors: (tensors.pop("LSTT.mask_token"), tensors.update({"bogus": torch.zeros(3)})),
     "1 missing .first: LSTT.mask_token.; 1 extra .first: bogus"),
    ("swinb_aotl", lambda tensors: tensors.pop(INDEX), f"{INDEX} is missing"),
    ("swinb_aotl", lambda tensors: tensors[INDEX].zero_(), f"1 extra .first: {INDEX}"),
])
def test_a_harmed_file_is_still_recognised_and_every_harm_is_named(variant, harm, said, tmp_path):
    config = load_config(model_config_path(variant))
    tensors = official_state(build_network(config).state_dict(), config)
    harm(tensors)
    save_file(tensors, tmp_path / "harmed.safetensors")
    with pytest.raises(UserError, match=said):
        convert_official(tmp_path / "harmed.safetensors", tmp_path / "out.safetensors")


def test_swins_own_file_with_its_attention_masks_loads_into_the_encoder(tmp_path):
    encoder = build_network(load_config(model_config_path("swinb_aotl"))).encoder
    tensors = {key: value for key, value in encoder.state_dict().items() if not key.startswith("norm")}
    tensors |= {key: torch.zeros(1) for key in ("layers.0.blocks.1.attn_mask", "norm.weight", "head.bias")}
    torch.save({"model": {key.removeprefix("net."): value for key, value in tensors.items()}}, tmp_path / "swin.pth")
    load_encoder_weights(encoder, "swin_base", tmp_path / "swin.pth")
    torch.save({"model": {**tensors, "layers.0.blocks.1.other": torch.zeros(1)}}, tmp_path / "swin.pth")
    with pytest.raises(UserError, match="1 extra"):
        load_encoder_weights(encoder, "swin_base", tmp_path / "swin.pth")


def test_a_prefix_goes_only_where_all_have_it(tmp_path):
    for name in ("file.safetensors", "file.pth"):
        path, write = tmp_path / name, save_file if name.endswith("safetensors") else torch.save
        write({"module.x": torch.ones(1), "module.y": torch.ones(1)}, path)
        assert set(read_tensors(path)[0]) == {"x", "y"}
        write({"module.x": torch.ones(1), "x": torch.zeros(1)}, path)
        assert set(read_tensors(path)[0]) == {"module.x", "x"}


class Malicious:
    """Unpickled, it would create a file."""

    def __reduce__(self):
        return (open, ("owned", "w"))


def test_a_pickle_with_code_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "bad": Malicious()}, tmp_path / "bad.pth", pickle_module=pickle)
    with pytest.raises(UserError, match="holds code, which is never run"):
        load_weights(tmp_path / "bad.pth", "aott")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_named(content, suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.\w+: cannot be read as weights"):
        load_weights(path, "aott")


def test_an_encoder_is_not_taken_for_a_network(tmp_path):
    tensors = {"features.0.0.weight": torch.zeros(1), "classifier.1.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match="weights of an image classifier"):
        load_weights(tmp_path / "net.safetensors")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    config = load_config(model_config_path("aott"))
    network = build_network(config)
    with torch.no_grad():
        network.decoder.conv_in.conv.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"x\.pth: 1 weights are not finite \(first: decoder\.conv_in\.conv\.weight"):
        load_state(network, network.state_dict(), "x.pth")


@pytest.mark.parametrize("text", ['{"hidden_size": 3}', "x", "a: [", "model: {blocks: 3}"])
def test_another_programs_configuration_is_none(text, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, str(path), metadata={"config": text})
    with pytest.raises(UserError, match="carries no configuration"):
        load_weights(path)


def test_weights_carry_their_configuration_and_refuse_another_model(tmp_path):
    config = load_config(model_config_path("aott"), ["memory.gap=7"])
    save_weights(tmp_path / "own.safetensors", build_network(config).state_dict(), config)
    assert load_weights(tmp_path / "own.safetensors")[0] == config
    assert load_weights(tmp_path / "own.safetensors", overrides=["memory.gap=3"])[0].memory.gap == 3
    with pytest.raises(UserError, match="holds weights of aott, not of deaott"):
        load_weights(tmp_path / "own.safetensors", "deaott")
    other = load_config(model_config_path("aots"))
    with pytest.raises(UserError, match=r"do not fit the model: .* missing"):
        load_state(build_network(other), load_weights(tmp_path / "own.safetensors")[1], "own.safetensors")


def test_imagenet_weights_load_under_torchvision_names_and_under_timm_names(shared, tmp_path):
    path = shared / "weights" / "mobilenet_v2_1.0_imagenet.safetensors"
    config = load_config(model_config_path("aott"), [f"model.encoder_weights={path}"])
    network = build_network(config)
    source = load_file(path)
    assert torch.equal(network.encoder.conv_stem.weight, source["features.0.0.weight"].float())
    assert torch.equal(network.encoder.bn2.running_var, source["features.18.1.running_var"])
    save_file(network.encoder.state_dict(), tmp_path / "timm.safetensors")
    again = build_network(load_config(model_config_path("aott")))
    load_encoder_weights(again.encoder, "mobilenetv2", tmp_path / "timm.safetensors")
    assert torch.equal(again.encoder.conv_head.weight, network.encoder.conv_head.weight)
    with pytest.raises(UserError, match="does not fit resnet50"):
        build_network(load_config(model_config_path("r50_aotl"), [f"model.encoder_weights={path}"]))


def test_what_the_official_code_would_read_otherwise_is_not_exported(tmp_path):
    for setting in ("model.heads=4", "model.align_corners=false"):
        config = load_config(model_config_path("aott"), [setting])
        save_weights(tmp_path / "ours.safetensors", build_network(config).state_dict(), config)
        with pytest.raises(UserError, match="was trained with " + setting.partition("=")[0]):
            export(tmp_path / "ours.safetensors", tmp_path / "out.pth")


def test_swins_index_is_that_of_its_window_attention():
    attention = WindowAttention(32, 4, window_size=(7, 7))
    assert torch.equal(window_index(attention.relative_position_bias_table), attention.relative_position_index)


def test_conversion_touches_neither_its_source_nor_what_is_converted(tmp_path):
    config = load_config(model_config_path("aott"))
    path = tmp_path / "ours.safetensors"
    save_weights(path, build_network(config).state_dict(), config)
    with pytest.raises(UserError, match="--to-official"):
        convert_official(path, tmp_path / "again.safetensors")
    before = path.read_bytes()
    command = [sys.executable, "-m", "tools.convert_checkpoint", "--to-official", str(path), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2 and "is the source, too" in done.stderr and path.read_bytes() == before


def test_what_the_official_code_could_not_load_is_not_exported(tmp_path):
    config = load_config(model_config_path("aott"), ["model.channels=128"])
    save_weights(tmp_path / "small.safetensors", build_network(config).state_dict(), config)
    with pytest.raises(UserError, match="differs in shape from aott"):
        export(tmp_path / "small.safetensors", tmp_path / "small.pth")
    assert not (tmp_path / "small.pth").exists()
