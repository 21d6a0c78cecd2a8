"""What the kernels on the rows of a volume share: a program owns a chunk of one sample's voxels, a block at a time.

Tensors of voxels are [B, N, C], contiguous; a block of them is [BLOCK, WIDTH], of which the first C columns exist. What is
summed over voxels is kept as a whole block and summed at the end: a sum across warps in every turn would wait for all.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl


@triton.jit
def whereabouts(voxels, chunk, chunks):
    """The sample of this program, and where its chunk begins and ends."""
    program = tl.program_id(0)
    start = (program % chunks) * chunk
    return program // chunks, start, tl.minimum(start + chunk, voxels)


@triton.jit
def places(sample, at, voxels, stop, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a block of voxels [BLOCK, WIDTH], and which of them exist."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    first = (tl.cast(sample, tl.int64) * voxels + at) * C
    return first + (rows * C + columns), (rows < stop - at) & (columns < C)


@triton.jit
def row(x, number, stride, C: tl.constexpr, WIDTH: tl.constexpr):
    """A row of x [rows, C], as [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + number * stride + columns, mask=columns < C, other=0.0).to(tl.float32)


@triton.jit
def store_sums(x, block, C: tl.constexpr, WIDTH: tl.constexpr):
    """The sum of a block's rows as this program's row of x [programs, C]."""
    columns = tl.arange(0, WIDTH)
    tl.store(x + tl.program_id(0) * C + columns, tl.sum(block, 0), mask=columns < C)
