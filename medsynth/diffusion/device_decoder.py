"""Latents to voxels on a device: in the precision that suits it, and in tiles that its memory suffices for."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from medsynth.diffusion.batch_size import BatchSizes, unless_out_of_memory
from medsynth.errors import MEMORY_RAN_OUT, ConfigError, MemoryRanOutError
from medsynth.models.volume_autoencoder import VolumeAutoencoder


class DeviceDecoder:
    """Decodes one latent after another. `tile_voxels`: most voxels that are decoded at once. `sizes` remembers what fitted,
    and `forget` gives memory back that is only convenient, and says whether there was any.

    With `half` layers compute in float16, which holds 11 bits of a number, as TF32 does in float32 products; bf16 holds 8, by
    which a voxel of CT would be off by several HU. What leaves its range (65504) leaves no finite voxel behind: then the volume
    is decoded again in the type of the weights.
    """

    def __init__(
        self,
        autoencoder: VolumeAutoencoder,
        tile_voxels: int,
        *,
        half: bool,
        sizes: BatchSizes,
        forget: Callable[[], bool],
    ) -> None:
        self._autoencoder = autoencoder
        self._tile_voxels = tile_voxels
        self._half = half
        self._sizes = sizes
        self._forget = forget

    @torch.no_grad()
    def __call__(self, latent: Tensor) -> Tensor:
        """A normalised latent [C, x, y, z] -> voxels [1, X, Y, Z] float32 on the device, about [-1, 1].

        Raises ConfigError where tiles of the size that was allowed would be all overlap, UsageError where memory does not
        suffice for any.
        """
        latent = latent[None].to(self._autoencoder.device, self._autoencoder.dtype)
        if self._half:
            with torch.autocast(latent.device.type, torch.float16):
                voxels = self._in_tiles(latent)
            if bool(voxels.isfinite().all()):
                return voxels[0].float()
        return self._in_tiles(latent)[0].float()

    def _in_tiles(self, latent: Tensor) -> Tensor:
        """[1, 1, X, Y, Z], in tiles that memory suffices for; all tiles give the same up to rounding."""
        kind: Hashable = ("decode", latent.device, tuple(latent.shape))
        voxels = math.prod(latent.shape[2:]) * int(self._autoencoder.config.downsampling) ** 3
        tile = self._sizes.limited(kind, min(self._tile_voxels, voxels))
        while True:
            try:
                decoded = unless_out_of_memory(partial(self._autoencoder.decode_tiled, latent, tile))
            except ConfigError:  # so small a tile is all overlap
                if tile < min(self._tile_voxels, voxels):
                    raise MemoryRanOutError(MEMORY_RAN_OUT) from None
                raise
            if decoded is not None:
                return decoded
            if not self._forget():
                tile = self._sizes.halve(kind, tile)
