"""A tiny autoencoder and denoiser on invented volumes, for tests of their training."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsynth.cohort.manifest import Case
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.autoencoder import Autoencoder, AutoencoderLoss, KLNetwork
from medsynth.config.denoiser import Denoiser as DenoiserSettings
from medsynth.config.denoiser import FlowObjective, UNetNetwork
from medsynth.config.training import Training
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.unet import LatentUNet
from medsynth.progress import Silent
from medsynth.seeding import torch_generator
from medsynth.training.autoencoder import train_autoencoder
from medsynth.training.denoiser import train_denoiser
from medsynth.training.latents import LatentStatistics, LatentStore, encode_latents
from medsynth.training.records import Record

CPU = torch.device("cpu")
BOX = (16, 12, 8)
DECLARATION = {
    "kind_of": {"kind": "category", "values": ["dark", "bright"], "dropout": 0.2},
    "size_mm": {"kind": "number", "range": [1.0, 9.0], "unit": "mm", "dropout": 0.2},
    "lesion": {"kind": "mask", "labels": {"lesion": 1}, "dropout": 0.2},
}
OPPOSED = AutoencoderLoss(adversarial=0.5, adversarial_from=0.4, frequency=0.3)
"""A loss with every term, in which the opponent comes in at two fifths of the run."""


def volume_set(count: int, split: str, *, masked: bool = True, seed: int = 0) -> VolumeSet:
    """Balls of a size and a brightness that the conditions name, on a smooth ground."""
    generator = torch_generator(seed, "balls", split)
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in BOX), indexing="ij")
    volumes, masks, cases = [], [], []
    for i in range(count):
        centre = [n / 2 + float(torch.rand(1, generator=generator)) * 2 - 1 for n in BOX]
        radius = 1.5 + 2 * float(torch.rand(1, generator=generator))
        bright = i % 2
        inside = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2
        ground = -0.6 + 0.2 * torch.sin(axes[0] / 3 + i)
        volumes.append(torch.where(inside, 0.8 if bright else 0.1, ground)[None])
        masks.append(inside.to(torch.uint8)[None])
        cases.append(case(f"{split}-{i}", split, ("dark", "bright")[bright], 2 * radius))
    stacked = torch.stack(masks) if masked else None
    return VolumeSet(torch.stack(volumes).float(), stacked, tuple(cases))


def case(name: str, split: str, kind_of: str, size_mm: float) -> Case:
    return Case(
        case=name,
        patient=f"P{name}",
        origin="real",
        split=split,
        image=f"{name}.nii",
        mask="",
        modality="CT",
        shape=BOX,
        spacing_mm=(1.0, 1.0, 1.0),
        sha256=hashlib.sha256(name.encode()).hexdigest(),
        intensity_low=-1000.0,
        intensity_high=400.0,
        conditions={"kind_of": kind_of, "size_mm": size_mm, "not_steering": "x"},
    )


def training(**changes: Any) -> Training:
    base = {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "warmup_steps": 4,
        "ema_decay": 0.9,
        "validate_every": 3,
        "log_every": 1,
        "checkpoint_minutes": 1000.0,
    }
    return Training(**{**base, "precision": "fp32", **changes})


def new_autoencoder(downsampling: int = 2) -> KLAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return KLAutoencoder(downsampling=downsampling, latent_channels=3, width=16, blocks=1)


def new_denoiser(channels: int = 3, declaration: dict[str, Any] | None = None) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = LatentUNet(
            latent_channels=channels,
            downsampling=2,
            widths=[16, 32],
            blocks=1,
            head_channels=16,
            mask_channels=8,
            conditions=DECLARATION if declaration is None else declaration,
        )
    return Denoiser(network, Objective(FlowObjective(kind="flow")))


def autoencoder_settings(loss: AutoencoderLoss | None = None, **changes: Any) -> Autoencoder:
    network = KLNetwork(downsampling=2, latent_channels=3, width=16, blocks=1)
    return Autoencoder(network=network, loss=loss or AutoencoderLoss(), training=training(**changes))


def denoiser_settings(**changes: Any) -> DenoiserSettings:
    network = UNetNetwork(widths=(16, 32), blocks=1, head_channels=16, mask_channels=8)
    own = {name: changes.pop(name) for name in set(changes) & set(DenoiserSettings.model_fields)}
    return DenoiserSettings(network=network, training=training(**changes), **own)


def stores(folder: Path, network: KLAutoencoder) -> tuple[LatentStore, LatentStore, LatentStatistics]:
    train = encode_latents(network, volume_set(10, "train"), folder / "train", CPU, Silent())
    validation = encode_latents(network, volume_set(5, "validation"), folder / "validation", CPU, Silent())
    return train, validation, LatentStatistics.of(train)


def autoencoder_records(folder: Path, steps: int, network: KLAutoencoder | None = None, **changes: Any) -> list[Record]:
    network = new_autoencoder() if network is None else network
    plan = autoencoder_settings(steps=steps, **changes)
    sets = volume_set(10, "train"), volume_set(5, "validation")
    return list(train_autoencoder(network, *sets, plan, folder=folder / "checkpoints", seed=3, device=CPU))


def denoiser_records(folder: Path, steps: int, denoiser: Denoiser | None = None, **changes: Any) -> list[Record]:
    denoiser = new_denoiser() if denoiser is None else denoiser
    rank = os.environ.get("RANK", "0")
    train, validation, statistics = stores(folder / f"latents{rank}", new_autoencoder())
    return list(
        train_denoiser(
            denoiser,
            train,
            validation,
            denoiser_settings(steps=steps, **changes),
            statistics=statistics,
            folder=folder / "checkpoints",
            seed=3,
            device=CPU,
        )
    )


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}
