"""MAISI's autoencoder, with weights that its authors published, in the place of the house's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import register_to_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medsynth.errors import ConfigError
from medsynth.models.volume_autoencoder import LOGVAR_LIMITS, Posterior, VolumeAutoencoder

NAMED = 5
"""Differences between two sets of weights that a message lists."""


class MaisiAutoencoder(VolumeAutoencoder):
    """MONAI's `AutoencoderKlMaisi` (Guo 2024) behind the contract of `VolumeAutoencoder`; sizes as published unless given.

    MAISI's own scale is 0 to 1, which for CT are -1000 and 1000 HU. `value_range` says what -1 and +1 of a volume are
    on that scale; volumes are taken there before encoding and back after decoding.

    Its group norms take their statistics over all that they are given, so tiles are not exactly what the whole volume
    gives: an overlap of twice the reach keeps the convolutions' edges out, and what the statistics of neighbouring
    tiles differ by is blended over a few latent voxels more. MAISI's authors decode in overlapping windows for the same reason.
    """

    blended_latents = 6

    @register_to_config
    def __init__(
        self,
        downsampling: int = 4,
        latent_channels: int = 4,
        channels: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        norm_groups: int = 32,
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(latent_channels)
        if downsampling != 2 ** (len(channels) - 1):
            raise ConfigError([f"channels: expected {int(math.log2(downsampling)) + 1} levels, found {len(channels)}"])
        self.network = _monai_network(latent_channels, list(channels), blocks, norm_groups)

    def encode(self, x: Tensor) -> Posterior:
        """[B, 1, X, Y, Z] in [-1, 1] -> posterior of the raw latent. Sizes are multiples of downsampling."""
        self.check_sizes(x)
        low, high = self.config.value_range
        h = self.network.encoder((x + 1) * ((high - low) / 2) + low)
        return Posterior(self.network.quant_conv_mu(h), self.network.quant_conv_log_sigma(h).clamp(*LOGVAR_LIMITS))

    def decode(self, z: Tensor) -> Tensor:
        """Raw latent [B, latent_channels, x, y, z] -> [B, 1, X, Y, Z], about [-1, 1], not clipped."""
        low, high = self.config.value_range
        return (self.network.decode(z) - low) * (2 / (high - low)) - 1

    def latent_reach(self) -> int:
        """How many latent voxels away, along an axis, the convolutions carry an input; norms look further.

        At each level two voxels per block; on the way up one more for the interpolation, one for the convolution after
        it; one each for the first and the last convolution.
        """
        coarsest = int(self.config.downsampling)
        halvings = [2**level for level in range(len(self.config.channels) - 1)]
        blocks = sum(2 * self.config.blocks * 2**level for level in range(len(self.config.channels)))
        return math.ceil((1 + coarsest + blocks + sum(3 * size for size in halvings)) / coarsest)

    def read_weights(self, path: Path | str) -> None:
        """Take the weights of a `.safetensors` file with the names of `AutoencoderKlMaisi`'s state dict.

        Raises ConfigError where the file is of another kind, unreadable, or holds other names or shapes.
        """
        path = require_weights(Path(path))
        if path.suffix != ".safetensors":
            raise ConfigError(
                [
                    f"autoencoder.network.weights: expected a .safetensors file, found {path.name}; other kinds can run "
                    "code when they are read: convert it once as docs/your-own-scans.md shows under 'Published weights'"
                ]
            )
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                [
                    f"autoencoder.network.weights: expected readable weights in {path.name}, found {error}; convert it again"
                ]
            ) from error
        expected = self.network.state_dict()
        wrong = _differences(expected, found)
        if wrong:
            more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
            raise ConfigError(
                [
                    f"autoencoder.network.weights: {path.name} is not of this network: {'; '.join(wrong[:NAMED])}{more}; "
                    "give channels, blocks, latent_channels and norm_groups as they were trained, or other weights"
                ]
            )
        self.network.load_state_dict(found)


def require_weights(path: Path) -> Path:
    """The path, where a file lies. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError([f"autoencoder.network.weights: expected a file at {path}, found none; correct the path"])
    return path


def _differences(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    """What is missing, additional, of another shape or not finite, in words."""
    missing = [f"{name} is missing" for name in expected if name not in found]
    extra = [f"{name} is unknown" for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name].shape)} and not {list(weight.shape)}"
        for name, weight in expected.items()
        if name in found and found[name].shape != weight.shape
    ]
    broken = [f"{name} is not finite" for name, weight in found.items() if not bool(weight.isfinite().all())]
    return missing + extra + shapes + broken


def _monai_network(latent_channels: int, channels: list[int], blocks: int, norm_groups: int) -> Any:
    """MONAI's network as MAISI configures it, without what it does to save memory: tiles do that here."""
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    levels = len(channels)
    return AutoencoderKlMaisi(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        num_res_blocks=[blocks] * levels,
        num_channels=channels,
        attention_levels=[False] * levels,
        latent_channels=latent_channels,
        norm_num_groups=norm_groups,
        norm_eps=1e-6,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        num_splits=1,
        save_mem=False,
    )
