"""The denoising network: a 3D U-Net on latents with attention over all voxels at every level."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from medsynth.errors import ConfigError, DataError
from medsynth.models.attention import Attention3D, CrossAttention, Kind
from medsynth.models.blocks import (
    GROUP_WIDTH,
    ChannelNorm,
    Convolution,
    Down,
    ResidualBlock,
    Up,
    checkpointed,
    remade,
)
from medsynth.models.condition_encoder import ConditionEncoder
from medsynth.models.conditions import Declaration
from medsynth.models.steering import PLACE_WAVES, AngleEncoder, grid_waves


class Level(nn.Module):
    """Residual blocks on one grid; before the last of them attention over all its voxels, and to condition tokens.

    With `checkpointing` each of these keeps its input alone and makes the rest again in the backward pass.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        vector_width: int,
        head_channels: int,
        kind: Kind,
        looks_at_tokens: bool,
        checkpointing: bool,
        group_width: int,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.blocks = nn.ModuleList(ResidualBlock(width, vector_width, group_width) for _ in range(blocks))
        self.attention = Attention3D(width, head_channels, kind)
        self.cross = CrossAttention(width, head_channels, vector_width) if looks_at_tokens else None

    def forward(self, x: Tensor, vector: Tensor, tokens: Tensor) -> Tensor:
        """[B, X, Y, Z, C], a vector [B, V] and condition tokens [B, T, V] -> [B, X, Y, Z, C]."""
        run = checkpointed if self.checkpointing and self.training else _at_once
        for block in self.blocks[:-1]:
            x = run(block, x, vector)
        x = run(self.attention, x)
        if self.cross is not None:
            x = run(self.cross, x, tokens)
        return run(self.blocks[-1], x, vector)


def _at_once(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs)


def _merged(mix: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    merged: Tensor = mix(torch.cat([x, skip], -1))
    return merged


class LatentUNet(ModelMixin, ConfigMixin):
    """Noisy latent, noise angle and conditions to whatever the objective predicts, on the same grid.

    `widths` gives the channels per level, each further level on half the grid; `attention` the kind per level (one
    serves all). The mask condition joins at the input; everything else steers by scale and shift in every block.
    `positions` tells the first level where in the box each place is: convolutions and linear attention cannot know, and
    a crop that is centred on something cannot be learned without it. `cross_attention` lets every level look at a token per
    condition as well, `checkpointing` trades time for memory (docs/scaling.md). Convolutions run in groups of
    `group_width` channels, or full where a width is no multiple of it. The output layer starts at zero. `conditions` is a
    declaration (see `medsynth.models.conditions`) and travels in the config.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        downsampling: int = 4,
        widths: Sequence[int] = (64, 128),
        blocks: int = 2,
        attention: Sequence[str] = ("linear",),
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
        kinds = [cast("Kind", kind) for kind in attention]
        if len(kinds) == 1:
            kinds = kinds * len(widths)
        if len(kinds) != len(widths):
            raise ConfigError([f"attention: expected one kind, or one per level ({len(widths)}); found {len(kinds)}"])
        vector_width = 4 * widths[0]
        self.condition_encoder = ConditionEncoder(
            dict(conditions or {}), vector_width, downsampling, mask_channels, turned
        )
        self.angle = AngleEncoder(vector_width)
        self.stem = Convolution(latent_channels + self.condition_encoder.mask_channels, widths[0])
        self.place = nn.Linear(6 * len(PLACE_WAVES), widths[0], bias=False) if positions else None
        levels = [
            (width, blocks, vector_width, head_channels, kind, cross_attention, checkpointing, group_width)
            for width, kind in zip(widths, kinds, strict=True)
        ]
        self.down_levels = nn.ModuleList(Level(*level) for level in levels)
        self.up_levels = nn.ModuleList(Level(*level) for level in levels)
        pairs = list(itertools.pairwise(widths))
        self.downs = nn.ModuleList(Down(fine, coarse) for fine, coarse in pairs)
        self.ups = nn.ModuleList(Up(coarse, fine) for fine, coarse in pairs)
        self.merges = nn.ModuleList(nn.Linear(2 * fine, fine) for fine, _ in pairs)
        self.out_norm = ChannelNorm(widths[0])
        self.out_modulation = nn.Linear(vector_width, 2 * widths[0])
        self.head = Convolution(widths[0], latent_channels)
        nn.init.zeros_(self.head.conv.weight)
        if self.head.conv.bias is not None:
            nn.init.zeros_(self.head.conv.bias)

    def forward(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """x [B, C, X, Y, Z] and angle [B] in radians, 0 (data) to pi/2 (noise) -> prediction [B, C, X, Y, Z].

        `conditions` as `medsynth.models.conditions.encode` makes them; what is missing is null. The grid's sizes are
        multiples of 2^(levels - 1). Raises DataError for a grid that is not.
        """
        factor = 2 ** len(self.downs)
        grid = x.shape[2:]
        if any(size % factor for size in grid):
            raise DataError(f"expected a latent grid of multiples of {factor}, found {list(grid)}; use another box")
        angle_vector = self.angle(angle)
        tokens, field = self.condition_encoder(conditions, x.shape[0], grid, x.device)
        vector = nn.functional.silu(angle_vector + tokens.sum(1))
        context = torch.cat([angle_vector[:, None], tokens], 1)
        h = x.movedim(1, -1)
        if field is not None:
            h = torch.cat([h, field.to(h.dtype)], -1)
        h = self.stem(h)
        if self.place is not None:
            h = h + self.place(grid_waves(grid, x.device).to(self.dtype)).to(h.dtype)
        skips: list[Tensor] = []
        for level, down in zip(self.down_levels, self.downs, strict=False):
            h = level(h, vector, context)
            skips.append(h)
            h = remade(down, h)
        for levels in (self.down_levels, self.up_levels):
            h = levels[-1](h, vector, context)
        for i in reversed(range(len(self.ups))):
            h = remade(_merged, self.merges[i], self.ups[i](h), skips[i])
            h = self.up_levels[i](h, vector, context)
        return remade(self._out, h, *self.out_modulation(vector).chunk(2, -1)).movedim(-1, 1)

    def _out(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        predicted: Tensor = self.head(nn.functional.silu(self.out_norm(h, scale, shift)))
        return predicted
