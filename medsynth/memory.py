"""How the process asks the system for memory, set once before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys

MIB = 2**20
GLIBC_SETTINGS = {-3: 32 * MIB, -1: 512 * MIB, -2: 64 * MIB}
"""By their numbers in malloc.h: M_MMAP_THRESHOLD at the most that glibc takes, M_TRIM_THRESHOLD and M_TOP_PAD."""


def keep_freed_memory() -> None:
    """Let blocks that are freed serve the next tensors, instead of going back to the system page by page.

    A network on a CPU takes and frees tensors of the same few sizes thousands of times, and by default glibc returns
    most of them: up to two fifths of the time of decoding a volume went into the kernel clearing pages again (see
    docs/scaling.md). Up to 512 MiB of freed memory stay with the process; tensors over 32 MiB still go back at once, and
    torch backs them with huge pages. The environment wins where it says otherwise (mallopt(3)). No effect without glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent from musl
    if mallopt is not None:
        for name, value in GLIBC_SETTINGS.items():
            mallopt(name, value)
