"""The floor under a step: how many operations and bytes it takes, and how fast this machine does them at best."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

COUNTED = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
           flop_registry[torch.ops.aten._scaled_dot_product_flash_attention]}
CONVOLUTIONS = {packet for packet in COUNTED if "convolution" in str(packet)}


class Work(TorchDispatchMode):
    """Counts the operations of convolutions and of products (attention included), and the bytes they read and write.

    Attributes:
        operations: of ``convolutions`` and ``products``; a multiplication with its addition is two.
        bytes: of the inputs and outputs of those, as if nothing stayed in a cache from one to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes = 0

    @property
    def flops(self) -> int:
        return self.operations.total()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        packet = function._overloadpacket
        if packet not in COUNTED:
            with self:
                result = function.decompose(*arguments, **keywords)
            if result is not NotImplemented:
                return result
        result = function(*arguments, **keywords)
        if packet in COUNTED:
            kind = "convolutions" if packet in CONVOLUTIONS else "products"
            self.operations[kind] += COUNTED[packet](*arguments, **keywords, out_val=result)
            self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves((arguments, keywords, result))
                              if isinstance(leaf, Tensor))
        return result


def copy_rate(device: torch.device, repeats: int = 10) -> float:
    """GB/s of a large copy, bytes read and bytes written."""
    data = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    other = torch.empty_like(data)
    return 2 * data.numel() / milliseconds(lambda: other.copy_(data), device, repeats) / 1e6


def product_rate(device: torch.device, dtype: torch.dtype = torch.float32, repeats: int = 10, side: int = 2048,
                 ) -> float:
    """GFLOP/s of a product of two matrices of ``side`` rows and columns."""
    one, two = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: one @ two, device, repeats) / 1e6


def convolution_rate(device: torch.device, repeats: int = 10) -> float:
    """GFLOP/s of a 3x3 convolution like the decoder's (128 channels, a quarter of 480x848 pixels), channels last.

    Libraries save operations there (Winograd), so that it can be above the rate of products.
    """
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, memory_format=torch.channels_last)
    image = torch.randn(1, 128, 120, 212, device=device).to(memory_format=torch.channels_last)
    operations = 2 * 9 * 128 * 128 * 120 * 212
    with torch.inference_mode():
        return operations / milliseconds(lambda: layer(image), device, repeats) / 1e6


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int = 20) -> float:
    """Mean time of a call, after three calls to warm up."""
    for _ in range(3):
        function()
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronise(device)
    return (time.perf_counter() - begun) * 1e3 / repeats


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
