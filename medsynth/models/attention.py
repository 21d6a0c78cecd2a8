"""Attention over all voxels of a volume, in time linear in their number, and its quadratic relatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import ConfigError
from medsynth.models.blocks import ChannelNorm

Kind = Literal["linear", "softmax", "grouped_linear", "grouped_softmax", "none"]
KINDS = ("linear", "softmax", "grouped_linear", "grouped_softmax", "none")

EPS = 1e-6
QUERIES_PER_KEY = 4
"""Query heads that share one head of keys and values in the grouped kinds."""
LOWEST_TURN = 1e-2
"""Slowest rotation per voxel, in radians: half a turn over 314 voxels, more than any latent grid is wide."""


def linear_attention(q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None = None) -> Tensor:
    """Attention with positive features, in time linear in the number of tokens (Katharopoulos 2020, eq. 5).

    q: [B, H, N, D] and k: [B, H, M, D], not negative.  v: [B, H, M, E].  Returns [B, H, N, E], in the dtype of v.
    Leading axes may be any that broadcast. With `turns` [N, D/2] (then N = M) the products of the numerator are those of
    `rotate`d features, while the denominator stays as it is and so never changes its sign (Su 2021, eq. 19).

    Without turns each output is an average of the values, weighted by `q . k`. A query without a positive product with
    any key gets zero, and gradients stay finite: the denominator, a mean over keys, is at least `EPS`. All sums run in
    float32 or wider, whatever autocast says, and over `k / M`, so that they do not grow with the number of tokens.

    Rounding q, k and v to a format of unit roundoff u (2^-8 for bfloat16) moves an output by at most 6 u max|v|, to
    first order: a weight is a sum of positive products, each off by a factor within 1 +- 2u, so a normalised weight is
    within 1 +- 4u of itself, and rounding the values and the output adds u each.
    """
    with torch.autocast(v.device.type, enabled=False):
        dtype = torch.promote_types(v.dtype, torch.float32)
        mean_k = k.to(dtype) * (1 / k.shape[-2])
        q = q.to(dtype)
        weight = q @ mean_k.sum(-2)[..., None]  # [B, H, N, 1]
        if turns is not None:
            q, mean_k = rotate(q, turns), rotate(mean_k, turns)
        context = mean_k.mT @ v.to(dtype)  # [B, H, D, E]
        return ((q @ context) / weight.clamp_min(EPS)).to(v.dtype)


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None = None) -> Tensor:
    """The same as `linear_attention`, written out as the N x M matrix of weights that it never forms."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        q, k = q.to(dtype), k.to(dtype) / k.shape[-2]
        products = q @ k.mT  # [B, H, N, M]
        turned = products if turns is None else rotate(q, turns) @ rotate(k, turns).mT
        weights = turned / products.sum(-1, keepdim=True).clamp_min(EPS)
        return (weights @ v.to(dtype)).to(v.dtype)


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


class Attention3D(nn.Module):
    """Pre-norm multi-head self-attention over the voxels of a volume, with a residual.

    Queries and keys are RMS-normalised per head with a learned gain (Henry 2020). `linear` then takes their ReLU as
    features; `softmax` is the usual scaled dot product; the grouped kinds share each head of keys and values among
    four heads of queries (Ainslie 2023); `none` passes the volume on and has no parameters. Linear attention sees
    everything but is blind to place and dull for detail: both come from the residual block that follows it here, whose
    convolution between two channel mixes is the remedy that Sana (Xie 2024, sec. 2.2) builds in. With `rotary` queries
    and keys are turned by their places, for networks that have no such blocks on the way.
    """

    def __init__(self, channels: int, head_channels: int, kind: Kind, rotary: bool = False) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError([f"attention: expected one of {', '.join(KINDS)}; found {kind!r}"])
        if channels % head_channels or head_channels % 2:
            raise ConfigError(
                [
                    f"attention: expected channels that are a multiple of {head_channels}, an even number; found {channels}"
                ]
            )
        self.kind = kind
        self.rotary = rotary
        self.heads = channels // head_channels
        self.head_channels = head_channels
        if kind == "none":
            return
        self.shared = math.gcd(self.heads, QUERIES_PER_KEY) if kind.startswith("grouped") else 1
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, channels + 2 * (channels // self.shared), bias=False)
        self.q_gain = nn.Parameter(torch.ones(head_channels))
        self.k_gain = nn.Parameter(torch.ones(head_channels))
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, X, Y, Z, C] -> [B, X, Y, Z, C]."""
        return x if self.kind == "none" else x + self.mix(self.norm(x))

    def mix(self, x: Tensor) -> Tensor:
        """The attention alone, without norm and residual: [B, X, Y, Z, C] -> [B, X, Y, Z, C]."""
        tokens = self.qkv(x).flatten(1, 3).unflatten(-1, (-1, self.head_channels)).transpose(1, 2)  # [B, H + 2G, N, D]
        q, k, v = tokens.split([self.heads, self.heads // self.shared, self.heads // self.shared], 1)
        q, k = rms_norm(q, self.q_gain), rms_norm(k, self.k_gain)
        turns = rotary_turns(x.shape[1:4], self.head_channels, x.device) if self.rotary else None
        if self.kind.endswith("linear"):
            # Queries that share keys stand in an axis of their own, so that the keys' sums are made once for all of them.
            q = F.relu(q).view(q.shape[0], -1, self.shared, *q.shape[2:])
            mixed = linear_attention(q, F.relu(k)[:, :, None], v[:, :, None], turns).flatten(1, 2)
        else:
            if turns is not None:
                q, k = rotate(q, turns), rotate(k, turns)
            mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, enable_gqa=self.shared > 1)
        return self.out(mixed.transpose(1, 2).flatten(2)).view(x.shape)


class CrossAttention(nn.Module):
    """Each voxel looks at a few condition tokens, with a residual: softmax over the tokens (Vaswani 2017, sec. 3.2.3).

    With a single token every voxel would get the same; the caller gives at least two. Starts as the identity.
    """

    def __init__(self, channels: int, head_channels: int, token_width: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = ChannelNorm(channels)
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(token_width, 2 * channels, bias=False)
        self.q_gain = nn.Parameter(torch.ones(head_channels))
        self.k_gain = nn.Parameter(torch.ones(head_channels))
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """[B, X, Y, Z, C] and tokens [B, T, W] -> [B, X, Y, Z, C]."""
        q = self.q(self.norm(x)).flatten(1, 3).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, N, D]
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        q, k = rms_norm(q, self.q_gain), rms_norm(k, self.k_gain)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).view(x.shape)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x over its root mean square along the last axis, times the gain, in float32 or wider (Zhang 2019, eq. 4)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, wide.shape[-1:], gain.to(wide.dtype), eps=EPS)
