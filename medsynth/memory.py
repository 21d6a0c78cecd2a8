"""How the process asks the system for memory, set once before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys

MIB = 2**20
GLIBC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * MIB),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": (-1, 512 * MIB),
    "MALLOC_TOP_PAD_": (-2, 64 * MIB),
}
"""The environment variable of each setting of mallopt(3), its number in malloc.h, and its value here."""


def keep_freed_memory() -> None:
    """Let blocks that are freed serve the next tensors, instead of going back to the system page by page.

    A network on a CPU takes and frees tensors of the same few sizes thousands of times, and by default glibc returns
    most of them: up to two fifths of the time of decoding a volume went into the kernel clearing pages again (see
    docs/scaling.md). Up to 512 MiB of freed memory stay with the process; tensors over 32 MiB still go back at once, and
    torch backs them with huge pages. What the environment says of these settings wins. No effect without glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # absent from musl
    if mallopt is not None:
        for name, (number, value) in GLIBC_SETTINGS.items():
            if name not in os.environ:
                mallopt(number, value)
