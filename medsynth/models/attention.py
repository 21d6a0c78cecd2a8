"""Attention over all voxels of a volume, in time linear in their number, and its quadratic relatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import ConfigError
from medsynth.models.blocks import ChannelNorm, product, remade, residual
from medsynth.models.linear_attention import Gains, linear_attention, rms_norm, rotary_turns, rotate

Kind = Literal["linear", "softmax", "grouped_linear", "grouped_softmax", "none"]
KINDS = ("linear", "softmax", "grouped_linear", "grouped_softmax", "none")

Map = Callable[[Tensor], Tensor]

QUERIES_PER_KEY = 4
"""Query heads that share one head of keys and values in the grouped kinds."""


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
        if self.kind == "none":
            return x
        return residual(x, self.mix(x, self.norm, partial(product, self.out)), self.out.bias)

    def mix(self, x: Tensor, prepare: Map, out: Map | None = None) -> Tensor:
        """The attention alone, of `prepare(x)`, without norm and residual: [B, X, Y, Z, C] -> [B, X, Y, Z, C].

        `out` maps what the heads found, instead of the layer of that name.
        """
        out = out or self.out
        if self.kind.endswith("linear"):
            return remade(lambda x: out(self._look(self.qkv(prepare(x)))), x)
        return out(self._look(remade(lambda x: self.qkv(prepare(x)), x)))  # quadratic work is not done twice

    def _look(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values of each voxel, [B, X, Y, Z, (H + 2 G) D], to what it gets, [B, X, Y, Z, C]."""
        grid = tokens.shape[1:4]
        tokens = tokens.reshape(len(tokens), math.prod(grid), -1)
        shares = [size * self.head_channels for size in (self.heads, *[self.heads // self.shared] * 2)]
        q, k, v = (
            x.view(*x.shape[:2], -1, self.head_channels).transpose(1, 2) for x in torch.split(tokens, shares, 2)
        )  # [B, H, N, D], [B, G, N, D] twice
        turns = rotary_turns(grid, self.head_channels, v.device) if self.rotary else None
        gains = (self.q_gain, self.k_gain)
        if self.kind.endswith("linear"):
            # Queries that share keys stand in an axis of their own, so that the keys' sums are made once for all of them.
            q = q.reshape(q.shape[0], -1, self.shared, *q.shape[2:])
            mixed = linear_attention(q, k[:, :, None], v[:, :, None], turns, gains).flatten(1, 2)
        else:
            mixed = softmax_attention(q, k, v, turns, gains)
        return mixed.transpose(1, 2).reshape(len(tokens), *grid, -1)


class CrossAttention(nn.Module):
    """Each voxel looks at a few condition tokens, with a residual: softmax over the tokens (Vaswani 2017, sec. 3.2.3).

    With a single token every voxel gets the same: it pays from two on. Starts as the identity.
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
        mixed = softmax_attention(q, k, v, None, (self.q_gain, self.k_gain))
        return residual(x, product(self.out, mixed.transpose(1, 2).flatten(2).view(x.shape)), self.out.bias)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, turns: Tensor | None, gains: Gains) -> Tensor:
    """The usual scaled dot product (Vaswani 2017, eq. 1) of RMS-normalised queries and keys, turned where there are `turns`.

    q: [B, H, N, D].  k, v: [B, G, M, D], each head of them for H / G heads of queries.  Returns [B, H, N, D].
    """
    q, k = rms_norm(q, gains[0]), rms_norm(k, gains[1])
    if turns is not None:
        q, k = rotate(q, turns), rotate(k, turns)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, enable_gqa=grouped)
