"""Settings of the autoencoder: network, losses, training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medsynth.config.base import ConfigPath, Fraction, Settings, kind_or
from medsynth.config.training import Training


class KLNetwork(Settings):
    """The house's 3D autoencoder: a stem that folds voxels into channels, residual stages, a head that unfolds."""

    kind: Literal["kl"] = "kl"
    downsampling: Literal[2, 4, 8] = 4
    latent_channels: Annotated[int, Field(ge=1, le=64)] = 4
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 48
    blocks: Annotated[int, Field(ge=1, le=16)] = 2
    """Residual blocks per stage."""


class MaisiNetwork(Settings):
    """MAISI's autoencoder with weights that are there already; the sizes are those of its published configuration."""

    kind: Literal["maisi"]
    weights: ConfigPath
    """A .safetensors file with the state dict of MONAI's `AutoencoderKlMaisi`."""
    fine_tune: bool = False
    """Train further on the training split. Otherwise the weights stay what they are, and `loss` only judges them."""
    channels: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2, max_length=4)] = (64, 128, 256)
    """Per level; each further one halves the grid."""
    blocks: Annotated[int, Field(ge=1, le=16)] = 2
    latent_channels: Annotated[int, Field(ge=1, le=64)] = 4
    norm_groups: Annotated[int, Field(ge=1)] = 32

    @property
    def downsampling(self) -> int:
        """Voxels per latent voxel and axis."""
        return int(2 ** (len(self.channels) - 1))

    @model_validator(mode="after")
    def _groups(self) -> MaisiNetwork:
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels must be multiples of norm_groups ({self.norm_groups})")
        return self


AutoencoderNetwork = Annotated[
    Annotated[KLNetwork, Tag("kl")] | Annotated[MaisiNetwork, Tag("maisi")],
    Discriminator(kind_or("kl")),
]


class AutoencoderLoss(Settings):
    """Weights of the reconstruction's terms."""

    l1: Annotated[float, Field(ge=0)] = 1.0
    structural: Annotated[float, Field(ge=0)] = 0.2
    """1 - multi-scale SSIM."""
    gradient: Annotated[float, Field(ge=0)] = 0.5
    """L1 of the first differences along each axis: keeps edges and texture."""
    frequency: Annotated[float, Field(ge=0)] = 0.0
    """L1 of the amplitudes of the 3D spectrum: keeps the strength of texture that cannot be kept voxel by voxel."""
    kl: Annotated[float, Field(ge=0)] = 1e-4
    adversarial: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pull of a patch discriminator, as a share of the pull of the terms above."""
    adversarial_from: Fraction = 0.5
    """Share of the run after which the discriminator comes in."""


class Autoencoder(Settings):
    """The autoencoder stage."""

    network: AutoencoderNetwork = KLNetwork()
    loss: AutoencoderLoss = AutoencoderLoss()
    training: Training = Training()
