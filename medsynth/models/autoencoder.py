"""The 3D autoencoder: a folded stem, local norms, no attention, so that tiles equal the whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from medsynth.errors import ConfigError, DataError
from medsynth.models.blocks import ChannelNorm, Convolution, Down, ResidualBlock, Up, fold, unfold
from medsynth.models.tiling import process_tiled

LOGVAR_LIMITS = (-30.0, 20.0)


class Posterior(NamedTuple):
    """A diagonal Gaussian per latent voxel (Kingma 2014): mean and log of the variance, both [B, C, x, y, z]."""

    mean: Tensor
    logvar: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """The draw that standard normal `noise` [B, C, x, y, z] stands for."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, in nats per latent element, averaged over each sample: [B]."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)


class KLAutoencoder(ModelMixin, ConfigMixin):
    """Volumes [B, in_channels, X, Y, Z] in [-1, 1] to latents [B, latent_channels, X/f, Y/f, Z/f] and back.

    The stem folds 2x2x2 voxels into channels and the head unfolds them, so no wide layer runs at full resolution; each
    further factor of two folds again and doubles the width, with a shortcut around it (DC-AE, Chen 2024). `encode` and
    `decode` speak the raw latent; `encode_latent` and `decode_latent` the one with zero mean and unit variance per
    channel over the training split, once `set_latent_statistics` has been told what those are.

    Norms are per voxel (see `ChannelNorm`) and there is no attention, so an output voxel depends on a neighbourhood of
    known size and `encode_tiled` and `decode_tiled` give what the whole volume gives.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 1, downsampling: int = 4, latent_channels: int = 4, width: int = 48, blocks: int = 2
    ) -> None:
        super().__init__()
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
        self.latent_shift: Tensor
        self.latent_scale: Tensor
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))

    def encode(self, x: Tensor) -> Posterior:
        """[B, in_channels, X, Y, Z] in [-1, 1] -> posterior of the raw latent. Sizes are multiples of downsampling."""
        self._check_sizes(x)
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

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruction and posterior; through the mean, or through the draw that `noise` stands for."""
        posterior = self.encode(x)
        z = posterior.mean if noise is None else posterior.draw(noise)
        return self.decode(z), posterior

    def set_latent_statistics(self, shift: Tensor, scale: Tensor) -> None:
        """Mean and standard deviation per channel, [latent_channels] each, of the training split's raw latents.

        Raises DataError where a scale is not a positive finite number: such a channel carries nothing.
        """
        if not bool((scale > 0).all() and scale.isfinite().all() and shift.isfinite().all()):
            raise DataError(
                "latent statistics: expected finite shifts and positive scales, found a channel that is constant or "
                "not finite; train the autoencoder again"
            )
        self.latent_shift.copy_(shift)
        self.latent_scale.copy_(scale)

    def encode_latent(self, x: Tensor) -> Tensor:
        """[B, in_channels, X, Y, Z] -> the mean latent, (mean - shift) / scale. Never a draw."""
        return self.normalise(self.encode(x).mean)

    def decode_latent(self, z: Tensor) -> Tensor:
        """The normalised latent -> [B, in_channels, X, Y, Z]."""
        return self.decode(self.restore(z))

    def normalise(self, z: Tensor) -> Tensor:
        """Raw latent -> zero mean and unit variance per channel."""
        return (z - self.latent_shift.view(-1, 1, 1, 1)) / self.latent_scale.view(-1, 1, 1, 1)

    def restore(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return z * self.latent_scale.view(-1, 1, 1, 1) + self.latent_shift.view(-1, 1, 1, 1)

    def latent_reach(self) -> int:
        """How many latent voxels away, along an axis, an input can still change an output, encoding or decoding.

        Each level counts one voxel of its own grid per block, and the stem or head one of the half grid.
        """
        finest = 2 ** (self.levels - 1)
        fine_voxels = finest + 1 + sum(self.config.blocks * 2**level for level in range(self.levels))
        return math.ceil(fine_voxels / finest)

    def encode_tiled(self, x: Tensor, tile: int = 32, overlap: int | None = None) -> Tensor:
        """`encode_latent` in tiles. `tile` and `overlap` count latent voxels; overlap is twice the reach unless given,
        and then the result is the untiled one up to rounding. A smaller overlap is blended and approximate."""
        self._check_sizes(x)
        return self._tiled(self.encode_latent, x, tile, overlap, (self.config.downsampling, 1))

    def decode_tiled(self, z: Tensor, tile: int = 32, overlap: int | None = None) -> Tensor:
        """`decode_latent` in tiles; `tile` and `overlap` as for `encode_tiled`."""
        return self._tiled(self.decode_latent, z, tile, overlap, (1, self.config.downsampling))

    def _tiled(
        self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int | None, units: tuple[int, int]
    ) -> Tensor:
        reach = self.latent_reach()
        overlap = 2 * reach if overlap is None else overlap
        return process_tiled(function, x, tile=tile, overlap=overlap, reach=reach, units=units)

    def _check_sizes(self, x: Tensor) -> None:
        factor = self.config.downsampling
        if any(size % factor for size in x.shape[2:]):
            raise DataError(
                f"expected a volume whose sizes are multiples of {factor}, found {list(x.shape[2:])}; crop or pad it"
            )

    @torch.no_grad()
    def _smooth_head(self, in_channels: int) -> None:
        """Start the eight voxels of each cell alike, so that unfolding draws no checkerboard (Aitken 2017, ICNR)."""
        weight, bias = self.head.conv.weight, self.head.conv.bias
        weight.copy_(weight[:in_channels].repeat(8, 1, 1, 1, 1))
        if bias is not None:
            bias.copy_(bias[:in_channels].repeat(8))
