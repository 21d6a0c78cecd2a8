"""3x3x3 windows side by side, and their overlapping sum: a convolution from or to few channels as one matrix product.

cuDNN's tiles are made for many channels on either side. From 4 channels to 128 an H200 takes longer than from 128 to 128 (447
against 313 microseconds for 262 144 voxels), back two thirds as long, nearly all of it for padding; spreading windows and
multiplying 108 by 128 channels takes 97, the way back 120.

The two functions are each other's adjoint, and so each other's derivative. The convolution itself, their twin, is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medsynth.kernels.rows import BLOCK_NUMBERS, DTYPES, power_of_two
from medsynth.kernels.triton_at_hand import runs_on

TAPS = 27


def can_fuse(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `convolve` takes x [B, X, Y, Z, C], and gains by it: the windows are no wider than the other side."""
    few, many = sorted(weight.shape[:2])
    known = runs_on(x.device) and x.dtype in DTYPES and x.ndim == 5 and x.numel() > 0 and groups == 1
    return known and weight.shape[2:] == (3, 3, 3) and TAPS * few <= many


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The zero-padded convolution of x [B, X, Y, Z, C] by weight [C', C, 3, 3, 3], without a bias: [B, X, Y, Z, C'].

    To few channels the result is float32, as the sum over the window is.
    """
    c_out, c_in = weight.shape[:2]
    if c_in < c_out:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # before it is 27 times as much
        taps = weight.permute(0, 2, 3, 4, 1).reshape(c_out, TAPS * c_in)
        return torch.nn.functional.linear(_windows(x), taps)
    # What a voxel gives to its neighbour, the neighbour sees on the other side.
    taps = weight.flip(2, 3, 4).permute(2, 3, 4, 0, 1).reshape(TAPS * c_out, c_in)
    total: Tensor = _overlapping_sum(torch.nn.functional.linear(x, taps))
    return total


@torch.library.custom_op("medsynth::windows", mutates_args=())
def _windows(x: Tensor) -> Tensor:
    """[B, X, Y, Z, C] -> [B, X, Y, Z, 27 C]: at o C + c channel c of the neighbour at offset o - 13, counted in base three."""
    from medsynth.kernels import windows_kernels as kernels  # takes a while, and there may be no Triton

    out = x.new_empty(*x.shape[:4], TAPS * x.shape[4])
    launch = _Launch(x.shape, out.shape[4])
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.spread[launch.grid](x.contiguous(), out, *launch.sizes, **launch.options)
    return out


@torch.library.custom_op("medsynth::overlapping_sum", mutates_args=())
def _overlapping_sum(y: Tensor) -> Tensor:
    """The adjoint: [B, X, Y, Z, 27 C] -> [B, X, Y, Z, C] float32."""
    from medsynth.kernels import windows_kernels as kernels

    out = y.new_empty(*y.shape[:4], y.shape[4] // TAPS, dtype=torch.float32)
    launch = _Launch(out.shape, out.shape[4])
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        kernels.collect[launch.grid](y.contiguous(), out, *launch.sizes, **launch.options)
    return out


@_windows.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:4], TAPS * x.shape[4])


@_overlapping_sum.register_fake
def _(y: Tensor) -> Tensor:
    return y.new_empty(*y.shape[:4], y.shape[4] // TAPS, dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


def _differentiate_windows(ctx: Any, upstream: Tensor) -> Tensor:
    d_x: Tensor = _overlapping_sum(upstream)
    return d_x.to(ctx.dtype)


def _differentiate_sum(ctx: Any, upstream: Tensor) -> Tensor:
    d_y: Tensor = _windows(upstream.to(ctx.dtype))
    return d_y


_windows.register_autograd(_differentiate_windows, setup_context=_remember)
_overlapping_sum.register_autograd(_differentiate_sum, setup_context=_remember)


class _Launch:
    """How many programs take the voxels of [B, X, Y, Z, C] by how many at a time, with `columns` numbers for each."""

    def __init__(self, shape: torch.Size, columns: int) -> None:
        *_, x_size, y_size, z_size, channels = shape
        width = power_of_two(columns)
        block = max(1, min(256, BLOCK_NUMBERS // width))
        voxels = shape[:4].numel()
        self.grid = (-(-voxels // block),)
        self.sizes = (voxels, x_size, y_size, z_size)
        self.options = {"C": channels, "WIDTH": width, "BLOCK": block, "num_warps": 4}
