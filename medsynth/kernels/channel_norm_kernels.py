"""The two passes of `channel_norm` as Triton kernels: one forward, one backward.

A program owns a chunk of one sample's voxels and walks through it a block at a time. Tensors of voxels are [B, N, C],
contiguous; a block of them is [BLOCK, WIDTH], of which the first C columns exist. Statistics are made again in the backward
pass: a block is read anyway, and then nothing but the input has to be kept.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl


@triton.jit
def normalise(
    x, gain, scale, shift, y, scale_stride, shift_stride, voxels, chunk, chunks, eps,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MODULATED: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) / deviation * gain * (1 + scale) + shift."""
    sample, start, stop = _whereabouts(voxels, chunk, chunks)
    factor, offset = _factor(gain, scale, sample, scale_stride, C, WIDTH, MODULATED), 0.0
    if MODULATED:
        offset = _row(shift, sample, shift_stride, C, WIDTH)
    for at in range(start, stop, BLOCK):
        places, there = _places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        direction, _inverse = _directions(x, places, there, eps, C, WIDTH)
        tl.store(y + places, (direction * factor + offset).to(y.dtype.element_ty), mask=there)


@triton.jit
def normalise_backward(
    upstream, x, gain, scale, d_x, along, total, scale_stride, voxels, chunk, chunks, eps,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MODULATED: tl.constexpr,
):  # fmt: skip
    """d_x, and one chunk's part of the sums over voxels of dy times the normalised x and of dy, [B chunks, C] each."""
    sample, start, stop = _whereabouts(voxels, chunk, chunks)
    factor = _factor(gain, scale, sample, scale_stride, C, WIDTH, MODULATED)
    d_factor, d_offset = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        places, there = _places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        direction, inverse = _directions(x, places, there, eps, C, WIDTH)
        d_y = tl.load(upstream + places, mask=there, other=0.0).to(tl.float32)
        d_factor += tl.sum(d_y * direction, 0)
        d_offset += tl.sum(d_y, 0)
        d_direction = d_y * factor
        mean = tl.sum(d_direction, 1, keep_dims=True) * (1 / C)
        radial = tl.sum(d_direction * direction, 1, keep_dims=True) * (1 / C)
        tl.store(
            d_x + places, ((d_direction - mean - direction * radial) * inverse).to(d_x.dtype.element_ty), mask=there
        )
    columns = tl.arange(0, WIDTH)
    row = tl.program_id(0) * C + columns
    tl.store(along + row, d_factor, mask=columns < C)
    tl.store(total + row, d_offset, mask=columns < C)


@triton.jit
def _whereabouts(voxels, chunk, chunks):
    """The sample of this program, and where its chunk begins and ends."""
    program = tl.program_id(0)
    start = (program % chunks) * chunk
    return program // chunks, start, tl.minimum(start + chunk, voxels)


@triton.jit
def _places(sample, at, voxels, stop, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of a block of voxels [BLOCK, WIDTH], and which of them exist."""
    rows, columns = tl.arange(0, BLOCK)[:, None], tl.arange(0, WIDTH)[None, :]
    first = (tl.cast(sample, tl.int64) * voxels + at) * C
    return first + (rows * C + columns), (rows < stop - at) & (columns < C)


@triton.jit
def _directions(x, places, there, eps, C: tl.constexpr, WIDTH: tl.constexpr):
    """A block of voxels less their mean and over their deviation, 0 where there are none; and one over the latter."""
    tile = tl.load(x + places, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(there, tile - tl.sum(tile, 1, keep_dims=True) * (1 / C), 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) * (1 / C) + eps)
    return centred * inverse, inverse


@triton.jit
def _factor(gain, scale, sample, stride, C: tl.constexpr, WIDTH: tl.constexpr, MODULATED: tl.constexpr):
    """gain * (1 + scale), [1, WIDTH]."""
    factor = _row(gain, 0, 0, C, WIDTH)
    if MODULATED:
        factor = factor * (1 + _row(scale, sample, stride, C, WIDTH))
    return factor


@triton.jit
def _row(x, row, stride, C: tl.constexpr, WIDTH: tl.constexpr):
    """A row of x [rows, C], as [1, WIDTH]."""
    columns = tl.arange(0, WIDTH)[None, :]
    return tl.load(x + row * stride + columns, mask=columns < C, other=0.0).to(tl.float32)
