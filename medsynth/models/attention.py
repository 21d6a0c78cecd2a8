"""Attention over all voxels of a volume, in time linear in their number, and its quadratic relatives."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import ConfigError
from medsynth.models.blocks import ChannelNorm

Kind = Literal["linear", "softmax", "none"]

EPS = 1e-6


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with positive features, in time linear in the number of tokens (Katharopoulos 2020, eq. 5).

    q: [B, H, N, D] and k: [B, H, M, D], not negative.  v: [B, H, M, E].  Returns [B, H, N, E], in the dtype of v.

    Each output is an average of the values, weighted by `q . k`. A query without a positive product with any key gets
    zero, and gradients stay finite: the denominator, a mean over keys, is at least `EPS`. All sums run in float32 or
    wider, whatever autocast says, and over `k / M`, so that they do not grow with the number of tokens.

    Rounding q, k and v to a format of unit roundoff u (2^-8 for bfloat16) moves an output by at most 6 u max|v|, to
    first order: a weight is a sum of positive products, each off by a factor within 1 +- 2u, so a normalised weight is
    within 1 +- 4u of itself, and rounding the values and the output adds u each.
    """
    with torch.autocast(v.device.type, enabled=False):
        dtype = torch.promote_types(v.dtype, torch.float32)
        mean_k = k.to(dtype) * (1 / k.shape[-2])
        q = q.to(dtype)
        context = mean_k.mT @ v.to(dtype)  # [B, H, D, E]
        weight = q @ mean_k.sum(-2)[..., None]  # [B, H, N, 1]
        return ((q @ context) / weight.clamp_min(EPS)).to(v.dtype)


def quadratic_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same as `linear_attention`, written out as the N x M matrix of weights that it never forms."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    with torch.autocast(v.device.type, enabled=False):
        products = q.to(dtype) @ k.to(dtype).mT / k.shape[-2]  # [B, H, N, M]
        weights = products / products.sum(-1, keepdim=True).clamp_min(EPS)
        return (weights @ v.to(dtype)).to(v.dtype)


class Attention3D(nn.Module):
    """Pre-norm multi-head self-attention over the voxels of a volume, with a residual.

    Queries and keys are RMS-normalised per head with a learned gain (Henry 2020). `linear` then takes their ReLU as
    features; `softmax` is the usual scaled dot product; `none` passes the volume on and has no parameters. Linear
    attention sees everything but is blind to place and dull for detail: both come from the residual block that follows
    it here, whose convolution between two channel mixes is the remedy that Sana (Xie 2024, sec. 2.2) builds in.
    """

    def __init__(self, channels: int, head_channels: int, kind: Kind) -> None:
        super().__init__()
        if kind not in ("linear", "softmax", "none"):
            raise ConfigError([f"attention: expected linear, softmax or none; found {kind!r}"])
        if channels % head_channels:
            raise ConfigError([f"attention: expected channels to be a multiple of {head_channels}, found {channels}"])
        self.kind = kind
        self.heads = channels // head_channels
        if kind == "none":
            return
        self.norm = ChannelNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.q_gain = nn.Parameter(torch.ones(head_channels))
        self.k_gain = nn.Parameter(torch.ones(head_channels))
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, X, Y, Z, C] -> [B, X, Y, Z, C]."""
        if self.kind == "none":
            return x
        tokens = self.qkv(self.norm(x)).flatten(1, 3)  # [B, N, 3 C]
        q, k, v = tokens.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, D]
        q, k = rms_norm(q, self.q_gain), rms_norm(k, self.k_gain)
        if self.kind == "linear":
            mixed = linear_attention(F.relu(q), F.relu(k), v)
        else:
            mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return x + self.out(mixed.transpose(1, 2).flatten(2)).view(x.shape)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x over its root mean square along the last axis, times the gain, in float32 or wider (Zhang 2019, eq. 4)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.rms_norm(wide, wide.shape[-1:], gain.to(wide.dtype), eps=EPS)
