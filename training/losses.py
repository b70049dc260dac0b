"""Losses of one frame: cross-entropy over the hardest pixels and the soft Jaccard index, a value for each sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255  # label of pixels that nobody marked


def frame_loss(logits: Tensor, labels: Tensor, objects: list[int], share: float) -> Tensor:
    """Half cross-entropy, half soft Jaccard (aot-benchmark, networks/engines/aot_engine.py).

    Args:
        logits: (B, 1 + n, H, W) at the labels' size; a sample's own channels are 0..objects[b].
        labels: (B, H, W) integers, 255 = ignored.
        objects: number of objects of each sample, at most n.
        share: of the pixels, those with the largest cross-entropy, that count in it (:func:`hard_share`).
    Returns:
        (B,) losses
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # a sum over a picture's pixels overflows half precision
    losses = []
    for sample, count in enumerate(objects):
        logarithms = logits[sample, : 1 + count].log_softmax(0)  # (1 + n_b, H, W)
        target = labels[sample].long()
        losses.append(0.5 * hard_cross_entropy(logarithms, target, share) + 0.5 * soft_jaccard(logarithms, target))
    return torch.stack(losses)


def hard_cross_entropy(logarithms: Tensor, labels: Tensor, share: float) -> Tensor:
    """Mean cross-entropy of the hardest pixels; ignored pixels stay candidates, with 0.

    Args:
        logarithms: (C, H, W) log-probabilities; labels: (H, W); share: of the H * W pixels.
    Returns:
        () loss
    """
    losses = F.nll_loss(logarithms.unsqueeze(0), labels.unsqueeze(0), ignore_index=IGNORE, reduction="none").flatten()
    count = int(share * losses.numel())
    if count < losses.numel():
        losses = losses.topk(count, sorted=False).values
    return losses.mean()


def soft_jaccard(logarithms: Tensor, labels: Tensor) -> Tensor:
    """1 - soft intersection over union, mean over the classes (background included) that occur in the labels.

    Args:
        logarithms: (C, H, W) log-probabilities; labels: (H, W), 255 = ignored.
    Returns:
        () loss
    """
    classes = torch.arange(len(logarithms), device=labels.device)
    target = labels.flatten() == classes[:, None]  # (C, H * W)
    known = (labels.flatten() != IGNORE).to(logarithms.dtype)
    probabilities = logarithms.flatten(1).exp() * known
    target = target.to(logarithms.dtype)
    intersection = (probabilities * target).sum(1)  # (C,)
    # I + sum p (1 - g) + sum (1 - p) g = sum p + sum g - I
    union = probabilities.sum(1) + target.sum(1) - intersection
    present = (target.amax(1) > 0).to(logarithms.dtype)
    losses = 1 - intersection / (union + 1e-6)
    return (losses * present).sum() / present.sum().clamp(min=1)


def hard_share(step: int, steps: int, final: float, reached: float) -> float:
    """Share of the pixels that count in the cross-entropy: falls from 1 to ``final`` over ``reached`` of the steps."""
    ratio = min(1.0, step / (reached * steps + 1e-5))
    return ratio * final + 1 - ratio


def reference_weight(step: int, steps: int, weight: float, ratio: float) -> float:
    """Weight of the reference frame's own loss: falls from ``weight`` to 0 over ``ratio`` of the steps."""
    span = steps * ratio + 1e-5
    return weight * max(span - step, 0.0) / span
