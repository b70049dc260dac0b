"""The quick gradients equal PyTorch's own: depthwise convolutions, and encoders with folded norms."""

import copy

import pytest
import torch
from torch import nn

from models.depthwise import DepthwiseConv, with_quick_gradients
from models.encoders import FoldedEncoder, build_encoder


@pytest.mark.parametrize(("kernel", "stride", "dilation", "size"),
                         [(3, 1, 2, (9, 12)), (5, 1, 1, (7, 8)), (3, 2, 1, (9, 8)), (5, 2, 1, (8, 9))])
def test_gradients_are_those_of_an_ordinary_convolution(kernel, stride, dilation, size):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride, dilation * (kernel // 2), dilation, groups=6).double()
    quick = DepthwiseConv(6, kernel, stride, dilation, bias=True).double()
    quick.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    expected, found = plain(x), quick(x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(expected)
    for one, other in zip(torch.autograd.grad((expected * weight).sum(), [x, *plain.parameters()]),
                          torch.autograd.grad((found * weight).sum(), [x, *quick.parameters()]), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-11)


def test_autocast_computes_in_half_precision_and_gives_full_gradients():
    conv, x = DepthwiseConv(4, 5), torch.randn(1, 4, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["mobilenetv2", "resnet50", "small"])
def test_a_folded_encoder_has_the_maps_and_gradients_of_the_encoder(name):
    torch.manual_seed(0)
    encoder = build_encoder(name).double().train()
    for module in encoder.modules():  # statistics that matter
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-0.2, 0.2)
    folded, x = FoldedEncoder(encoder), torch.randn(2, 3, 49, 33, dtype=torch.float64)

    def gradients(maps):
        encoder.zero_grad()
        sum(one.square().mean() for one in maps).backward()
        return {key: value.grad.clone() for key, value in encoder.named_parameters() if value.grad is not None}

    plain, quick = encoder(x), folded(x)
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-10) for one, other in zip(plain, quick, strict=True))
    expected, found = gradients(plain), gradients(quick)
    assert expected.keys() == found.keys() and len(expected) > 10
    for key, value in expected.items():
        assert torch.allclose(value, found[key], rtol=1e-7, atol=1e-9 * value.abs().max().item()), key
    assert all(parameter.is_meta for parameter in folded.skeleton.parameters())


def test_only_slow_depthwise_convolutions_are_replaced():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
                        nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 4, 5, groups=4), nn.Sequential(
                            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False)))
    kinds = [type(module) for module in with_quick_gradients(copy.deepcopy(net)).modules()]
    assert kinds == [nn.Sequential, nn.Conv2d, DepthwiseConv, nn.Conv2d, nn.Conv2d, nn.Sequential, DepthwiseConv]
