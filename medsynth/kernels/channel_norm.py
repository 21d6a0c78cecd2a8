"""The norm over the channels of each voxel, scaled and shifted per sample, in one pass over memory on NVIDIA GPUs.

The twin is in `medsynth.models.blocks`. It reads and writes a volume for each of its steps and, under autocast, widens it
to float32 and back; the derivative of scale and shift costs it as many passes again. Here each direction reads its
volumes once, in their own type, and computes in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medsynth.kernels.rows import DTYPES, Walk
from medsynth.kernels.triton_at_hand import runs_on

EPS = 1e-5
MOST_CHANNELS = 1024
"""Wider rows want more registers than there are."""


def can_fuse(x: Tensor, gain: Tensor, scale: Tensor | None, shift: Tensor | None) -> bool:
    """Whether `fused_channel_norm` takes these: on a GPU (or in Triton's interpreter), and of a shape it knows."""
    if not runs_on(x.device):
        return False
    rows = [row for row in (scale, shift) if row is not None]
    if any(y.device != x.device or y.dtype not in DTYPES for y in (x, gain, *rows)) or len(rows) == 1:
        return False
    known = x.ndim > 1 and x.is_contiguous() and x.numel() > 0 and x.shape[-1] <= MOST_CHANNELS
    return known and all(row.shape == (x.shape[0], x.shape[-1]) and row.stride(-1) == 1 for row in rows)


def fused_channel_norm(x: Tensor, gain: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """`ChannelNorm` where `can_fuse` says so. x [B, ..., C], gain [C], scale and shift [B, C]; can be differentiated once."""
    out: Tensor = _forward(x, gain, scale, shift)
    return out


@torch.library.custom_op("medsynth::channel_norm", mutates_args=())
def _forward(x: Tensor, gain: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    from medsynth.kernels import channel_norm_kernels as kernels  # takes a while, and there may be no Triton

    walk, out = Walk(x, _samples(x, scale)), torch.empty_like(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.normalise[walk.grid](
            x, gain.contiguous(), scale, shift, out, _stride(scale), _stride(shift), *walk.sizes, EPS,
            MODULATED=scale is not None, **walk.options,
        )  # fmt: skip
    return out


@torch.library.custom_op("medsynth::channel_norm_backward", mutates_args=())
def _backward(upstream: Tensor, x: Tensor, gain: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """d_x, and the sums over voxels of dy times the normalised x and of dy, [2, B, C] float32 (B is 1 without a scale)."""
    from medsynth.kernels import channel_norm_kernels as kernels

    walk, d_x = Walk(x, _samples(x, scale), summing=True), torch.empty_like(x)
    sums = walk.sums(x, 2)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernels.normalise_backward[walk.grid](
            upstream.contiguous(), x, gain.contiguous(), scale, d_x, *sums, _stride(scale), *walk.sizes, EPS,
            MODULATED=scale is not None, **walk.options,
        )  # fmt: skip
    return d_x, sums.sum(2)


@_forward.register_fake
def _(x: Tensor, gain: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@_backward.register_fake
def _(upstream: Tensor, x: Tensor, gain: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(2, _samples(x, scale), x.shape[-1], dtype=torch.float32)


def _remember(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
    x, gain, scale, shift = inputs
    ctx.save_for_backward(x, gain, scale)
    ctx.shift_dtype = None if shift is None else shift.dtype


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, scale = ctx.saved_tensors
    d_x, (along, total) = _backward(upstream, x, gain, scale)
    if scale is None:
        return d_x, along.sum(0).to(gain.dtype), None, None
    d_gain = torch.addcmul(along, scale.float(), along).sum(0)
    return d_x, d_gain.to(gain.dtype), (gain.float() * along).to(scale.dtype), total.to(ctx.shift_dtype)


_forward.register_autograd(_differentiate, setup_context=_remember)


def _samples(x: Tensor, scale: Tensor | None) -> int:
    """Without a scale all voxels are alike, whichever sample they belong to."""
    return 1 if scale is None else x.shape[0]


def _stride(row: Tensor | None) -> int:
    return 0 if row is None else row.stride(0)
