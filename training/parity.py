"""One training step against recorded losses and gradients of the official code (used by tools/check_parity.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs import load_config, model_config_path
from models.blocks import DropPath
from models.names import from_official
from models.preprocess import normalise
from training.clip_model import ClipModel


@dataclass
class Deviation:
    """Worst relative deviation of a run's losses, and of its gradient norms where they matter."""

    loss: float
    gradient: float


def training_deviations(path: Path, record: dict[str, Any], rule: Any) -> dict[str, Deviation]:
    """Run every recorded run of one variant in float64, without any random layer.

    Args:
        path: the record's file, to name in errors; record: its content (golden/aot/README.md, "train/").
        rule: makes the golden network, videos and masks (tools.check_parity.Rule).
    Returns:
        run name -> deviations. A gradient norm's is relative to itself plus 1e-3 of the total norm: at most 1e-6 of
        that is the record's tolerance, "1e-6 relative plus 1e-9 of the total absolute".
    """
    frames, masks = golden_clips(record, rule)
    return {name: _run(record, run, rule, frames, masks) for name, run in record["runs"].items()}


def golden_clips(record: dict[str, Any], rule: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The record's clips: (T, B, 3, H, W) float64, normalised in float32, and (T, B, H, W) label maps."""
    videos = [rule.video.make_video(clip)[0] for clip in record["clips"]]
    masks = np.stack([rule.video.make_masks(clip) for clip in record["clips"]], 1)  # (T, B, H, W)
    images = torch.from_numpy(np.stack(videos, 1)).permute(0, 1, 4, 2, 3)  # (T, B, 3, H, W)
    count, batch = images.shape[:2]
    images = normalise(images.flatten(0, 1).float()).double()
    return images.unflatten(0, (count, batch)), torch.from_numpy(masks).long()


def _run(record: dict[str, Any], run: dict[str, Any], rule: Any, frames, masks) -> Deviation:
    config = load_config(model_config_path(record["variant"]))
    train = config.train
    train.steps, train.aux_ratio = record["total_steps"], run["aux_loss_ratio"]
    train.previous_frame_reference, train.memory_gap = run["enable_prev_frame"], run["long_term_mem_gap"]
    train.feed_predictions_from = 0.0 if run["use_prev_pred"] else 1.0
    network = rule.network(config, record["weight_seed"]).double().train()
    for module in network.modules():
        if isinstance(module, DropPath):  # all that is random, Swin's own stochastic depth included
            module.rate = 0.0
    slots = torch.tensor(run["permutation"])[:, 1:] - 1 if run["permutation"] else None
    result = ClipModel(network, config)(frames, masks, record["obj_nums"], run["step"], slots)
    result["loss"].backward()

    expected = torch.tensor(run["frame_losses"], dtype=torch.float64)
    ours = result["frame_losses"]
    losses = (ours / expected[-len(ours):] - 1).abs().max().item()  # a reference of weight 0 is not decoded
    losses = float(np.maximum(losses, abs(result["loss"].item() / run["loss"] - 1)))  # NaN stays, unlike in max()

    norms = {name: None if parameter.grad is None else parameter.grad.norm().item()
             for name, parameter in network.named_parameters()}
    worst = 0.0
    for official, norm in run["grad_norm"].items():
        gradient = norms[from_official(official, config.model)]
        if norm is None or gradient is None:
            worst = worst if norm == gradient else float("inf")
        else:
            worst = float(np.maximum(worst, abs(gradient - norm) / (norm + 1e-3 * run["total_grad_norm"])))
    return Deviation(losses, worst)
