"""The C library's allocator: keep large blocks instead of giving them back to the system after every use."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt, malloc.h of glibc.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_large_blocks() -> bool:
    """Serve large blocks from the heap and never trim it; returns whether the C library took it.

    A training step, or a frame, on the processor allocates the same blocks every time; mapping them anew costs page
    faults (a tenth of DeAOT-T's time a frame).
    Libraries other than glibc have no such setting and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))
    return all([mallopt(parameter, ctypes.c_int(value)) for parameter, value in wanted])
