"""Weights in and out: our safetensors (with the configuration inside), training checkpoints, official files.

Nothing here unpickles code: torch files are read with ``weights_only``, and ours are safetensors.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from common.errors import Notice, UserError
from common.files import written_whole
from configs import Config, dump_config, load_config, model_config_path
from models.names import IGNORED, UNUSED_IMAGENET, encoder_name, from_official

CONFIG_KEY = "config"  # in the metadata of our safetensors
_TABLE, _INDEX = ".relative_position_bias_table", ".relative_position_index"  # of Swin


def save_weights(path: str | Path, state: Mapping[str, Tensor], config: Config) -> None:
    """Write weights with their configuration as one safetensors file, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with written_whole(path) as beside:
        try:
            save_file(tensors, str(beside), metadata={CONFIG_KEY: dump_config(config)})
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else error from error


def load_weights(path: str | Path, model: str | None = None, config: str | Path | None = None,
                 overrides: Iterable[str] = ()) -> tuple[Config, dict[str, Tensor]]:
    """Read weights of any kind and the configuration of the network they fit.

    Args:
        path: our .safetensors, a training checkpoint, or an official .pth or safetensors under the official names.
        model: name of a variant (``--model``); config: a configuration file (``--config``); without either the file
            must carry its configuration, or the variant is recognised by keys and shapes.
        overrides: ``key=value`` settings; they win.
    Returns:
        the configuration, and the state dict under our names.
    Raises:
        UserError: the file is missing, damaged or belongs to another model.
    """
    tensors, inside = read_tensors(path)
    tree = _configuration(inside)
    if model is not None:
        named = load_config(model_config_path(model), overrides)
        if tree is not None and tree["model"]["name"] != model:
            raise UserError(f"{path}: holds weights of {tree['model']['name']}, not of {model}; leave --model out")
        chosen = named if tree is None else load_config(tree=tree, overrides=overrides)
    elif config is not None:
        chosen = load_config(config, overrides)
    elif tree is not None:
        chosen = load_config(tree=tree, overrides=overrides)
    else:
        chosen = load_config(model_config_path(recognise(tensors, path)), overrides)
    if is_official(tensors):
        tensors = rename_official(tensors, chosen, path)
    return chosen, tensors


def _configuration(inside: str | None) -> dict[str, Any] | None:
    """The tree of a configuration text; None where it is something else, as another program may store."""
    try:
        tree = yaml.safe_load(inside or "")
    except yaml.YAMLError:
        return None
    return tree if isinstance(tree, dict) and isinstance(tree.get("model"), dict) and "name" in tree["model"] else None


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """The named tensors of a weights file as they stand, and the configuration text inside (None: it has none)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; check the path (--weights, train.weights)")
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as stream:
                metadata = stream.metadata() or {}
                content = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            return _without_prefix(content), metadata.get(CONFIG_KEY)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError,
            AttributeError) as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # of which torch says only how to run the code all the same
            first = "holds other objects than tensors, or is no torch file"
        raise UserError(f"{path}: cannot be read as weights ({first}); the file is none, is damaged, or "
                        "holds code, which is never run: check the path, or fetch it again") from error
    inside = content.get("config") if isinstance(content, dict) else None
    for key in ("ema", "state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(key, str) and isinstance(value, Tensor)
                                                 for key, value in content.items()):
        raise UserError(f"{path}: holds no table of tensors; expected a state dict, plain or under 'state_dict'")
    return _without_prefix(content), inside if isinstance(inside, str) else None


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without DistributedDataParallel's "module.", where all have it."""
    if not all(key.startswith("module.") for key in tensors):
        return dict(tensors)
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the keys are the official AOT code's."""
    return any(key.startswith(("LSTT.", "patch_wise_id_bank.")) for key in tensors)


def recognise(tensors: Mapping[str, Tensor], path: str | Path) -> str:
    """The variant that an official state dict belongs to, by keys and shapes; B and L are alike, so L is returned."""
    if not is_official(tensors) and any(map(UNUSED_IMAGENET.fullmatch, tensors)):
        raise UserError(f"{path}: weights of an image classifier, where a training begins (model.encoder_weights); "
                        "name here those of a network that segments")
    if not is_official(tensors):
        raise UserError(f"{path}: its keys are not the official ones and it carries no configuration; "
                        "say what it is with --model or --config")
    blocks = len({key.split(".")[2] for key in tensors if key.startswith("LSTT.layers.")})

    def commonest(patterns: Mapping[str, str]) -> str:
        """By most of the keys, so that one that is missing or extra is told as such."""
        return max(patterns, key=lambda name: sum(bool(re.match(patterns[name], key)) for key in tensors))

    family = commonest({"aot": r"LSTT\..*(linear_[QKV]|activation|linear[12]|norm3)\.",
                        "deaot": r"LSTT\..*(linear_(QV|QK|U|ID_V|ID_U|V1|V2|U1|U2)|dw_conv|id_norm.)\."})
    encoder = commonest({"mobilenetv2": r"encoder\.features\.", "swinb": r"encoder\.(layers|patch_embed)\.",
                         "r50": r"encoder\.layer\d"})
    if encoder == "swinb":
        return f"swinb_{family}l"
    if encoder == "r50":
        deep = sum(key.startswith("encoder.layer3.") for key in tensors) > 200  # 6 blocks have 95, 23 have 350
        return f"{'r101' if deep else 'r50'}_{family}l"
    if blocks not in (1, 2, 3):
        raise UserError(f"{path}: {blocks} transformer blocks fit no variant; say what it is with --model")
    if blocks == 3:
        warnings.warn(f"{path}: taken for {family}l, whose memory grows; {family}b has the same keys and shapes: if it "
                      f"is that, say --model {family}b", Notice, stacklevel=2)
    return family + {1: "t", 2: "s", 3: "l"}[blocks]


