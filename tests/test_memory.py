"""Freed memory serves the next tensors, and the environment has the last word."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS, BLOCKS, MIB = 20, 4, 16
PAGES_OF_A_ROUND = BLOCKS * MIB * 2**20 // 4096
COUNT_FAULTS = f"""
import ctypes, resource, sys
if sys.argv[1] == "kept":
    from medsynth.memory import keep_freed_memory
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    blocks = [libc.malloc({MIB} << 20) for _ in range({BLOCKS})]
    for block in blocks:
        ctypes.memset(block, 1, {MIB} << 20)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(way: str, **environment: str) -> int:
    """Pages that the kernel had to make while blocks were taken, filled and freed again."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", COUNT_FAULTS, way]
    found = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these settings")
def test_the_second_round_of_blocks_costs_no_new_pages() -> None:
    assert faults("kept") < 2 * PAGES_OF_A_ROUND
    assert faults("default") > ROUNDS / 2 * PAGES_OF_A_ROUND
    # Blocks above a threshold of one page go back to the system at once, because the environment says so.
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="4096") > ROUNDS / 2 * PAGES_OF_A_ROUND
