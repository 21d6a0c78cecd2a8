"""What follows a matrix product or convolution: its bias, with SiLU or with a residual, in one pass over memory on NVIDIA GPUs.

A GPU adds the bias of a convolution in a pass of its own, and sums its gradient over voxels at a ninth of the speed of its
memory (H200). Here the bias joins what follows, forward and backward. The twins are in `medsynth.models.blocks`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medsynth.kernels.rows import BLOCK_NUMBERS, DTYPES, Walk
from medsynth.kernels.triton_at_hand import runs_on


def can_fuse(bias: Tensor) -> bool:
    """Whether the functions below take a bias: on a GPU (or in Triton's interpreter), of a type and length they know."""
    return runs_on(bias.device) and bias.dtype in DTYPES and 0 < len(bias) <= BLOCK_NUMBERS


def fused_silu(x: Tensor, bias: Tensor) -> Tensor:
    """silu(x + bias), in the type of x. x [..., C], bias [C]; can be differentiated once."""
    out: Tensor = _silu(x.contiguous(), bias)
    return out


def fused_residual(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """x + y + bias, in the wider type of x and y [..., C]; bias [C]. Can be differentiated once."""
    out: Tensor = _residual(x.contiguous(), y.contiguous(), bias)
    return out


@torch.library.custom_op("medsynth::biased_silu", mutates_args=())
def _silu(x: Tensor, bias: Tensor) -> Tensor:
    from medsynth.kernels import epilogue_kernels as kernels  # takes a while, and there may be no Triton

    walk, out = Walk(x), torch.empty_like(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.biased_silu[walk.grid](x, bias.contiguous(), out, *walk.sizes, **walk.options)
    return out


@torch.library.custom_op("medsynth::biased_silu_backward", mutates_args=())
def _silu_backward(upstream: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """d_x, and its sum over voxels [C]."""
    from medsynth.kernels import epilogue_kernels as kernels

    walk, d_x = Walk(x, summing=True), torch.empty_like(x)
    sums = walk.sums(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.biased_silu_backward[walk.grid](
            upstream.contiguous(), x, bias.contiguous(), d_x, sums, *walk.sizes, **walk.options
        )
    return d_x, sums.sum((0, 1, 2)).to(bias.dtype)


@torch.library.custom_op("medsynth::biased_residual", mutates_args=())
def _residual(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    from medsynth.kernels import epilogue_kernels as kernels

    walk, out = Walk(x), torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.biased_residual[walk.grid](x, y, bias.contiguous(), out, *walk.sizes, **walk.options)
    return out


@torch.library.custom_op("medsynth::voxel_sum", mutates_args=())
def _voxel_sum(x: Tensor) -> Tensor:
    """Sum over all but the last axis, [C] float32."""
    from medsynth.kernels import epilogue_kernels as kernels

    walk = Walk(x, summing=True)
    sums = walk.sums(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.voxel_sum[walk.grid](x.contiguous(), sums, *walk.sizes, **walk.options)
    return sums.sum((0, 1, 2))


@_silu.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


@_silu_backward.register_fake
def _(upstream: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(bias)


@_residual.register_fake
def _(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))


@_voxel_sum.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[-1], dtype=torch.float32)


def _remember_silu(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_silu(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
    d_x, d_bias = _silu_backward(upstream, *ctx.saved_tensors)
    return d_x, d_bias


def _remember_residual(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.dtypes = [each.dtype for each in inputs]


def _differentiate_residual(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y, bias = ctx.dtypes
    return upstream.to(x), upstream.to(y), _voxel_sum(upstream).to(bias)


_silu.register_autograd(_differentiate_silu, setup_context=_remember_silu)
_residual.register_autograd(_differentiate_residual, setup_context=_remember_residual)
