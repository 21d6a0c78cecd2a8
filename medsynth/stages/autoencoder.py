"""Train the autoencoder on the training split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsynth.cohort.grids import common_grid
from medsynth.cohort.volumes import load_volume, onto
from medsynth.config.autoencoder import KLNetwork, MaisiNetwork
from medsynth.config.cohort import HuWindow, Intensity
from medsynth.config.pipeline import MAISI_HU, Pipeline
from medsynth.digests import file_sha256
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.maisi import MaisiAutoencoder, require_weights
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.seeding import derive
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import stamp
from medsynth.stages.training import (
    CHECKPOINTS,
    WEIGHTS,
    deciding,
    follow,
    kept_validation,
    load_split,
    network_size,
    pick_device,
    prepared,
    reproducible,
)
from medsynth.training.autoencoder import selected_by, train_autoencoder
from medsynth.training.checkpoint import discard_checkpoints

SHOWN = 4


def run(context: Context, folder: Path) -> StageResult:
    """Train, save the network and a few reconstructions of validation scans."""
    pipeline, settings = context.pipeline, context.pipeline.autoencoder
    reproducible(pipeline)
    device = pick_device(pipeline.compute.device)
    train, validation = load_split(context, "train"), load_split(context, "validation")
    network = new_autoencoder(pipeline)
    records = train_autoencoder(
        network,
        train,
        validation,
        settings,
        folder=folder / CHECKPOINTS,
        seed=pipeline.seed,
        device=device,
        tile_voxels=pipeline.compute.tile_voxels,
    )
    history = follow(context, "training the autoencoder", settings.training, records, folder, selected_by(settings))
    network.eval()
    network.save_pretrained(folder / "model", safe_serialization=True)
    _save_reconstructions(context, network, device, folder)
    discard_checkpoints(folder / CHECKPOINTS)
    weights = file_sha256(folder / "model" / WEIGHTS)
    given = {}
    if isinstance(settings.network, MaisiNetwork):
        given["given_weights"] = f"sha256:{file_sha256(Path(settings.network.weights))}"
    size = network_size(network)
    return StageResult({"parameters": size, "weights": weights, **given, **kept_validation(history)})


def new_autoencoder(pipeline: Pipeline) -> VolumeAutoencoder:
    """A freshly initialised network, or one with the weights that the settings name; global random state is left as it
    was. Raises ConfigError where such weights do not fit."""
    settings = pipeline.autoencoder.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(pipeline.seed, "autoencoder", "weights"))
        if isinstance(settings, KLNetwork):
            return KLAutoencoder(**settings.model_dump(exclude={"kind"}))
        network = MaisiAutoencoder(
            downsampling=settings.downsampling,
            value_range=_maisi_range(pipeline.prepare.intensity),
            **settings.model_dump(exclude={"kind", "weights", "fine_tune"}),
        )
    network.read_weights(settings.weights)
    return network


def _maisi_range(intensity: Intensity) -> tuple[float, float]:
    """What -1 and +1 of a prepared volume are on MAISI's scale: of CT by its window, of anything else the whole scale,
    which MAISI too fills by percentiles of each scan."""
    if isinstance(intensity, HuWindow):
        return (intensity.low + MAISI_HU) / (2 * MAISI_HU), (intensity.high + MAISI_HU) / (2 * MAISI_HU)
    return 0.0, 1.0


def _settings(pipeline: Pipeline) -> dict[str, Any]:
    """What decides the weights. Where given ones lie does not; what they are is a source."""
    settings = deciding(pipeline.autoencoder)
    settings["network"].pop("weights", None)
    return settings


def _given_weights(pipeline: Pipeline) -> list[Any] | None:
    """What stands for the file of given weights. Raises ConfigError where there is none."""
    network = pipeline.autoencoder.network
    return stamp(require_weights(Path(network.weights))) if isinstance(network, MaisiNetwork) else None


@torch.no_grad()
def _save_reconstructions(context: Context, network: VolumeAutoencoder, device: torch.device, folder: Path) -> None:
    """The first validation scans and what the network makes of them, all on the common grid: [N, 2, X, Y, Z]."""
    manifest, rule = prepared(context)
    grid = common_grid(context.pipeline.prepare.every_grid())
    pairs = []
    for case in manifest.split("validation").cases[:SHOWN]:
        volume = load_volume(manifest, case, rule)
        latent = network.encode_tiled(volume[None].to(device), context.pipeline.compute.tile_voxels)
        decoded = network.decode_tiled(latent, context.pipeline.compute.tile_voxels)[0].float().clamp(-1, 1).cpu()
        pairs.append(torch.cat([onto(each, case.spacing_mm, grid) for each in (volume, decoded)]))
    array = torch.stack(pairs).numpy().astype(np.float16)
    np.save(folder / "reconstructions.npy", array, allow_pickle=False)


STAGE = Stage(
    name="autoencoder",
    needs=("prepare",),
    settings=_settings,
    run=run,
    room=(
        "expected a training step that fits the memory, found less; lower "
        "autoencoder.training.batch_size, and raise autoencoder.training.accumulate by as much"
    ),
    revision=2,
    sources=_given_weights,
)
