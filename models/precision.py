"""Half precision, where the device computes in it."""

from __future__ import annotations

import torch
from torch import Tensor

from common.errors import UserError

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def autocast_type(amp: str, device: torch.device) -> torch.dtype | None:
    """The type to autocast to for ``train.amp`` or ``inference.amp``; None means full precision.

    Processors without instructions for the type would emulate it, one number at a time: a training step of AOT-T took
    twelve times as long in emulated bfloat16 as in float32. There it is None, too; :func:`autocast_notice` says so.
    """
    wanted = _TYPES.get(amp)
    return wanted if wanted is not None and computes_in(wanted, device) else None


def autocast_notice(amp: str, device: torch.device, key: str) -> str | None:
    """What to tell the user of ``key`` (train.amp or inference.amp) where :func:`autocast_type` overrules it."""
    if amp == "none" or autocast_type(amp, device) is not None:
        return None
    return f"{key}={amp}: this processor has no instructions for {amp}; float32 is used instead"


def computes_in(wanted: torch.dtype, device: torch.device) -> bool:
    """Whether the device has arithmetic of this half-precision type, as PyTorch's CPU library (oneDNN) sees it.

    Whatever is no processor counts as having it, and so does, for bfloat16, a processor with AVX-512 alone.
    """
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    supported = {torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
                 torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported}
    return supported[wanted]()


def precise(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def ready(device: torch.device) -> None:
    """Settle for the process what PyTorch decides for itself: no cuDNN attention, which is a GPU's first choice in half
    precision since torch 2.11 and builds a plan, in tenths of a second, for each new length of the memory.

    Raises:
        UserError: there is no such device.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {device}: no such device was found; use cpu, or see that a driver is installed")
        torch.backends.cuda.enable_cudnn_sdp(False)
