"""How the programs of a kernel share the rows of a volume, [B, ..., C] with C channels to a voxel."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BLOCK_NUMBERS = 4096
"""Numbers of a block: 32 for each thread of four warps."""
PROGRAMS = 8 * 132
"""About eight for each multiprocessor of an H100."""
SUMMING_BLOCK_NUMBERS = 8192
SUMMING_PROGRAMS = 2 * 132
"""Where programs leave sums behind, which have to be summed in turn: fewer of them, with more work in flight in each."""


def power_of_two(number: int) -> int:
    """The least one that is not less: Triton's tiles have no other sides."""
    return 1 << (number - 1).bit_length()


class Walk:
    """Chunks of whole blocks of one sample, one for each program; `samples` 1 where voxels are alike in whichever they are."""

    def __init__(self, x: Tensor, samples: int = 1, *, summing: bool = False) -> None:
        channels = x.shape[-1]
        width = power_of_two(channels)
        block = max(1, (SUMMING_BLOCK_NUMBERS if summing else BLOCK_NUMBERS) // width)
        self.samples = samples
        voxels = x.numel() // channels // samples
        blocks = -(-voxels // block)
        blocks_each = max(1, -(-blocks * samples // (SUMMING_PROGRAMS if summing else PROGRAMS)))
        self.chunks = -(-blocks // blocks_each)
        self.grid = (samples * self.chunks,)
        self.sizes = (voxels, blocks_each * block, self.chunks)
        self.options = {"C": channels, "WIDTH": width, "BLOCK": block, "num_warps": 4}

    def sums(self, x: Tensor, kinds: int = 1) -> Tensor:
        """Room for `kinds` rows of each program: [kinds, samples, chunks, C] float32."""
        return x.new_empty(kinds, self.samples, self.chunks, x.shape[-1], dtype=torch.float32)
