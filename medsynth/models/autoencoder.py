"""The 3D autoencoder: a folded stem, local norms, no attention, so that tiles equal the whole."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from medsynth.errors import ConfigError
from medsynth.models.blocks import ChannelNorm, Convolution, Down, ResidualBlock, Up, fold, unfold
from medsynth.models.volume_autoencoder import LOGVAR_LIMITS, Posterior, VolumeAutoencoder


class KLAutoencoder(VolumeAutoencoder):
    """The house's own, for volumes [B, in_channels, X, Y, Z].

    The stem folds 2x2x2 voxels into channels and the head unfolds them, so no wide layer runs at full resolution; each
    further factor of two folds again and doubles the width, with a shortcut around it (DC-AE, Chen 2024).

    Norms are per voxel (see `ChannelNorm`) and there is no attention, so an output voxel depends on a neighbourhood of
    known size and `encode_tiled` and `decode_tiled` give what the whole volume gives.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 1, downsampling: int = 4, latent_channels: int = 4, width: int = 48, blocks: int = 2
    ) -> None:
        super().__init__(latent_channels)
        if downsampling not in (2, 4, 8):
            raise ConfigError([f"downsampling: expected 2, 4 or 8; found {downsampling}"])
        self.levels = int(math.log2(downsampling))
        widths = [width * 2**level for level in range(self.levels)]
        self.stem = Convolution(8 * in_channels, width)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, channels in enumerate(widths):
            if level:
                self.encoder.append(Down(widths[level - 1], channels))
            self.encoder.extend(ResidualBlock(channels) for _ in range(blocks))
        for level, channels in reversed(list(enumerate(widths))):
            self.decoder.extend(ResidualBlock(channels) for _ in range(blocks))
            if level:
                self.decoder.append(Up(channels, widths[level - 1]))
        self.encoder_norm = ChannelNorm(widths[-1])
        self.to_latent = Convolution(widths[-1], 2 * latent_channels)
        self.from_latent = Convolution(latent_channels, widths[-1])
        self.decoder_norm = ChannelNorm(width)
        self.head = Convolution(width, 8 * in_channels)
        self._smooth_head(in_channels)

    def encode(self, x: Tensor) -> Posterior:
        """[B, in_channels, X, Y, Z] in [-1, 1] -> posterior of the raw latent. Sizes are multiples of downsampling."""
        self.check_sizes(x)
        h = self.stem(fold(x.movedim(1, -1), 2))
        for layer in self.encoder:
            h = layer(h)
        mean, logvar = self.to_latent(self.encoder_norm(h)).movedim(-1, 1).chunk(2, 1)
        return Posterior(mean, logvar.clamp(*LOGVAR_LIMITS))

    def decode(self, z: Tensor) -> Tensor:
        """Raw latent [B, latent_channels, x, y, z] -> [B, in_channels, X, Y, Z], about [-1, 1], not clipped."""
        h = self.from_latent(z.movedim(1, -1))
        for layer in self.decoder:
            h = layer(h)
        h = self.head(nn.functional.silu(self.decoder_norm(h)))
        return unfold(h, 2).movedim(-1, 1)

    def latent_reach(self) -> int:
        """How many latent voxels away, along an axis, an input can still change an output, encoding or decoding.

        Each level counts one voxel of its own grid per block, and the stem or head one of the half grid.
        """
        finest = 2 ** (self.levels - 1)
        fine_voxels = finest + 1 + sum(self.config.blocks * 2**level for level in range(self.levels))
        return math.ceil(fine_voxels / finest)

    @torch.no_grad()
    def _smooth_head(self, in_channels: int) -> None:
        """Start the eight voxels of each cell alike, so that unfolding draws no checkerboard (Aitken 2017, ICNR)."""
        weight, bias = self.head.conv.weight, self.head.conv.bias
        weight.copy_(weight[:in_channels].repeat(8, 1, 1, 1, 1))
        if bias is not None:
            bias.copy_(bias[:in_channels].repeat(8))
