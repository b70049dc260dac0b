"""Losses of one frame: cross-entropy over the hardest pixels and the soft Jaccard index, a value for each sample."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_loss(logits: Tensor, labels: Tensor, objects: list[int], share: float) -> Tensor:
    """Half cross-entropy, half soft Jaccard (aot-benchmark, networks/engines/aot_engine.py).

    Args:
        logits: (B, 1 + n, H, W) at the labels' size; a sample's own channels are 0..objects[b].
        labels: (B, H, W) integers; values above a sample's objects (255) are ignored.
        objects: number of objects of each sample, at most n.
        share: of the pixels, those with the largest cross-entropy, that count in it (:func:`hard_share`).
    Returns:
        (B,) losses
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # a sum over a picture's pixels overflows half precision
    losses = []
    for sample, count in enumerate(objects):
        logarithms = logits[sample, : 1 + count].flatten(1).log_softmax(0)  # (1 + n_b, H * W)
        classes = torch.arange(1 + count, device=labels.device)
        target = (labels[sample].flatten() == classes[:, None]).to(logits.dtype)  # ignored pixels: 0 everywhere
        losses.append(0.5 * hard_cross_entropy(logarithms, target, share) + 0.5 * soft_jaccard(logarithms, target))
    return torch.stack(losses)


def hard_cross_entropy(logarithms: Tensor, target: Tensor, share: float) -> Tensor:
    """Mean cross-entropy of the hardest pixels; ignored pixels stay candidates, with 0.

    Args:
        logarithms: (C, P) log-probabilities of P pixels; target: (C, P) one-hot, all 0 where ignored.
        share: of the P pixels.
    Returns:
        () loss
    """
    losses = -(logarithms * target).sum(0)
    count = int(share * len(losses))
    return losses.mean() if count >= len(losses) else losses.topk(count, sorted=False).values.mean()


def soft_jaccard(logarithms: Tensor, target: Tensor) -> Tensor:
    """1 - soft intersection over union, mean over the classes (background included) that occur in the target.

    Args:
        logarithms: (C, P) log-probabilities; target: (C, P) one-hot, all 0 where ignored.
    Returns:
        () loss
    """
    probabilities = logarithms.exp() * target.sum(0)
    intersection, area = (probabilities * target).sum(1), target.sum(1)  # (C,)
    losses = 1 - intersection / (probabilities.sum(1) + area - intersection + 1e-6)
    present = (area > 0).to(losses.dtype)
    return (losses * present).sum() / present.sum().clamp(min=1)


def hard_share(step: int, steps: int, final: float, reached: float) -> float:
    """Share of the pixels that count in the cross-entropy: falls from 1 to ``final`` over ``reached`` of the steps."""
    ratio = min(1.0, step / (reached * steps + 1e-5))
    return ratio * final + 1 - ratio


def reference_weight(step: int, steps: int, weight: float, ratio: float) -> float:
    """Weight of the reference frame's own loss: falls from ``weight`` to 0 over ``ratio`` of the steps."""
    span = steps * ratio + 1e-5
    return weight * max(span - step, 0.0) / span
