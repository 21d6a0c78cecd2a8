"""What every autoencoder offers: latents with zero mean and unit variance, and volumes of any size by tiles."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from medsynth.config.training import TILE_VOXELS
from medsynth.errors import DataError
from medsynth.models.tiling import process_tiled, tile_shape

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


class VolumeAutoencoder(ModelMixin, ConfigMixin):
    """Volumes [B, 1, X, Y, Z] in [-1, 1] to latents [B, latent_channels, X/f, Y/f, Z/f] and back.

    A subclass has `latent_channels` and `downsampling` (f, per axis) in its config and says how it encodes, decodes and
    reaches. `encode` and `decode` speak the raw latent; `encode_latent` and `decode_latent` the one with zero mean and
    unit variance per channel over the training split, once `set_latent_statistics` has been told what those are.
    """

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.register_buffer("latent_shift", torch.zeros(latent_channels))
        self.register_buffer("latent_scale", torch.ones(latent_channels))

    @abstractmethod
    def encode(self, x: Tensor) -> Posterior:
        """[B, 1, X, Y, Z] in [-1, 1] -> posterior of the raw latent. Raises DataError as `check_sizes` does."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Raw latent [B, latent_channels, x, y, z] -> [B, 1, X, Y, Z], about [-1, 1], not clipped."""

    blended_latents = 0
    """Latent voxels over which neighbouring tiles are blended beyond the reach of convolutions: none where what they reach is
    all that an output depends on."""

    @abstractmethod
    def latent_reach(self) -> int:
        """How many latent voxels away, along an axis, an input can still change an output, encoding or decoding."""

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
        """[B, 1, X, Y, Z] -> the mean latent, (mean - shift) / scale. Never a draw."""
        return self.normalise(self.encode(x).mean)

    def decode_latent(self, z: Tensor) -> Tensor:
        """The normalised latent -> [B, 1, X, Y, Z]."""
        return self.decode(self.restore(z))

    def normalise(self, z: Tensor) -> Tensor:
        """Raw latent -> zero mean and unit variance per channel."""
        return (z - self.latent_shift.view(-1, 1, 1, 1)) / self.latent_scale.view(-1, 1, 1, 1)

    def restore(self, z: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return z * self.latent_scale.view(-1, 1, 1, 1) + self.latent_shift.view(-1, 1, 1, 1)

    def encode_tiled(self, x: Tensor, tile_voxels: int = TILE_VOXELS, overlap: int | None = None) -> Tensor:
        """`encode_latent` in tiles of at most `tile_voxels` voxels, over the batch, which bounds the memory beyond x and
        the result. `overlap` counts latent voxels and is twice the reach and `blended_latents` unless given, and then no
        voxel is used that the convolutions at a tile's edge have touched. A smaller overlap is blended and approximate.

        Raises ConfigError where tiles of that size would be all overlap.
        """
        self.check_sizes(x)
        return self._tiled(self.encode_latent, x, tile_voxels, overlap, (self.config.downsampling, 1))

    def decode_tiled(self, z: Tensor, tile_voxels: int = TILE_VOXELS, overlap: int | None = None) -> Tensor:
        """`decode_latent` in tiles; `tile_voxels` (of the volume) and `overlap` as for `encode_tiled`."""
        return self._tiled(self.decode_latent, z, tile_voxels, overlap, (1, self.config.downsampling))

    def check_sizes(self, x: Tensor) -> None:
        """Raises DataError where a size of the volume is no multiple of downsampling."""
        factor = self.config.downsampling
        if any(size % factor for size in x.shape[2:]):
            raise DataError(
                f"expected a volume whose sizes are multiples of {factor}, found {list(x.shape[2:])}; crop or pad it"
            )

    def _tiled(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        tile_voxels: int,
        overlap: int | None,
        units: tuple[int, int],
    ) -> Tensor:
        reach = self.latent_reach()
        overlap = 2 * reach + self.blended_latents if overlap is None else overlap
        voxels = len(x) * int(self.config.downsampling) ** 3
        tile = tile_shape([size // units[0] for size in x.shape[2:]], tile_voxels, overlap, voxels)
        return process_tiled(function, x, tile=tile, overlap=overlap, reach=reach, units=units)
