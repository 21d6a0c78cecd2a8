"""The other denoising network: a diffusion transformer on latents whose cost is linear in their voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import DataError
from medsynth.models.attention import Attention3D, CrossAttention, Kind
from medsynth.models.blocks import GROUP_WIDTH, ChannelNorm, Convolution, checkpointed, fold, groups_of, remade, unfold
from medsynth.models.condition_encoder import ConditionEncoder
from medsynth.models.conditions import Declaration
from medsynth.models.steering import PLACE_WAVES, AngleEncoder, grid_waves

EXPANSION = 2.5
"""Width of the feed-forward part over that of the block, as Sana has it (Xie 2024, sec. 2.2)."""
PARTS = 6
"""Scale, shift and gate, for attention and for feed-forward."""


class FeedForward(nn.Module):
    """Feed-forward after a 3x3x3 convolution, with a gate: mix(h_1 * silu(h_2)) with h = mix(conv(x)).

    The convolution gives what linear attention lacks, detail of the neighbourhood. Sana (Xie 2024, sec. 2.2, in 2D and
    depthwise) convolves the expanded channels. Ahead of the expansion, where ConvNeXt has it (Liu 2022, sec. 2.6), a fifth as
    many go through it and nothing as wide is kept for the backward pass: it trains faster (docs/history.md). It runs in
    groups of channels, or full where they are no multiple of `group_width`.
    """

    def __init__(self, channels: int, group_width: int) -> None:
        super().__init__()
        hidden = 16 * max(1, round(channels * EXPANSION / 16))
        self.convolution = Convolution(channels, channels, groups_of(channels, group_width))
        self.mix_in = nn.Linear(channels, 2 * hidden, bias=False)
        self.mix_out = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor, prepare: Callable[[Tensor], Tensor], gate: Tensor) -> Tensor:
        """x + gate * that of `prepare(x)`: [B, X, Y, Z, C] and a gate [B, C] -> [B, X, Y, Z, C]."""
        h = remade(lambda x: self.convolution(prepare(x)), x)
        return remade(lambda x, h: gated_residual(x, self.mix_out, gate, _gated(self.mix_in(h))), x, h)


def _gated(h: Tensor) -> Tensor:
    value, gate = h.chunk(2, -1)
    return value * F.silu(gate)


def gated_residual(x: Tensor, layer: nn.Linear, gate: Tensor, h: Tensor) -> Tensor:
    """x + gate * layer(h), where each sample has a gate of its own: x [B, ..., C], gate [B, C], h [B, ..., D] -> [B, ..., C].

    The gate goes into the matrix. Then the layer's answer, as large as x, need not be kept for the gate's derivative: that
    comes of the matrix's.
    """
    matrices = gate[:, :, None] * layer.weight
    if layer.bias is not None:
        x = x + (gate * layer.bias).to(x.dtype).view(len(x), *[1] * (x.ndim - 2), -1)
    return torch.baddbmm(x.flatten(1, -2), h.flatten(1, -2), matrices.mT).view(x.shape)


class TransformerBlock(nn.Module):
    """Attention and gated feed-forward, each scaled, shifted and gated by the condition vector (Peebles 2023, sec. 3.2).

    The six vectors are those that all blocks share plus a table of the block's own (Chen 2023, "adaLN-single"). Gates
    start at zero, so a fresh network is its shortcut.
    """

    def __init__(self, width: int, head_channels: int, kind: Kind, token_width: int | None, group_width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(PARTS, width))
        self.attention = Attention3D(width, head_channels, kind, rotary=True)
        self.cross = None if token_width is None else CrossAttention(width, head_channels, token_width)
        self.norm_feed = ChannelNorm(width)
        self.feed = FeedForward(width, group_width)
        if kind != "none":
            nn.init.xavier_uniform_(self.attention.out.weight)  # the gate starts at zero in its place

    def forward(self, x: Tensor, shared: Tensor, tokens: Tensor | None) -> Tensor:
        """[B, X, Y, Z, C], shared vectors [B, 6, C] and tokens [B, T, W] -> [B, X, Y, Z, C]."""
        scale, shift, gate, feed_scale, feed_shift, feed_gate = (shared + self.table).to(x.dtype).unbind(1)
        if self.attention.kind != "none":
            out = partial(gated_residual, x, self.attention.out, gate)
            x = self.attention.mix(x, lambda x: self.attention.norm(x, scale, shift), out)
        if self.cross is not None and tokens is not None:
            x = self.cross(x, tokens)
        return self.feed(x, lambda x: self.norm_feed(x, feed_scale, feed_shift), feed_gate)


class LatentTransformer(ModelMixin, ConfigMixin):
    """Noisy latent, noise angle and conditions to whatever the objective predicts, on the same grid.

    Patches of `patch`^3 latent voxels become tokens of `width` channels; `depth` blocks follow. The mask condition joins
    at the input; everything else steers by scale, shift and gate in every block and, with `cross_attention`, by
    condition tokens. Places enter by rotation of queries and keys, by the zero padding of the convolutions and, with
    `positions`, by waves over the box. Any grid that the patches divide; the output layer starts at zero.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        downsampling: int = 4,
        width: int = 256,
        depth: int = 8,
        patch: int = 1,
        attention: str = "linear",
        head_channels: int = 32,
        mask_channels: int = 16,
        conditions: Declaration | None = None,
        positions: bool = False,
        cross_attention: bool = False,
        checkpointing: bool = False,
        group_width: int = GROUP_WIDTH,
        turned: bool = False,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.checkpointing = checkpointing
        self.angle = AngleEncoder(width)
        self.condition_encoder = ConditionEncoder(dict(conditions or {}), width, downsampling, mask_channels, turned)
        self.stem = nn.Linear(patch**3 * (latent_channels + self.condition_encoder.mask_channels), width)
        self.place = nn.Linear(6 * len(PLACE_WAVES), width, bias=False) if positions else None
        self.modulation = nn.Linear(width, PARTS * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        kind = cast("Kind", attention)
        token_width = width if cross_attention else None
        block = (width, head_channels, kind, token_width, group_width)
        self.blocks = nn.ModuleList(TransformerBlock(*block) for _ in range(depth))
        self.out_norm = ChannelNorm(width)
        self.out_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch**3 * latent_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """x [B, C, X, Y, Z] and angle [B] in radians, 0 (data) to pi/2 (noise) -> prediction [B, C, X, Y, Z].

        `conditions` as `medsynth.models.conditions.encode` makes them; what is missing is null. Raises DataError for a
        grid that the patches do not divide.
        """
        grid = x.shape[2:]
        if any(size % self.patch for size in grid):
            raise DataError(f"expected a latent grid of multiples of {self.patch}, found {list(grid)}; use another box")
        angle_vector = self.angle(angle)
        tokens, field = self.condition_encoder(conditions, x.shape[0], grid, x.device)
        vector = F.silu(angle_vector + tokens.sum(1))
        h = x.movedim(1, -1)
        if field is not None:
            h = torch.cat([h, field.to(h.dtype)], -1)
        h = self.stem(fold(h, self.patch))
        if self.place is not None:
            h = h + self.place(grid_waves(h.shape[1:4], x.device).to(self.dtype)).to(h.dtype)
        shared = self.modulation(vector).unflatten(-1, (PARTS, -1))
        context = torch.cat([angle_vector[:, None], tokens], 1)
        for block in self.blocks:
            again = self.checkpointing and self.training
            h = checkpointed(block, h, shared, context) if again else block(h, shared, context)
        h = self.head(self.out_norm(h, *self.out_modulation(vector).chunk(2, -1)))
        return unfold(h, self.patch).movedim(-1, 1)
