"""The denoising network: a 3D U-Net on latents with attention over all voxels at every level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from medsynth.errors import ConfigError, DataError
from medsynth.models.attention import Attention3D, Kind
from medsynth.models.blocks import ChannelNorm, Convolution, Down, ResidualBlock, Up, fourier_features, modulate
from medsynth.models.conditions import ConditionEncoder, Declaration

ANGLE_FREQUENCIES = 32
HIGHEST_ANGLE_FREQUENCY = 512.0

PLACE_WAVES = (1.0, 2.0, 4.0)
"""Half waves over the box: the coarsest tells left from right, the finest about an eighth of the box."""


class Level(nn.Module):
    """Residual blocks on one grid, and before the last of them one attention over all its voxels."""

    def __init__(self, width: int, blocks: int, vector_width: int, head_channels: int, kind: Kind) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, vector_width) for _ in range(blocks))
        self.attention = Attention3D(width, head_channels, kind)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """[B, X, Y, Z, C] and a vector [B, V] -> [B, X, Y, Z, C]."""
        for block in self.blocks[:-1]:
            x = block(x, vector)
        return self.blocks[-1](self.attention(x), vector)


def grid_waves(grid: Sequence[int], device: torch.device) -> Tensor:
    """Sines and cosines [X, Y, Z, 6 * len(PLACE_WAVES)] of each axis' coordinate, which runs from -1 to 1 over the box."""
    axes = [torch.linspace(-1, 1, size, device=device) if size > 1 else torch.zeros(1, device=device) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[..., None]  # [X, Y, Z, 3, 1]
    phases = places * (math.pi / 2) * torch.tensor(PLACE_WAVES, device=device)
    return torch.cat([phases.sin(), phases.cos()], -1).flatten(-2)


class LatentUNet(ModelMixin, ConfigMixin):
    """Noisy latent, noise angle and conditions to whatever the objective predicts, on the same grid.

    `widths` gives the channels per level, each further level on half the grid; `attention` the kind per level (one
    serves all). The mask condition joins at the input; everything else steers by scale and shift in every block.
    `positions` tells the first level where in the box each place is: convolutions and linear attention cannot know, and
    a crop that is centred on something cannot be learned without it. The output layer starts at zero. `conditions` is a
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
    ) -> None:
        super().__init__()
        kinds = [cast("Kind", kind) for kind in attention]
        if len(kinds) == 1:
            kinds = kinds * len(widths)
        if len(kinds) != len(widths):
            raise ConfigError([f"attention: expected one kind, or one per level ({len(widths)}); found {len(kinds)}"])
        vector_width = 4 * widths[0]
        self.condition_encoder = ConditionEncoder(dict(conditions or {}), vector_width, downsampling, mask_channels)
        self.angle_mlp = nn.Sequential(
            nn.Linear(2 * ANGLE_FREQUENCIES, vector_width), nn.SiLU(), nn.Linear(vector_width, vector_width)
        )
        self.stem = Convolution(latent_channels + self.condition_encoder.mask_channels, widths[0])
        self.place = nn.Linear(6 * len(PLACE_WAVES), widths[0], bias=False) if positions else None
        levels = [(width, blocks, vector_width, head_channels, kind) for width, kind in zip(widths, kinds, strict=True)]
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
        features = fourier_features(angle, ANGLE_FREQUENCIES, HIGHEST_ANGLE_FREQUENCY)
        vector, field = self.condition_encoder(self.angle_mlp(features.to(self.dtype)), conditions, grid)
        vector = nn.functional.silu(vector)
        h = x.movedim(1, -1)
        if field is not None:
            h = torch.cat([h, field.to(h.dtype)], -1)
        h = self.stem(h)
        if self.place is not None:
            h = h + self.place(grid_waves(grid, x.device).to(self.dtype)).to(h.dtype)
        skips: list[Tensor] = []
        for level, down in zip(self.down_levels, self.downs, strict=False):
            h = level(h, vector)
            skips.append(h)
            h = down(h)
        h = self.up_levels[-1](self.down_levels[-1](h, vector), vector)
        for i in reversed(range(len(self.ups))):
            h = self.merges[i](torch.cat([self.ups[i](h), skips[i]], -1))
            h = self.up_levels[i](h, vector)
        h = nn.functional.silu(modulate(self.out_norm(h), self.out_modulation(vector)))
        return self.head(h).movedim(-1, 1)
