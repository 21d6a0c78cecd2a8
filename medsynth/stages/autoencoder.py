"""Train the autoencoder on the training split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medsynth.cohort.grids import common_grid
from medsynth.cohort.volumes import load_volume, onto
from medsynth.config.base import plain
from medsynth.digests import file_sha256
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.seeding import derive
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.training import (
    CHECKPOINTS,
    WEIGHTS,
    follow,
    last_validation,
    load_split,
    network_size,
    pick_device,
    prepared,
    reproducible,
)
from medsynth.training.autoencoder import train_autoencoder
from medsynth.training.checkpoint import discard_checkpoints

SHOWN = 4


def run(context: Context, folder: Path) -> StageResult:
    """Train, save the network and a few reconstructions of validation scans."""
    pipeline, settings = context.pipeline, context.pipeline.autoencoder
    reproducible(pipeline)
    device = pick_device(pipeline.compute.device)
    train, validation = load_split(context, "train"), load_split(context, "validation")
    network = new_autoencoder(pipeline.seed, **plain(settings.network))
    records = train_autoencoder(
        network, train, validation, settings, folder=folder / CHECKPOINTS, seed=pipeline.seed, device=device
    )
    history = follow(context, "training the autoencoder", settings.training, records, folder)
    network.eval()
    network.save_pretrained(folder / "model", safe_serialization=True)
    _save_reconstructions(context, network, device, folder)
    discard_checkpoints(folder / CHECKPOINTS)
    weights = file_sha256(folder / "model" / WEIGHTS)
    return StageResult({"parameters": network_size(network), "weights": weights, **last_validation(history)})


def new_autoencoder(seed: int, **config: int) -> KLAutoencoder:
    """A freshly initialised network; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder", "weights"))
        return KLAutoencoder(**config)


@torch.no_grad()
def _save_reconstructions(context: Context, network: KLAutoencoder, device: torch.device, folder: Path) -> None:
    """The first validation scans and what the network makes of them, all on the common grid: [N, 2, X, Y, Z]."""
    manifest, rule = prepared(context)
    grid = common_grid(context.pipeline.prepare.every_grid())
    pairs = []
    for case in manifest.split("validation").cases[:SHOWN]:
        volume = load_volume(manifest, case, rule)
        decoded = network.decode_latent(network.encode_latent(volume[None].to(device)))[0].float().clamp(-1, 1).cpu()
        pairs.append(torch.cat([onto(each, case.spacing_mm, grid) for each in (volume, decoded)]))
    array = torch.stack(pairs).numpy().astype(np.float16)
    np.save(folder / "reconstructions.npy", array, allow_pickle=False)


STAGE = Stage(
    name="autoencoder",
    needs=("prepare",),
    settings=lambda pipeline: plain(pipeline.autoencoder),
    run=run,
    revision=2,
)
