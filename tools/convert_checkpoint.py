"""Convert weights between the official AOT/DeAOT files and ours.

    python -m tools.convert_checkpoint R50_DeAOTL_PRE_YTB_DAV.pth r50_deaotl.safetensors
    python -m tools.convert_checkpoint --to-official runs/mine/weights.safetensors mine.pth

The variant is recognised from keys and shapes; B and L have the same, so L is taken unless --model says otherwise.
Every key must have a place, and no code in a file is ever run.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.command import run
from common.errors import Notice, UserError
from common.files import check_output_file, written_whole
from configs import Config, load_config, model_config_path
from models import build_network, load_state, load_weights, save_weights
from models.names import to_official
from models.weights import is_official, read_tensors, recognise, window_index


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.convert_checkpoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="official .pth or .safetensors; with --to-official: ours")
    parser.add_argument("target", help="file to write: .safetensors, or .pth with --to-official")
    parser.add_argument("--model", help="the variant, where keys and shapes leave it open (B or L)")
    parser.add_argument("--to-official", action="store_true", help="write our weights under the official names")
    arguments = parser.parse_args()
    check_output_file(arguments.target)
    if Path(arguments.target).resolve() == Path(arguments.source).resolve():
        raise UserError(f"{arguments.target}: is the source, too; name another file to write")
    convert = export if arguments.to_official else convert_official
    for line in convert(arguments.source, arguments.target, arguments.model):
        print(line)


def convert_official(source: str | Path, target: str | Path, model: str | None = None) -> list[str]:
    """Official file to ours; returns the report. Raises UserError for keys without a place, missing or mis-shaped."""
    if Path(target).suffix != ".safetensors":
        raise UserError(f"{target}: our weights are .safetensors files; give the target that suffix")
    tensors, _ = read_tensors(source)
    if any(key.startswith("identity.conv.") for key in tensors):
        raise UserError(f"{source}: has not the official names; ours are converted to them with --to-official")
    report = []
    if model is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # the report says it
            model = recognise(tensors, source)
        report.append(f"recognised {model} from {len(tensors)} keys")
        if model.endswith("l") and "_" not in model:
            report.append(f"note: {model[:-1]}b has the same keys and differs in its memory gap only; "
                          f"say --model {model[:-1]}b for it")
    config, renamed = load_weights(source, model)
    network = build_network(config)
    load_state(network, renamed, source, lambda key: to_official(key, config.model) or key)
    save_weights(target, network.state_dict(), config)
    left_out = len(tensors) - len(renamed)
    report.append(f"{len(tensors)} keys: {len(renamed)} converted, {left_out} left out, which follow from others")
    report.append(f"{sum(p.numel() for p in network.parameters()):,} parameters")
    report.append(f"wrote {target}")
    return report


def export(source: str | Path, target: str | Path, model: str | None = None) -> list[str]:
    """Our file to the official names, .safetensors or .pth (under 'state_dict'); returns the report."""
    tensors, _ = read_tensors(source)
    if is_official(tensors):
        raise UserError(f"{source}: has the official names already; leave --to-official out")
    config, tensors = load_weights(source, model)
    official = load_config(model_config_path(config.model.name))
    released = build_network(official).state_dict()
    for setting in ("heads", "align_corners"):  # which no shape shows
        if getattr(config.model, setting) != getattr(official.model, setting):
            raise UserError(f"{source}: was trained with model.{setting}={getattr(config.model, setting)}, unlike the "
                            f"official {config.model.name}, which would read it otherwise")
    if {key: value.shape for key, value in tensors.items()} != {key: value.shape for key, value in released.items()}:
        raise UserError(f"{source}: differs in shape from {config.model.name}, so the official code could not load it; "
                        "only the variants of docs/model_zoo.md can be exported")
    named = official_state(tensors, config, source)
    with written_whole(target) as beside:
        if Path(target).suffix == ".safetensors":
            save_file(named, str(beside))
        else:
            torch.save({"state_dict": named}, beside)
    return [f"{config.model.name}: {len(named)} keys under the official names", f"wrote {target}"]


def official_state(tensors: dict[str, Tensor], config: Config, source: str | Path = "weights") -> dict[str, Tensor]:
    """Our state dict under the official names, with the index tables of Swin that the official files carry."""
    named = {}
    for key, value in tensors.items():
        name = to_official(key, config.model)
        if name is None:
            raise UserError(f"{source}: {key} has no official name; only AOT and DeAOT variants can be exported")
        named[name] = value.contiguous()
        if key.endswith(".relative_position_bias_table"):
            named[name.replace("bias_table", "index")] = window_index(value)
    return named


if __name__ == "__main__":
    run(main)
