"""The passes of `epilogue` as Triton kernels. All compute in float32."""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl

from medsynth.kernels.row_kernels import places, row, store_sums, whereabouts


@triton.jit
def biased_silu(x, bias, y, voxels, chunk, chunks, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """y = silu(x + bias)."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    offset = row(bias, 0, 0, C, WIDTH)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        z = tl.load(x + at_voxels, mask=there, other=0.0).to(tl.float32) + offset
        tl.store(y + at_voxels, (z * tl.sigmoid(z)).to(y.dtype.element_ty), mask=there)


@triton.jit
def biased_silu_backward(
    upstream, x, bias, d_x, total, voxels, chunk, chunks,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d_x, and one chunk's part of its sum over voxels, [chunks, C]."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    offset, d_offset = row(bias, 0, 0, C, WIDTH), tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        z = tl.load(x + at_voxels, mask=there, other=0.0).to(tl.float32) + offset
        d_y = tl.load(upstream + at_voxels, mask=there, other=0.0).to(tl.float32)
        share = tl.sigmoid(z)
        d_z = d_y * share * (1 + z * (1 - share))
        d_offset += d_z
        tl.store(d_x + at_voxels, d_z.to(d_x.dtype.element_ty), mask=there)
    store_sums(total, d_offset, C, WIDTH)


@triton.jit
def biased_residual(x, y, bias, out, voxels, chunk, chunks, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """out = x + y + bias."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    offset = row(bias, 0, 0, C, WIDTH)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        z = tl.load(y + at_voxels, mask=there, other=0.0).to(tl.float32) + offset
        z += tl.load(x + at_voxels, mask=there, other=0.0).to(tl.float32)
        tl.store(out + at_voxels, z.to(out.dtype.element_ty), mask=there)


@triton.jit
def voxel_sum(x, total, voxels, chunk, chunks, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One chunk's part of the sum over voxels, [chunks, C]."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    sums = tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        sums += tl.load(x + at_voxels, mask=there, other=0.0).to(tl.float32)
    store_sums(total, sums, C, WIDTH)
