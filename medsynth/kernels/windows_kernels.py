"""`windows` as Triton kernels. Volumes are [B, X, Y, Z, channels], contiguous; a program takes a block of voxels."""

# mypy: ignore-errors
from __future__ import annotations

import triton  # its language has no types that mypy could check
import triton.language as tl


@triton.jit
def spread(
    x, out, voxels, x_size, y_size, z_size, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Each voxel's window, [voxels, 27 C], from x [voxels, C]; zeros beyond the edge."""
    voxel, columns = _block(BLOCK), tl.arange(0, WIDTH)[None, :]
    place, there = _neighbour(voxel, columns // C, 1, voxels, x_size, y_size, z_size)
    numbers = tl.load(x + place.to(tl.int64) * C + columns % C, mask=there & (columns < 27 * C), other=0.0)
    exists = (voxel < voxels) & (columns < 27 * C)
    tl.store(out + voxel.to(tl.int64) * (27 * C) + columns, numbers.to(out.dtype.element_ty), mask=exists)


@triton.jit
def collect(
    y, out, voxels, x_size, y_size, z_size, C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """What each voxel gets, [voxels, C], from all whose window in y [voxels, 27 C] it lies in."""
    voxel, columns = _block(BLOCK), tl.arange(0, WIDTH)[None, :]
    total = tl.zeros([BLOCK, WIDTH], tl.float32)
    for offset in tl.static_range(27):
        place, there = _neighbour(voxel, offset, -1, voxels, x_size, y_size, z_size)
        places = y + place.to(tl.int64) * (27 * C) + (offset * C + columns)
        total += tl.load(places, mask=there & (columns < C), other=0.0).to(tl.float32)
    exists = (voxel < voxels) & (columns < C)
    tl.store(out + voxel.to(tl.int64) * C + columns, total, mask=exists)


@triton.jit
def _block(BLOCK: tl.constexpr):
    return tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]


@triton.jit
def _neighbour(voxel, offset, sign, voxels, x_size, y_size, z_size):
    """The neighbour at an offset 0 to 26 (x, y and z from -1 to 1, the last the fastest), or opposite; and if there is one."""
    dx, dy, dz = sign * (offset // 9 - 1), sign * (offset // 3 % 3 - 1), sign * (offset % 3 - 1)
    z = voxel % z_size + dz
    y = voxel // z_size % y_size + dy
    x = voxel // (z_size * y_size) % x_size + dx
    inside = (x >= 0) & (x < x_size) & (y >= 0) & (y < y_size) & (z >= 0) & (z < z_size)
    return voxel + ((dx * y_size + dy) * z_size + dz), inside & (voxel < voxels)
