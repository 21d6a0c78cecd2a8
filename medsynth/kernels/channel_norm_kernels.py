"""The two passes of `channel_norm` as Triton kernels: one forward, one backward.

Statistics are made again in the backward pass: a block is read anyway, and then nothing but the input has to be kept.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl

from medsynth.kernels.row_kernels import places, row, store_sums, whereabouts


@triton.jit
def normalise(
    x, gain, scale, shift, y, scale_stride, shift_stride, voxels, chunk, chunks, eps,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MODULATED: tl.constexpr,
):  # fmt: skip
    """y = (x - mean) / deviation * gain * (1 + scale) + shift."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    factor, offset = _factor(gain, scale, sample, scale_stride, C, WIDTH, MODULATED), 0.0
    if MODULATED:
        offset = row(shift, sample, shift_stride, C, WIDTH)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        direction, _inverse = _directions(x, at_voxels, there, eps, C, WIDTH)
        tl.store(y + at_voxels, (direction * factor + offset).to(y.dtype.element_ty), mask=there)


@triton.jit
def normalise_backward(
    upstream, x, gain, scale, d_x, along, total, scale_stride, voxels, chunk, chunks, eps,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, MODULATED: tl.constexpr,
):  # fmt: skip
    """d_x, and one chunk's part of the sums over voxels of dy times the normalised x and of dy, [B chunks, C] each."""
    sample, start, stop = whereabouts(voxels, chunk, chunks)
    factor = _factor(gain, scale, sample, scale_stride, C, WIDTH, MODULATED)
    d_factor, d_offset = tl.zeros([BLOCK, WIDTH], tl.float32), tl.zeros([BLOCK, WIDTH], tl.float32)
    for at in range(start, stop, BLOCK):
        at_voxels, there = places(sample, at, voxels, stop, C, WIDTH, BLOCK)
        direction, inverse = _directions(x, at_voxels, there, eps, C, WIDTH)
        d_y = tl.load(upstream + at_voxels, mask=there, other=0.0).to(tl.float32)
        d_factor += d_y * direction
        d_offset += d_y
        d_direction = d_y * factor
        mean = tl.sum(d_direction, 1, keep_dims=True) * (1 / C)
        radial = tl.sum(d_direction * direction, 1, keep_dims=True) * (1 / C)
        d_tile = (d_direction - mean - direction * radial) * inverse
        tl.store(d_x + at_voxels, d_tile.to(d_x.dtype.element_ty), mask=there)
    store_sums(along, d_factor, C, WIDTH)
    store_sums(total, d_offset, C, WIDTH)


@triton.jit
def _directions(x, at_voxels, there, eps, C: tl.constexpr, WIDTH: tl.constexpr):
    """A block of voxels less their mean and over their deviation, 0 where there are none; and one over the latter."""
    tile = tl.load(x + at_voxels, mask=there, other=0.0).to(tl.float32)
    centred = tl.where(there, tile - tl.sum(tile, 1, keep_dims=True) * (1 / C), 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) * (1 / C) + eps)
    return centred * inverse, inverse


@triton.jit
def _factor(gain, scale, sample, stride, C: tl.constexpr, WIDTH: tl.constexpr, MODULATED: tl.constexpr):
    """gain * (1 + scale), [1, WIDTH]."""
    factor = row(gain, 0, 0, C, WIDTH)
    if MODULATED:
        factor = factor * (1 + row(scale, sample, stride, C, WIDTH))
    return factor
