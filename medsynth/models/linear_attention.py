"""Attention with positive features: linear in the number of voxels, and its quadratic twin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medsynth.kernels.linear_attention import can_fuse, fused_linear_attention

EPS = 1e-6
LOWEST_TURN = 1e-2
"""Slowest rotation per voxel, in radians: half a turn over 314 voxels, more than any latent grid is wide."""
CPU_TOKENS = 1024
"""Tokens at a time on a CPU: what is made of them then stays in its cache, and whole tensors are only read or written once."""

Gains = tuple[Tensor, Tensor]


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None = None, gains: Gains | None = None
) -> Tensor:
    """Attention with positive features, in time linear in the number of tokens (Katharopoulos 2020, eq. 5).

    q: [B, H, N, D] and k: [B, H, M, D], not negative.  v: [B, H, M, E].  Returns [B, H, N, E], in the dtype of v.
    Leading axes may be any that broadcast, those of k to those of q or v. With `turns` [N, D/2] (then N = M) the products of
    the numerator are those of `rotate`d features, while the denominator stays as it is and so never changes its sign (Su
    2021, eq. 19). With `gains` for queries and keys, [D] each, q and k may be any vectors, and their `features` take their
    place.

    Without turns each output is an average of the values, weighted by `q . k`. A query without a positive product with
    any key gets zero, and gradients stay finite: the denominator, a mean over keys, is at least `EPS`. All sums run in
    float32 or wider, whatever autocast says, and over terms divided by M, so that they do not grow with the number of
    tokens.

    Only q, k and v are kept for the backward pass, which makes the rest again. It cannot be differentiated itself.

    Rounding q, k and v to a format of unit roundoff u (2^-8 for bfloat16) moves an output by at most 6 u max|v|, to
    first order: a weight is a sum of positive products, each off by a factor within 1 +- 2u, so a normalised weight is
    within 1 +- 4u of itself, and rounding the values and the output adds u each.
    """
    if gains is not None and can_fuse(q, k, v, turns, gains):
        return fused_linear_attention(q, k, v, turns, *gains)
    q_gain, k_gain = gains or (None, None)
    out: Tensor = _LinearAttention.apply(q, k, v, turns, q_gain, k_gain)  # type: ignore[no-untyped-call]
    return out


def quadratic_attention(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None = None, gains: Gains | None = None
) -> Tensor:
    """The same as `linear_attention`, written out as the N x M matrix of weights that it never forms."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        q, k = q.to(dtype), k.to(dtype)
        if gains is not None:
            q, k = features(q, gains[0]), features(k, gains[1])
        k = k / k.shape[-2]
        products = q @ k.mT  # [B, H, N, M]
        turned = products if turns is None else rotate(q, turns) @ rotate(k, turns).mT
        weights = turned / products.sum(-1, keepdim=True).clamp_min(EPS)
        return (weights @ v.to(dtype)).to(v.dtype)


def features(x: Tensor, gain: Tensor) -> Tensor:
    """ReLU of the RMS-normalised x, [..., D]."""
    return F.relu(rms_norm(x, gain))


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x over its root mean square along the last axis, times the gain, in float32 or wider (Zhang 2019, eq. 4)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, wide.shape[-1:], gain.to(wide.dtype), eps=EPS)


