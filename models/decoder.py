"""The decoder: a feature pyramid that refines tokens at stride 16 to identity logits at stride 4."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.identity import IDENTITIES


class ConvNorm(nn.Module):
    """Convolution and GroupNorm of 8 groups."""

    def __init__(self, inputs: int, outputs: int, size: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        self.norm = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Decoder(nn.Module):
    """FPN decoder of AOT and DeAOT (aot-benchmark, networks/decoders/fpn.py)."""

    def __init__(self, inputs: int, shortcuts: tuple[int, int, int], channels: int, align_corners: bool):
        """
        Args:
            inputs: channels of the tokens; shortcuts: channels of the encoder's maps at stride 4, 8 and 16.
            channels: width at stride 16; half of it at stride 8 and 4.
        """
        super().__init__()
        self.align_corners = align_corners
        half = channels // 2
        self.conv_in = ConvNorm(inputs, channels, 1)
        self.conv_16x = ConvNorm(channels, channels, 3)
        self.conv_8x = ConvNorm(channels, half, 3)
        self.conv_4x = ConvNorm(half, half, 3)
        self.adapter_16x = nn.Conv2d(shortcuts[2], channels, 1)
        self.adapter_8x = nn.Conv2d(shortcuts[1], channels, 1)
        self.adapter_4x = nn.Conv2d(shortcuts[0], half, 1)
        self.conv_out = nn.Conv2d(half, 1 + IDENTITIES, 1)

    def forward(self, tokens: Tensor, map_4x: Tensor, map_8x: Tensor, map_16x: Tensor) -> Tensor:
        """tokens: (B, inputs, h16, w16). Returns logits (B, 11, h4, w4)."""
        x = F.relu_(self.conv_in(tokens))
        x = F.relu_(self.conv_16x(self.adapter_16x(map_16x) + x))
        x = F.relu_(self.conv_8x(self.adapter_8x(map_8x) + self._resize(x, map_8x)))
        x = F.relu_(self.conv_4x(self.adapter_4x(map_4x) + self._resize(x, map_4x)))
        return self.conv_out(x)

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=self.align_corners)
