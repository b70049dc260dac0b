"""From a picture to the network's input in the official arithmetic: sizes, cubic resize, normalisation, labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def input_size(height: int, width: int, align_corners: bool, short_edge: float | None = None,
               long_edge: float | None = None, scale: float = 1.0) -> tuple[int, int]:
    """The network's input size for a picture (aot-benchmark, dataloaders/video_transforms.py, MultiRestrictSize).

    Limits first, then ``scale`` with truncation, then rounding to 16 k + 1 (``align_corners``) or 16 k, half to even.
    """
    h, w = float(height), float(width)
    if short_edge is not None and min(h, w) > short_edge:
        ratio = short_edge / min(h, w)
        h, w = h * ratio, w * ratio
    if long_edge is not None and max(h, w) > long_edge:
        ratio = long_edge / max(h, w)
        h, w = h * ratio, w * ratio
    h, w = int(h * scale), int(w * scale)
    extra = 1 if align_corners else 0
    rounded = [max(round((edge - extra) / 16), 1) * 16 + extra for edge in (h, w)]
    return rounded[0], rounded[1]


def prepare_frame(frame: np.ndarray | Tensor, size: tuple[int, int], device: torch.device,
                  dtype: torch.dtype = torch.float32) -> Tensor:
    """Resize and normalise one RGB frame, (H, W, 3) uint8, to (1, 3, h, w).

    The resize is cubic in float32 over 0..255, and overshoot is not clipped. For the processor an array is resized by
    OpenCV, as the official code does; all else is resized by torch on ``device`` with the same kernel (a = -0.75),
    equal to float32 rounding.
    """
    if not isinstance(frame, Tensor) and device.type != "cpu":
        frame = torch.from_numpy(np.ascontiguousarray(frame))
    if isinstance(frame, Tensor):
        image = frame.to(device, non_blocking=True).permute(2, 0, 1).unsqueeze(0).float()  # (1, 3, H, W)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bicubic", align_corners=False)
    else:
        import cv2

        if frame.shape[:2] != size:
            frame = cv2.resize(frame.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
        image = torch.from_numpy(np.ascontiguousarray(frame))
        image = image.permute(2, 0, 1).unsqueeze(0).float()
    return normalise(image).to(dtype)


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) float32 RGB in 0..255 to the ImageNet statistics.

    The official code divides in float32, then subtracts and divides in float64, rounding to float32 each time.
    """
    x = (images.permute(0, 2, 3, 1) / 255).double()  # (B, H, W, 3)
    for channel, mean in enumerate(MEAN):  # a tensor of constants would have to travel to the device
        x[..., channel] -= mean
    x = x.float().double()
    for channel, std in enumerate(STD):
        x[..., channel] /= std
    return x.float().permute(0, 3, 1, 2)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of label maps (B, H, W) to (B, h, w); the source index is computed in float32, as official."""
    if labels.shape[-2:] == size:
        return labels
    return F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest").squeeze(1).to(labels.dtype)
