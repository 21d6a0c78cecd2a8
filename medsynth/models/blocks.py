"""The pieces that autoencoder and U-Net are made of.

Inside the networks a volume is `[B, X, Y, Z, C]`, channels last and contiguous: then a 1x1x1 convolution is one matrix
product, a norm over channels runs along memory, folding is one copy, and attention sees tokens without a copy. A 3x3x3
convolution gets the same memory as a channels-last view.

The residual block spends its one 3x3x3 convolution in groups of channels between two full channel mixes (RegNet's X
block: Radosavovic 2020, sec. 3; Xie 2017). Sixteen floats fill one vector register: on a CPU groups of 16 channels take a
third of the time of a full convolution of 64, a seventh of one of 128, and no longer than a depthwise one. An H200 takes
as long for groups of 64 in bf16 as for groups of 16, with four times the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medsynth.kernels import epilogue, windows
from medsynth.kernels.channel_norm import EPS, can_fuse, fused_channel_norm

GROUP_WIDTH = 16


def fold(x: Tensor, factor: int) -> Tensor:
    """Space to channels: [B, X, Y, Z, C] -> [B, X/f, Y/f, Z/f, f^3 C] (Shi 2016, inverse of eq. 4)."""
    b, x_size, y_size, z_size, c = x.shape
    f = factor
    x = x.reshape(b, x_size // f, f, y_size // f, f, z_size // f, f, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, x_size // f, y_size // f, z_size // f, f**3 * c)


def unfold(x: Tensor, factor: int) -> Tensor:
    """Channels to space, the inverse of `fold`: [B, X, Y, Z, f^3 C] -> [B, fX, fY, fZ, C]."""
    b, x_size, y_size, z_size, c = x.shape
    f = factor
    x = x.reshape(b, x_size, y_size, z_size, f, f, f, c // f**3)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, x_size * f, y_size * f, z_size * f, c // f**3)


def fourier_features(x: Tensor, frequencies: int, highest: float | None = None) -> Tensor:
    """Sines and cosines of x [B] in radians, at `frequencies` geometric steps from 1 to `highest`: [B, 2 frequencies].

    In float32 or wider, because a high frequency of a rounded number is noise. `highest` is 2^(frequencies - 1) unless
    given.
    """
    top = float(2 ** (frequencies - 1)) if highest is None else highest
    wide = x if x.dtype == torch.float64 else x.float()
    steps = torch.linspace(0, math.log(top), frequencies, device=x.device, dtype=wide.dtype).exp()
    angles = wide[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], -1)


def remade(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, whose inner tensors are made again for the backward pass instead of being kept (Chen 2016).

    For a few cheap steps and one costly last one: that one is not done again, since nothing waits for its result. A
    compiler is left to decide by itself: it would do all of it again.
    """
    if torch.compiler.is_compiling():
        return function(*inputs)
    return checkpointed(function, *inputs)


