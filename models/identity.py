"""Identities: which object a pixel belongs to, as an embedding that is added to the memory's values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import as_tokens

IDENTITIES = 10  # object slots of one group; more objects run as several groups


def one_hot(labels: Tensor, identities: int = IDENTITIES, slots: Tensor | None = None) -> Tensor:
    """One-hot identities of a label map.

    Args:
        labels: (B, H, W) integers; 0 is the background, values above ``identities`` (255) belong to nothing.
        slots: (B, 10) permutation: object i + 1 takes identity slot slots[b, i] + 1. None: its own.
    Returns:
        (B, 1 + identities, H, W) of booleans
    """
    labels = labels.long()
    if slots is not None:
        table = F.pad(slots + 1, (1, 256 - 1 - IDENTITIES), value=0)  # (B, 256); background stays
        table[:, 1 + IDENTITIES:] = 255
        labels = table.gather(1, labels.flatten(1)).view_as(labels)
    return labels.unsqueeze(1) == torch.arange(1 + identities, device=labels.device).view(1, -1, 1, 1)


def token_means(maps: Tensor, stride: int, align_corners: bool) -> Tensor:
    """Means of maps over what each token stands for, which is what :class:`IdentityBank` embeds there.

    Args:
        maps: (B, C, H, W) at the size of the frame (``stride`` 16) or of the logits (4).
        align_corners: of the network. If so token i is centred on pixel i * stride; else tokens lie side by side.
    Returns:
        (B, C, h, w) at the grid of the tokens
    """
    if align_corners:
        return F.avg_pool2d(maps, stride + 1, stride, stride // 2, count_include_pad=False)
    return F.avg_pool2d(maps, stride)


class IdentityBank(nn.Module):
    """Patch-wise identity embedding: a convolution from one-hot masks to tokens at stride 16 (AOT, section 3.1).

    ``align_corners`` networks see 16 k + 1 pixels (kernel 17, padding 8), the others 16 k (kernel 16).
    """

    def __init__(self, channels: int, align_corners: bool, normalise: bool):
        super().__init__()
        size = 17 if align_corners else 16
        self.conv = nn.Conv2d(1 + IDENTITIES, channels, size, stride=16, padding=size // 2 if align_corners else 0)
        nn.init.orthogonal_(self.conv.weight.view(channels, -1), gain=size**-2)
        self.norm = nn.LayerNorm(channels) if normalise else None  # DeAOT

    @torch.no_grad()
    def start_distinct(self, length: float) -> None:
        """Embed each identity of a fully covered patch at right angles to the others, with this length."""
        vectors = nn.init.orthogonal_(torch.empty(self.conv.out_channels, 1 + IDENTITIES), gain=length)
        self.conv.weight.add_(vectors[:, :, None, None] / self.conv.kernel_size[0]**2)

    def forward(self, masks: Tensor, objects: int, slots: Tensor | None = None) -> Tensor:
        """Embed masks.

        Args:
            masks: (B, H, W) integer labels, or (B, 1 + n, H, W) soft masks.
            objects: the highest object id that may occur; the other slots' channels are left out, which is exact.
            slots: as in :func:`one_hot`.
        Returns:
            (B, L, C) tokens at stride 16
        """
        weight = self.conv.weight
        if masks.dim() == 3:
            masks = one_hot(masks, objects if slots is None else IDENTITIES, slots)
        elif slots is not None:
            order = F.pad(slots + 1, (1, 0), value=0)[:, : masks.shape[1]]
            full = masks.new_zeros(masks.shape[0], 1 + IDENTITIES, *masks.shape[2:])
            masks = full.scatter(1, order[:, :, None, None].expand_as(masks), masks)
        if slots is None:
            masks = masks[:, : 1 + objects]
            weight = weight[:, : masks.shape[1]]
        tokens = as_tokens(self._convolve(masks.to(weight.dtype), weight))
        return tokens if self.norm is None else self.norm(tokens)

    def _convolve(self, masks: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(masks, weight, self.conv.bias, stride=16, padding=self.conv.padding)
