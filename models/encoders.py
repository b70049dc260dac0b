"""Image encoders: timm's networks, cut and adapted to the official arithmetic, as maps at stride 4, 8, 16 and 16.

Batch norm is frozen (its numbers are constants), as everywhere in AOT. For inference it is folded into the
convolutions, see :func:`fold_frozen_norms`.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from timm.layers import freeze_batch_norm_2d as freeze_norms
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from common.errors import UserError, nearest
from models.blocks import DropPath
from models.depthwise import with_quick_gradients


class MobileNetV2(nn.Module):
    """MobileNetV2 with output stride 16: timm's dilation is the official one (the second 160-channel block on)."""

    channels = (24, 32, 96, 1280)

    def __init__(self) -> None:
        super().__init__()
        import timm

        net = freeze_norms(timm.create_model("mobilenetv2_100", output_stride=16, num_classes=0))
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks
        self.conv_head, self.bn2 = net.conv_head, net.bn2

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv_stem(x))
        maps = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in (1, 2, 4):  # the last stages of 24, 32 and 96 channels
                maps.append(x)
        return [*maps, self.bn2(self.conv_head(x))]

    def frozen(self) -> list[nn.Module]:
        """What does not learn: the stem and the stages of 16 and 24 channels (official freeze_at = 2)."""
        return [self.conv_stem, self.blocks[0], self.blocks[1]]


class ResNet(nn.Module):
    """ResNet without its last stage; the map at stride 16 is given twice."""

    channels = (256, 512, 1024, 1024)

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        net = freeze_norms(timm.create_model(name, num_classes=0))
        self.conv1, self.bn1, self.act1, self.maxpool = net.conv1, net.bn1, net.act1, net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        map_4x = self.layer1(x)
        map_8x = self.layer2(map_4x)
        map_16x = self.layer3(map_8x)
        return [map_4x, map_8x, map_16x, map_16x]

    def frozen(self) -> list[nn.Module]:
        return [self.conv1, self.layer1]


class PaddedSwinBlock(SwinTransformerBlock):
    """timm's Swin block with the official order: pad to whole windows first, then shift on the padded size.

    ``drop_path``: the rate of its two branches, drawn sample by sample as in the rest of the network.
    """

    def __init__(self, *options: Any, drop_path: float, **more: Any):
        super().__init__(*options, **more)
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        x = x + self.drop_path1(self._windowed(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _windowed(self, x: Tensor) -> Tensor:
        _, height, width, channels = x.shape
        (side, _), (shift, _) = self.window_size, self.shift_size
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        padded = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        mask = self.get_attn_mask(x) if shift else None
        windows = window_partition(x, self.window_size).flatten(1, 2)  # (B * windows, side * side, C)
        windows = self.attn(windows, mask=mask).view(-1, side, side, channels)
        x = window_reverse(windows, self.window_size, *padded)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, :height, :width]


class SwinBase(nn.Module):
    """Swin-B without its fourth stage, with a norm on each stage's output (names as in the Swin repository)."""

    channels = (128, 256, 512, 512)
    depths, heads, drop_path = (2, 2, 18), (4, 8, 16), 0.3

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, self.channels[0], 4, stride=4)
        self.patch_embed.norm = nn.LayerNorm(self.channels[0])
        rates = torch.linspace(0, self.drop_path, 24).tolist()  # over the 24 blocks of the whole Swin-B, not our 22
        self.layers = nn.ModuleList()
        for index, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            first, width = sum(self.depths[:index]), self.channels[index]
            stage = nn.Module()
            # Both blocks of the first stage are frozen, so they drop no paths.
            stage.blocks = nn.Sequential(*(
                PaddedSwinBlock(width, (7, 7), heads, shift_size=3 * (block % 2), always_partition=True,
                                dynamic_mask=True, drop_path=rates[first + block] if index else 0.0)
                for block in range(depth)))
            if index < 2:
                stage.downsample = PatchMerging(width)
            self.layers.append(stage)
            self.add_module(f"norm{index}", nn.LayerNorm(width))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))  # (B, h, w, C) from here on
        maps = []
        for index, stage in enumerate(self.layers):
            x = stage.blocks(x)
            maps.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
            if index < 2:
                x = stage.downsample(x)
        return [*maps, maps[-1]]

    def frozen(self) -> list[nn.Module]:
        return [self.patch_embed, self.layers[0].blocks]


