"""A start from which a short training learns to match (ours; ``model.start=matching``).

An AOT on MobileNetV2 officially begins blind. Its tokens are made of the encoder's last map, which ImageNet taught what
things are but hardly which one is which: labels that follow its cosines from frame to frame reach less than half of an
object, those that follow the map of 96 channels, five blocks earlier, two thirds (docs/history.md). A query attends to
hundreds of tokens, identities are embedded a thousandth of a token long, and the encoder's shortcuts drown them. The
official schedules mend all that in a hundred thousand steps. Here the same network gets other first weights, by which
attention finds like by like and the decoder sees whose it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.encoders import MobileNetV2
from models.network import Network

SELF_SCORE = 22.0  # attention score of a token with itself: a query then sees about 30 tokens of 1,300
IDENTITY_LENGTH = 2.0  # of a fully covered patch's identity, in lengths of a normalised token
SHORTCUTS = 0.1  # of the official start's
DETAIL = 64  # mixtures of MobileNetV2's 96 channels that are led through to its last map
MEANING = 0.3  # of the official start's: the weight of all else in the last map
SAFE = 0.5  # what is led through is scaled by this: ReLU6 cuts off above 6, and its channels have a deviation near 3


@torch.no_grad()
def start_matching(network: Network) -> None:
    """Change the weights of a new network, whose encoder has its ImageNet weights already."""
    if isinstance(network.encoder, MobileNetV2):
        project_detail(network.projector.weight, lead_through(network.encoder))
    for block in network.blocks:
        block.sharpen(SELF_SCORE)
    network.identity.start_distinct(IDENTITY_LENGTH * network.identity.conv.out_channels**0.5)
    for adapter in (network.decoder.adapter_16x, network.decoder.adapter_8x, network.decoder.adapter_4x):
        adapter.weight.mul_(SHORTCUTS)


def project_detail(weight: Tensor, recovered: Tensor) -> None:
    """Let the projector (C, inputs, 1, 1) keep lengths and angles of what is led through, and little of all else.

    recovered: (inputs, DETAIL), as :func:`lead_through` returns it.
    """
    weight.mul_(MEANING)
    weight[:, recovered.any(1)] = 0
    kept = nn.init.orthogonal_(torch.empty(weight.shape[0], recovered.shape[1]))
    weight += (kept @ recovered.T)[:, :, None, None]


@torch.no_grad()
def lead_through(encoder: MobileNetV2) -> Tensor:
    """Lead mixtures of the 96 channels at stride 16 through the stages of 160 and 320 channels to the last map.

    They take the place of those channels that the frozen norms weigh least. A value x passes a ReLU6 as the pair of x
    and -x. The residual blocks between neither see nor change what is led past them.

    Returns:
        (1280, DETAIL): the product of the last map with it is the mixtures.
    """
    first, *residual, last = [*encoder.blocks[5], *encoder.blocks[6]]
    mixture = nn.init.orthogonal_(torch.empty(DETAIL, first.conv_pw.in_channels))
    places = _pass_block(first, torch.arange(first.conv_pw.in_channels), mixture)
    for block in residual:
        block.conv_pw.weight[:, places] = 0
        block.bn3.weight[places] = block.bn3.bias[places] = 0
    last.conv_pw.weight[:, places] = 0
    places = _pass_block(last, places, torch.eye(DETAIL))
    encoder.conv_head.weight[:, places] = 0
    pairs = least(encoder.bn2, 2 * DETAIL)
    _pass_in(encoder.conv_head, encoder.bn2, places, torch.eye(DETAIL), pairs)
    recovered = torch.zeros(encoder.conv_head.out_channels, DETAIL)
    recovered[pairs] = torch.cat([torch.eye(DETAIL), -torch.eye(DETAIL)]) / SAFE
    return recovered


def _pass_block(block: nn.Module, places: Tensor, mixture: Tensor) -> Tensor:
    """Lead ``mixture`` (DETAIL, inputs) of the input's channels ``places`` through an inverted residual block; the
    places (DETAIL,) of its output where it is."""
    hidden = least(block.bn2, 2 * DETAIL)
    _pass_in(block.conv_pw, block.bn1, places, mixture, hidden)
    block.conv_dw.weight[hidden] = 0
    block.conv_dw.weight[hidden, 0, 1, 1] = 1
    let_through(block.bn2, hidden)
    outputs = least(block.bn3, DETAIL)
    block.conv_pwl.weight[:, hidden] = 0
    block.conv_pwl.weight[outputs] = 0
    for sign, half in zip((1, -1), hidden.split(DETAIL), strict=True):
        block.conv_pwl.weight[outputs, half] = sign / SAFE
    let_through(block.bn3, outputs)
    return outputs


def _pass_in(conv: nn.Conv2d, norm: nn.Module, places: Tensor, mixture: Tensor, outputs: Tensor) -> None:
    """Put ``mixture`` of a 1x1 convolution's inputs ``places``, and its negative, at ``outputs`` (2 DETAIL,)."""
    conv.weight[outputs] = 0
    conv.weight[outputs[:, None], places] = SAFE * torch.cat([mixture, -mixture])[:, :, None, None]
    let_through(norm, outputs)


def least(norm: nn.Module, count: int) -> Tensor:
    """The ``count`` channels that a norm weighs least."""
    return norm.weight.abs().argsort()[:count]


def let_through(norm: nn.Module, channels: Tensor) -> None:
    """Let a frozen norm pass these channels as they are."""
    norm.weight[channels] = (norm.running_var[channels] + norm.eps).sqrt()
    norm.bias[channels] = norm.running_mean[channels]