def rename_official(tensors: Mapping[str, Tensor], config: Config, path: str | Path) -> dict[str, Tensor]:
    """Official names to ours. A key without a place keeps its name, by which :func:`load_state` refuses it, and so does
    an index table of Swin that is not the window's; one that is missing raises UserError."""
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not _is_derived(key, value, tensors):
            renamed[from_official(key, config.model) or key] = value
        if key.endswith(_TABLE) and (index := key.removesuffix(_TABLE) + _INDEX) not in tensors:
            raise UserError(f"{path}: {index} is missing, which the official files carry; fetch the file again")
    return renamed


def _is_derived(key: str, value: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the key of an official file carries nothing: a counter beside its norm, or Swin's index of its table."""
    if key.endswith(".num_batches_tracked"):
        return key.replace("num_batches_tracked", "running_var") in tensors
    table = tensors.get(key.removesuffix(_INDEX) + _TABLE) if key.endswith(_INDEX) else None
    return table is not None and torch.equal(value, window_index(table))


def window_index(table: Tensor) -> Tensor:
    """Row of Swin's bias table ((2 s - 1)^2, heads) for each pair of positions in a window: (s^2, s^2) int64."""
    side = (round(table.shape[0] ** 0.5) + 1) // 2
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    offset = place[:, :, None] - place[:, None, :] + side - 1  # (2, side^2, side^2)
    return offset[0] * (2 * side - 1) + offset[1]


def load_state(network: nn.Module, tensors: Mapping[str, Tensor], source: str | Path,
               called: Callable[[str], str] = str) -> None:
    """Copy weights into a network, strictly: every key and shape must fit.

    ``called`` gives a key's name in ``source``, for messages.

    A family's ``added_parts`` stay as they are where the weights have none of them (AOT's weights in DDMemory).

    Raises:
        UserError: one line with the first missing, extra and mis-shaped keys, and those that hold no finite numbers.
    """
    own = network.state_dict()
    added = [key for key in own if key.startswith(getattr(network, "added_parts", ()))]
    if not any(key in tensors for key in added):
        tensors = {**tensors, **{key: own[key] for key in added}}
    missing = [called(key) for key in own if key not in tensors]
    extra = [called(key) for key in tensors if key not in own]
    shapes = [f"{called(key)} {tuple(tensors[key].shape)} instead of {tuple(own[key].shape)}"
              for key in own if key in tensors and tensors[key].shape != own[key].shape]
    if broken := [called(key) for key, value in tensors.items() if not torch.isfinite(value).all()]:
        raise UserError(f"{source}: {len(broken)} weights are not finite (first: {broken[0]}); the training that made "
                        "them diverged, or the file is damaged: use an earlier checkpoint, or fetch it again")
    problems = [f"{len(keys)} {what} (first: {keys[0]})"
                for keys, what in ((missing, "missing"), (extra, "extra"), (shapes, "mis-shaped")) if keys]
    if problems:
        raise UserError(f"{source}: weights do not fit the model: {'; '.join(problems)}; name the model "
                        "they belong to (--model, --config; in a recipe: its base)")
    network.load_state_dict(dict(tensors))


def load_encoder_weights(encoder: nn.Module, name: str, path: str | Path) -> None:
    """Load ImageNet weights into an encoder: torchvision's, timm's, the official or Swin's own names.

    The classifier and the stages that the encoder here does not have are left out; everything else must fit.
    """
    tensors, _ = read_tensors(path)
    tensors = {key.removeprefix("encoder."): value for key, value in tensors.items()}
    own = encoder.state_dict()
    found: dict[str, Tensor] = {}
    extra = []
    for key, value in tensors.items():
        target = encoder_name(key, name)
        for candidate in (target, f"net.{target}"):  # a timm network lies one level deeper
            if candidate in own:
                found[candidate] = value
                break
        else:
            if not IGNORED.fullmatch(key) and not UNUSED_IMAGENET.fullmatch(key):
                extra.append(key)
    # The norms on Swin's outputs are not in an ImageNet file; they start as they are.
    fresh = [key for key in own if name == "swin_base" and key.split(".")[0] in ("norm0", "norm1", "norm2")]
    missing = [key for key in own if key not in found and key not in fresh]
    shapes = [key for key, value in found.items() if value.shape != own[key].shape]
    if missing or extra or shapes:
        raise UserError(f"model.encoder_weights: {path} does not fit {name}: {len(missing)} keys missing, {len(extra)} "
                        f"extra, {len(shapes)} mis-shaped (first: {(missing + extra + shapes)[0]}); "
                        "choose the file of this encoder")
    encoder.load_state_dict({**own, **{key: value.to(own[key].dtype) for key, value in found.items()}})


