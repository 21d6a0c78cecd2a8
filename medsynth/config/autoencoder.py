"""Settings of the autoencoder: network, losses, training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medsynth.config.base import Fraction, Settings
from medsynth.config.training import Training


class AutoencoderNetwork(Settings):
    """The 3D autoencoder: a stem that folds voxels into channels, residual stages, a head that unfolds."""

    downsampling: Literal[2, 4, 8] = 4
    latent_channels: Annotated[int, Field(ge=1, le=64)] = 4
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 48
    blocks: Annotated[int, Field(ge=1, le=16)] = 2
    """Residual blocks per stage."""


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

    network: AutoencoderNetwork = AutoencoderNetwork()
    loss: AutoencoderLoss = AutoencoderLoss()
    training: Training = Training()