def rotary_turns(grid: Sequence[int], head_channels: int, device: torch.device) -> Tensor:
    """Angles [X * Y * Z, head_channels / 2] in radians by which each voxel's channel pairs turn (Su 2021, sec. 3.2.2).

    A third of the pairs turns with each axis, at geometric steps from one radian per voxel down to `LOWEST_TURN`; pairs
    that are left over stand still. Products of two rotated vectors depend on the difference of their places alone.
    """
    pairs = head_channels // 2
    each = pairs // 3
    rates = torch.linspace(0, math.log(LOWEST_TURN), each, device=device).exp()
    places = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    turns = [place.flatten()[:, None] * rates for place in places]
    return torch.cat([*turns, torch.zeros(math.prod(grid), pairs - 3 * each, device=device)], -1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x [..., N, D] with channels i and i + D/2 turned together by `turns` [N, D/2]."""
    cos, sin = turns.cos().to(x.dtype), turns.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class _LinearAttention(torch.autograd.Function):
    """`linear_attention` a few tokens at a time, and its derivatives (by hand, from the equation in the comments).

    Pieces are [..., D, n], tokens last: what goes by channel or by token then runs along memory, where a head of 16
    channels would be too short for a vector loop.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, q_gain: Tensor | None, k_gain: Tensor | None
    ) -> Tensor:
        dtype = torch.promote_types(v.dtype, torch.float32)
        share = 1 / k.shape[-2]
        with torch.autocast(v.device.type, enabled=False):
            context = total = torch.zeros((), dtype=dtype, device=v.device)
            for part in _parts(k):
                key = _Features(k, k_gain, part, dtype).values
                total = total + key.sum(-1, keepdim=True) * share  # z = sum k / M: [B, H, D, 1]
                value = _taken(v, part, dtype).mul_(share)
                context = context + _turned(key, turns, part) @ value.mT  # C = sum k v^T / M
            leading = (q[..., 0, 0] + v[..., 0, 0]).shape
            out = _empty((*leading, q.shape[-2], v.shape[-1]), q.expand(*leading, *q.shape[-2:]), v.dtype)
            for part in _parts(q):
                query = _Features(q, q_gain, part, dtype).values
                mixed = context.mT @ _turned(query, turns, part)
                out[..., part, :] = mixed.div_((total.mT @ query).clamp_min_(EPS)).mT  # y = q C / q z
        ctx.save_for_backward(q, k, v, turns, q_gain, k_gain, context, total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, turns, q_gain, k_gain, context, total = ctx.saved_tensors
        dtype = context.dtype
        share = 1 / k.shape[-2]
        d_q, d_k, d_v = (_empty(x.shape, x, x.dtype) for x in (q, k, v))
        d_q_gain, d_k_gain = (
            None if gain is None else torch.zeros_like(gain, dtype=dtype) for gain in (q_gain, k_gain)
        )
        with torch.autocast(v.device.type, enabled=False):
            d_context, d_total = torch.zeros_like(context), torch.zeros_like(total)
            for part in _parts(q):
                made = _Features(q, q_gain, part, dtype)
                turned = _turned(made.values, turns, part)
                weight = total.mT @ made.values
                kept = weight.clamp_min(EPS)
                d_mixed = _taken(upstream, part, dtype).div_(kept)
                along = context.mT @ turned
                # d(q z) = -(dy . y) / q z, where the clamp lets it through
                d_weight = along.mul_(d_mixed).sum(-2, keepdim=True).div_(kept).neg_()
                d_weight.masked_fill_(weight < EPS, 0)
                d_context += (turned @ d_mixed.mT).sum_to_size(context.shape)
                d_total += (made.values @ d_weight.mT).sum_to_size(total.shape)
                d_query = _turned(context @ d_mixed, turns, part, back=True).addcmul_(total, d_weight)
                d_q[..., part, :] = made.backward(d_query.sum_to_size(made.values.shape), d_q_gain).mT
            d_context, d_total = d_context * share, d_total * share
            for part in _parts(k):
                made = _Features(k, k_gain, part, dtype)
                value = _taken(v, part, dtype)
                d_value = d_context.mT @ _turned(made.values, turns, part)
                d_v[..., part, :] = d_value.sum_to_size(value.shape).mT
                d_key = _turned(d_context @ value, turns, part, back=True).add_(d_total)
                d_k[..., part, :] = made.backward(d_key.sum_to_size(made.values.shape), d_k_gain).mT
        gains = (None if d is None else d.to(g.dtype) for d, g in ((d_q_gain, q_gain), (d_k_gain, k_gain)))
        return d_q, d_k, d_v, None, *gains


class _Features:
    """Some tokens' features [..., D, n], and the way back from their gradient to that of the tokens."""

    def __init__(self, x: Tensor, gain: Tensor | None, part: slice, dtype: torch.dtype) -> None:
        x = _taken(x, part, dtype)
        self.gain = None if gain is None else gain.to(dtype)[:, None]
        if self.gain is None:
            self.values = x
            return
        self.inverse = x.square().mean(-2, keepdim=True).add_(EPS).rsqrt_()
        self.direction = x.mul_(self.inverse)
        self.values = (self.direction * self.gain).relu_()

    def backward(self, d_values: Tensor, d_gain: Tensor | None) -> Tensor:
        """Gradient of the tokens; that of the gain is added to `d_gain`."""
        if self.gain is None or d_gain is None:
            return d_values
        d_values = torch.ops.aten.threshold_backward(d_values, self.values, 0)
        along = d_values * self.direction
        d_gain += along.sum(-1).flatten(0, -2).sum(0)
        radial = along.mul_(self.gain).mean(-2, keepdim=True)
        return d_values.mul_(self.gain).addcmul_(self.direction, radial, value=-1).mul_(self.inverse)


def _parts(x: Tensor) -> Iterator[slice]:
    """The tokens of x [..., N, D] in turn: all at once where a device has room to work in, or where a graph is captured."""
    count = x.shape[-2]
    step = CPU_TOKENS if x.device.type == "cpu" and not torch.compiler.is_compiling() else count
    for start in range(0, count, step):
        yield slice(start, start + step)


def _taken(x: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
    """A copy of some tokens of x [..., N, D]: [..., D, n], contiguous."""
    return x[..., part, :].mT.to(dtype, memory_format=torch.contiguous_format, copy=True)


def _empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor whose axes lie in memory in the order of those of `like`.

    Heads of a voxel lie side by side in the network. What comes out in that order is not turned around twice.
    """
    strides = like.stride()
    order = sorted(range(like.ndim), key=lambda axis: -strides[axis])
    return torch.empty_permuted(tuple(shape), order, dtype=dtype, device=like.device)


def _turned(x: Tensor, turns: Tensor | None, part: slice, *, back: bool = False) -> Tensor:
    """`rotate` of x [..., D, n] by the turns of these tokens, or back again; x where there are none."""
    if turns is None:
        return x
    return rotate(x.mT, -turns[part] if back else turns[part]).mT