class TimmEncoder(nn.Module):
    """Any timm network that gives features at stride 4, 8 and 16."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        try:
            net = timm.create_model(name, features_only=True)
        except RuntimeError as error:
            valid = [*ENCODERS, *timm.list_models()]
            raise UserError(f"model.encoder: no encoder '{name}'; {nearest(name, valid)}") from error
        strides = net.feature_info.reduction()
        if not {4, 8, 16} <= set(strides):
            raise UserError(f"model.encoder: {name} gives features at strides {strides}, not at 4, 8 and 16; "
                            "choose another")
        self.taken = [len(strides) - 1 - strides[::-1].index(stride) for stride in (4, 8, 16)]
        widths = net.feature_info.channels()
        self.channels = tuple(widths[index] for index in (*self.taken, self.taken[-1]))
        self.net = freeze_norms(net)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.net(x)
        # Some networks (timm's Swin) work in (B, h, w, C).
        maps = [maps[index] if maps[index].shape[1] == width else maps[index].permute(0, 3, 1, 2)
                for index, width in zip(self.taken, self.channels, strict=False)]
        return [*maps, maps[-1]]

    def frozen(self) -> list[nn.Module]:
        return []


class Small(nn.Module):
    """A small residual network of ours that learns from nothing: group norm instead of frozen statistics."""

    channels = (32, 64, 128, 128)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, stride=2, padding=2, bias=False), nn.GroupNorm(8, 32), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(ResidualBlock(inputs, outputs, 2), ResidualBlock(outputs, outputs, 1))
            for inputs, outputs in ((32, 32), (32, 64), (64, 128)))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [*maps, maps[-1]]

    def frozen(self) -> list[nn.Module]:
        return []


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(8, outputs))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.GroupNorm(8, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convs(x) + self.shortcut(x))


ENCODERS = {
    "small": Small,
    "mobilenetv2": MobileNetV2,
    "resnet50": lambda: ResNet("resnet50"),
    "resnet101": lambda: ResNet("resnet101"),
    "swin_base": SwinBase,
}


def build_encoder(name: str, freeze: bool | str = True) -> nn.Module:
    """Return an encoder: (B, 3, H, W) normalised RGB to four maps; ``channels`` says their widths.

    Args:
        name: a key of ENCODERS, or the name of any timm network that gives features.
        freeze: True: stem and first stage do not learn; "all": nothing of it does.
    """
    encoder = ENCODERS[name]() if name in ENCODERS else TimmEncoder(name)
    for part in [encoder] if freeze == "all" else encoder.frozen() if freeze else []:
        part.requires_grad_(False)
    return encoder


@torch.no_grad()
def fold_frozen_norms(module: nn.Module, prefix: str = "") -> list[tuple[str, str]]:
    """Fold every frozen batch norm into the convolution registered just before it, in place (inference only).

    Returns:
        the names of the folded pairs (convolution, norm); only the norm's activation is left in its place.
    """
    pairs = []
    conv, conv_name = None, ""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d):
            conv, conv_name = child, prefix + name
        elif isinstance(child, (FrozenBatchNormAct2d, FrozenBatchNorm2d)) and conv is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(  # type: ignore[assignment]
                conv.weight, conv.bias, child.running_mean, child.running_var, child.eps, child.weight, child.bias)
            setattr(module, name, getattr(child, "act", nn.Identity()))
            pairs.append((conv_name, prefix + name))
            conv = None
        else:
            pairs += fold_frozen_norms(child, f"{prefix}{name}.")
    return pairs


class FoldedEncoder:
    """Calls an encoder with its frozen norms folded into its convolutions, differentiably (training).

    The weights stay where they are, unfolded; each call multiplies them by the norms' constants, so that they get the
    same gradients while no feature map is normalised or kept for that.
    """

    def __init__(self, encoder: nn.Module):
        self.encoder = encoder
        empty = {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                 for tensor in (*encoder.parameters(), *encoder.buffers())}
        empty |= {id(parameter): nn.Parameter(empty[id(parameter)], parameter.requires_grad)
                  for parameter in encoder.parameters()}
        self.skeleton = copy.deepcopy(encoder, empty)  # it lends its structure only
        self.pairs = fold_frozen_norms(self.skeleton)
        with_quick_gradients(self.skeleton)

    def __call__(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to what the encoder returns."""
        tensors = {**dict(self.encoder.named_parameters()), **dict(self.encoder.named_buffers())}
        for conv, norm in self.pairs:
            scale = tensors[f"{norm}.weight"] * (tensors[f"{norm}.running_var"] + self._eps(norm)).rsqrt()
            shift = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
            if f"{conv}.bias" in tensors:
                shift = shift + tensors[f"{conv}.bias"] * scale
            tensors[f"{conv}.weight"] = tensors[f"{conv}.weight"] * scale.view(-1, 1, 1, 1)
            tensors[f"{conv}.bias"] = shift
        return torch.func.functional_call(self.skeleton.train(self.encoder.training), tensors, (x,))

    def _eps(self, norm: str) -> float:
        return self.encoder.get_submodule(norm).eps  # type: ignore[return-value]
