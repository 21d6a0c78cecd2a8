"""Linear attention of normalised queries and keys in four passes over memory, on NVIDIA GPUs.

The twin is `_LinearAttention` in `medsynth.models.linear_attention`: the same mathematics, clamps and memory order.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medsynth.kernels.rows import power_of_two
from medsynth.kernels.triton_at_hand import runs_on

PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "tf32", torch.float32: "ieee"}
HEAD_CHANNELS = range(8, 65)
"""Wider ones want more registers than there are."""
BLOCKS = {torch.bfloat16: 64, torch.float16: 64, torch.float32: 32}
"""Tokens at a time: as many as the matrix unit of a Hopper has rows, or as registers hold where it cannot be used."""
PROGRAMS = 4 * 132
"""About four for each multiprocessor of an H100. More would only add partial sums."""


def can_fuse(q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, gains: tuple[Tensor, Tensor] | None) -> bool:
    """Whether `fused_linear_attention` takes these: on a GPU (or in Triton's interpreter), and of a shape it knows."""
    if gains is None or not runs_on(q.device):
        return False
    tokens = (q, k, v) if turns is None else (q, k, v, turns)
    if any(x.device != q.device for x in (*tokens, *gains)) or any(x.stride(-1) != 1 for x in tokens):
        return False
    if q.dtype not in PRECISIONS or not q.dtype == k.dtype == v.dtype:
        return False
    if q.ndim not in (4, 5) or not q.ndim == k.ndim == v.ndim or 0 in (*q.shape, *k.shape):
        return False
    channels = q.shape[-1]
    if channels not in HEAD_CHANNELS or v.shape[-1] not in HEAD_CHANNELS:
        return False
    if q.shape[:2] != k.shape[:2] or k.shape[:-1] != v.shape[:-1] or (k.ndim == 5 and k.shape[2] != 1):
        return False
    if k.shape[-1] != channels or any(gain.shape != (channels,) for gain in gains):
        return False
    if turns is None:
        return True
    # A tile can be halved where the head fills it.
    return channels == _padded(channels) and (q.shape[-2], channels // 2) == turns.shape == (k.shape[-2], channels // 2)


def fused_linear_attention(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, q_gain: Tensor, k_gain: Tensor
) -> Tensor:
    """`linear_attention` with gains, where `can_fuse` says so. It can be differentiated once, in all but the turns."""
    flat = q.ndim == 4
    if flat:
        q, k, v = (x.unsqueeze(2) for x in (q, k, v))
    out: Tensor = _forward(q, k, v, turns, q_gain, k_gain)[0]
    return out.squeeze(2) if flat else out


@torch.library.custom_op("medsynth::linear_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, q_gain: Tensor, k_gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B, G, S, N, D], k [B, G, 1, M, D], v [B, G, 1, M, E] to y [B, G, S, N, E], C^T [B G, E, D] and z [B G, D]."""
    from medsynth.kernels import linear_attention_kernels as kernels  # takes a while, and there may be no Triton

    groups, shared = q.shape[1:3]
    keys, queries = _Walk(k), _Walk(q)
    out, parts, total_parts = _empty(q, v.shape[-1]), keys.parts(v.shape[-1], k.shape[-1]), keys.parts(k.shape[-1])
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        kernels.gather[keys.grid](
            k, v, turns, k_gain.contiguous(), parts, total_parts, k.stride()[:4], v.stride()[:4], _turn_strides(turns),
            keys.heads, groups, keys.tokens, keys.chunk, 1 / keys.tokens, **_options(q, v, turns, summed=True),
        )  # fmt: skip
        context, total = parts.sum(0), total_parts.sum(0)
        kernels.mix[queries.grid](
            q, turns, q_gain.contiguous(), context, total, out, q.stride()[:4], out.stride()[:4], _turn_strides(turns),
            queries.heads, groups, shared, queries.tokens, queries.chunk, **_options(q, v, turns, summed=False),
        )  # fmt: skip
    return out, context, total


@torch.library.custom_op("medsynth::linear_attention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Tensor | None,
    q_gain: Tensor,
    k_gain: Tensor,
    context: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and both gains."""
    from medsynth.kernels import linear_attention_kernels as kernels

    (groups, shared), (D, E) = q.shape[1:3], (q.shape[-1], v.shape[-1])
    keys, queries = _Walk(k), _Walk(q)
    if upstream.stride(-1) != 1:  # the gradient of a sum has no memory of its own
        upstream = upstream.contiguous()
    d_q, d_k, d_v = _empty(q, D), _empty(k, D), _empty(v, E)
    parts, total_parts, gain_parts = queries.parts(E, D), queries.parts(D), queries.parts(D)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        kernels.unmix[queries.grid](
            upstream, q, turns, q_gain.contiguous(), context, total, d_q, parts, total_parts, gain_parts,
            upstream.stride()[:4], q.stride()[:4], d_q.stride()[:4], _turn_strides(turns),
            queries.heads, groups, shared, queries.tokens, queries.chunk, **_options(q, v, turns, summed=True),
        )  # fmt: skip
        d_q_gain = gain_parts.sum((0, 1)).to(q_gain.dtype)
        d_context = parts.view(-1, keys.heads, shared, E, D).sum((0, 2)) / keys.tokens
        d_total = total_parts.view(-1, keys.heads, shared, D).sum((0, 2)) / keys.tokens
        gain_parts = keys.parts(D)
        kernels.scatter[keys.grid](
            k, v, turns, k_gain.contiguous(), d_context, d_total, d_k, d_v, gain_parts,
            k.stride()[:4], v.stride()[:4], d_k.stride()[:4], d_v.stride()[:4], _turn_strides(turns),
            keys.heads, groups, keys.tokens, keys.chunk, **_options(q, v, turns, summed=False),
        )  # fmt: skip
        d_k_gain = gain_parts.sum((0, 1)).to(k_gain.dtype)
    return d_q, d_k, d_v, d_q_gain, d_k_gain


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, q_gain: Tensor, k_gain: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, D, E = q.shape[0] * q.shape[1], q.shape[-1], v.shape[-1]
    return _empty(q, E), _wide(q, heads, E, D), _wide(q, heads, D)


@_backward.register_fake
def _(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Tensor | None,
    q_gain: Tensor,
    k_gain: Tensor,
    context: Tensor,
    total: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (_empty(x, x.shape[-1]) for x in (q, k, v))
    return d_q, d_k, d_v, q_gain.new_empty(q_gain.shape), k_gain.new_empty(k_gain.shape)


def _remember(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, context, total = output
    ctx.mark_non_differentiable(context, total)
    ctx.save_for_backward(*inputs, context, total)


def _differentiate(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    d_q, d_k, d_v, d_q_gain, d_k_gain = _backward(upstream, *ctx.saved_tensors)
    return d_q, d_k, d_v, None, d_q_gain, d_k_gain


_forward.register_autograd(_differentiate, setup_context=_remember)


class _Walk:
    """How the programs of a kernel share the heads and tokens of x [B, G, S, N, D]: in chunks of whole blocks."""

    def __init__(self, x: Tensor) -> None:
        self.heads, self.tokens = math.prod(x.shape[:3]), x.shape[3]
        blocks = -(-self.tokens // BLOCKS[x.dtype])
        blocks_each = -(-blocks * self.heads // PROGRAMS)
        self.chunk = blocks_each * BLOCKS[x.dtype]
        self.chunks = -(-blocks // blocks_each)
        self.grid = (self.heads * self.chunks,)
        self.device = x.device

    def parts(self, *shape: int) -> Tensor:
        """One float32 tensor for each program."""
        return torch.empty(self.chunks, self.heads, *shape, dtype=torch.float32, device=self.device)


def _options(q: Tensor, v: Tensor, turns: Tensor | None, *, summed: bool) -> dict[str, Any]:
    """What a kernel is compiled for; `summed` where it sums over tokens, with the value channels as rows."""
    narrow = q.dtype != torch.float32
    return {
        "D": q.shape[-1],
        "E": v.shape[-1],
        "WIDTH": _padded(q.shape[-1]),
        "VALUES": max(_padded(v.shape[-1]), 64 if summed and narrow else 0),
        "BLOCK": BLOCKS[q.dtype],
        "TURNED": turns is not None,
        "PRECISION": PRECISIONS[q.dtype],
        "num_warps": 4 if narrow else 8,
        "num_stages": 2,
    }


def _padded(channels: int) -> int:
    """The side of a tile, a power of two, that matrix units take."""
    return max(16, power_of_two(channels))


def _turn_strides(turns: Tensor | None) -> tuple[int, ...]:
    """Those of turns [N, D/2] as of a tensor [B, G, S, N, D/2], but for the last."""
    return (0, 0, 0, 0 if turns is None else turns.stride(0))


def _empty(like: Tensor, channels: int) -> Tensor:
    """An uninitialised tensor with other channels than `like` has, whose other axes lie in memory in the same order."""
    strides = like.stride()
    order = sorted(range(4), key=lambda axis: -strides[axis])
    return torch.empty_permuted((*like.shape[:4], channels), (*order, 4), dtype=like.dtype, device=like.device)


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)
