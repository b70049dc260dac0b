"""Drive a checkout of the official AOT/DeAOT code (yoxu515/aot-benchmark), for measurements side by side.

The checkout is imported at run time and not changed. Without the CUDA correlation extension its AOT falls back to a
class that raises a shape error, so it is pointed to its second attention class, whose unfold branch works. Under
autocast, which the official evaluation does not use, that branch mixes types, so it stays in float32.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError

NOTE = "official code without its CUDA extension: unfold branch of its second attention class"


def import_peer(path: str | Path) -> None:
    """Make the checkout importable. Raises UserError where it is not one."""
    path = Path(path).resolve()
    if not (path / "networks" / "engines" / "aot_engine.py").is_file():
        raise UserError(f"--peer {path}: no checkout of aot-benchmark; clone github.com/yoxu515/aot-benchmark there")
    # Its top-level names (configs, tools, utils, datasets) are ours too: forget ours, in a process of its own.
    for name in [name for name in sys.modules if name.split(".")[0] in ("configs", "tools", "utils", "datasets")]:
        del sys.modules[name]
    # Its packages have no __init__.py, so ours would win wherever they stand on the path: leave only the peer.
    own = Path(__file__).resolve().parent.parent
    sys.path[:] = [str(path), *(entry for entry in sys.path if Path(entry or ".").resolve() != own)]
    layers = importlib.import_module("networks.layers.transformer")
    layers.MultiheadLocalAttentionV3 = layers.MultiheadLocalAttentionV2
    for kind in (layers.MultiheadLocalAttentionV2, layers.LocalGatedPropagation):
        kind.forward = in_float32(kind.forward)


def in_float32(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The method with autocast off and half-precision tensors widened: the unfold branch mixes types otherwise."""
    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value

    def run(self: Any, *values: Any, **named: Any) -> Any:
        with torch.autocast(values[0].device.type, enabled=False):
            return forward(self, *map(widened, values), **{name: widened(value) for name, value in named.items()})

    return run


def build_peer(variant: str, state: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The official network with our weights (official names), and its configuration. Call import_peer first."""
    settings = importlib.import_module("configs.default").DefaultEngineConfig("benchmark", variant)
    network = importlib.import_module("networks.models").build_vos_model(settings.MODEL_VOS, settings)
    network.load_state_dict(dict(state), strict=True)
    return network.eval(), settings


class PeerPredictor:
    """The official engine with the predictor's two verbs, on frames already of the network's size."""

    def __init__(self, network: Any, settings: Any, size: tuple[int, int], device: str = "cpu"):
        engines = importlib.import_module("networks.engines")
        self.engine = engines.build_engine(
            settings.MODEL_ENGINE, phase="eval", aot_model=network, gpu_id=0,
            long_term_mem_gap=settings.TEST_LONG_TERM_MEM_GAP, short_term_mem_skip=settings.TEST_SHORT_TERM_MEM_SKIP)
        self.engine.eval()
        self.size, self.device = size, device

    @torch.no_grad()
    def start(self, image: Tensor, labels: Tensor) -> None:
        """image: (1, 3, H, W) normalised; labels: (1, 1, H, W) float."""
        self.engine.restart_engine()
        self.engine.add_reference_frame(image, labels, obj_nums=[int(labels.max())], frame_step=0)

    @torch.no_grad()
    def step(self, image: Tensor, memory_labels: Tensor | None = None) -> Tensor:
        """Segment a frame, remember it, return its labels (1, 1, H, W). Fed ``memory_labels`` instead of its own."""
        self.engine.match_propogate_one_frame(image)
        logits = self.engine.decode_current_logits(self.size)
        labels = torch.argmax(torch.softmax(logits, dim=1), dim=1, keepdim=True).float()
        self.engine.update_memory(labels if memory_labels is None else memory_labels)
        return labels