def checkpointed(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The same, however costly the steps and whoever runs them."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    made: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return made


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each voxel (Ba 2016), with a learned gain and no bias.

    It is local on purpose. A norm over the volume, such as group norm, makes every voxel depend on every other one, so
    a volume that is processed in tiles would differ from the same volume in one piece. What a sample is told beside its
    voxels may scale and shift it (Perez 2018; Peebles 2023): norm(x) (1 + scale) + shift.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """[B, ..., C], scale and shift [B, C], both or neither -> [B, ..., C]."""
        if can_fuse(x, self.weight, scale, shift):
            return fused_channel_norm(x, self.weight, scale, shift)
        normed = F.layer_norm(x, self.weight.shape, self.weight, eps=EPS)
        if scale is None or shift is None:
            return normed
        scale, shift = (row.to(normed.dtype).view(len(x), *[1] * (x.ndim - 2), -1) for row in (scale, shift))
        return torch.addcmul(shift, normed, 1 + scale)


def groups_of(channels: int, group_width: int) -> int:
    """In how many groups a convolution runs: one where the channels are no multiple of the width."""
    return channels // group_width if channels % group_width == 0 else 1


class Convolution(nn.Module):
    """A 3x3x3 convolution of a channels-last volume, zero padded."""

    def __init__(self, channels_in: int, channels_out: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """[B, X, Y, Z, C] -> [B, X, Y, Z, C']."""
        if windows.can_fuse(x, self.conv.weight, self.conv.groups):
            out = windows.convolve(x, self.conv.weight)
            return out if self.conv.bias is None else out + self.conv.bias.to(out.dtype)
        return self._convolved(x, self.conv.bias)

    def product(self, x: Tensor) -> Tensor:
        """As `product` below."""
        return self._convolved(x, None if joins_late(self.conv.bias) else self.conv.bias)

    def _convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        # Contiguous: PyTorch answers in the memory order that it is given.
        conv, channels_first = self.conv, x.contiguous().movedim(-1, 1)
        return F.conv3d(channels_first, conv.weight, bias, padding=1, groups=conv.groups).movedim(1, -1)


def joins_late(bias: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a layer's `product` leaves out its bias, for `silu` or `residual` to add: where one kernel does both."""
    return bias is not None and epilogue.can_fuse(bias)


def product(layer: nn.Linear, x: Tensor) -> Tensor:
    """What the layer makes of x, with its bias or, where that `joins_late`, without."""
    return F.linear(x, layer.weight, None if joins_late(layer.bias) else layer.bias)


def silu(product: Tensor, bias: Tensor | None) -> Tensor:
    """SiLU of a layer's answer, given its `product`."""
    if joins_late(bias):
        return epilogue.fused_silu(product, bias)
    return F.silu(product)


def residual(x: Tensor, product: Tensor, bias: Tensor | None) -> Tensor:
    """x + a layer's answer, given its `product`."""
    if joins_late(bias):
        return epilogue.fused_residual(x, product, bias)
    return x + product


class ResidualBlock(nn.Module):
    """x + mix(silu(conv(silu(mix(norm(x)))))), where the norm may be scaled and shifted by a vector per sample.

    With `vector_width` the scale and shift come from that vector. The last mix starts at zero, so a fresh network is the
    sum of its shortcuts. One 3x3x3 convolution: one voxel of reach.
    """

    def __init__(self, channels: int, vector_width: int | None = None, group_width: int = GROUP_WIDTH) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.modulation = None if vector_width is None else nn.Linear(vector_width, 2 * channels)
        self.mix_in = nn.Linear(channels, channels)
        self.convolution = Convolution(channels, channels, groups_of(channels, group_width))
        self.mix_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.mix_out.weight)
        nn.init.zeros_(self.mix_out.bias)

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """[B, X, Y, Z, C] and, where built for it, a vector [B, V] -> [B, X, Y, Z, C]."""
        steering = () if self.modulation is None else self.modulation(vector).chunk(2, -1)
        h = remade(self._convolved, x, *steering)
        return residual(x, remade(self._mixed, h), self.mix_out.bias)

    def _convolved(self, x: Tensor, *steering: Tensor) -> Tensor:
        return self.convolution.product(silu(product(self.mix_in, self.norm(x, *steering)), self.mix_in.bias))

    def _mixed(self, h: Tensor) -> Tensor:
        return product(self.mix_out, silu(h, self.convolution.conv.bias))


class Down(nn.Module):
    """Half the grid: 2x2x2 voxels folded and mixed, beside a shortcut that averages them (Chen 2024, sec. 3.2).

    Both are linear maps of the same channels, so their matrices are added and the channels multiplied once.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Linear(8 * channels_in, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, X, Y, Z, C] -> [B, X/2, Y/2, Z/2, C']."""
        weight = self.mix.weight
        few, many = weight.shape
        if many % few == 0:
            weight = weight.clone()
            weight.view(few, few, -1).diagonal().add_(few / many)
        return F.linear(fold(x, 2), weight, self.mix.bias)


class Up(nn.Module):
    """Twice the grid: channels mixed and unfolded, beside the channels repeated and unfolded (Chen 2024, sec. 3.2), as in
    `Down` by one matrix.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels_in, 8 * channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """[B, X, Y, Z, C] -> [B, 2X, 2Y, 2Z, C']."""
        weight = self.mix.weight
        many, few = weight.shape
        if many % few == 0:
            weight = weight.clone()
            weight.view(few, -1, few).diagonal(dim1=0, dim2=2).add_(1)
        return unfold(F.linear(x, weight, self.mix.bias), 2)
