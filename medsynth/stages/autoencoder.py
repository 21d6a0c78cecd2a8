"""Train the autoencoder on the training split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

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
    _save_reconstructions(network, validation.volumes[:SHOWN], device, folder)
    discard_checkpoints(folder / CHECKPOINTS)
    weights = file_sha256(folder / "model" / WEIGHTS)
    return StageResult({"parameters": network_size(network), "weights": weights, **last_validation(history)})


def new_autoencoder(seed: int, **config: int) -> KLAutoencoder:
    """A freshly initialised network; global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder", "weights"))
        return KLAutoencoder(**config)


@torch.no_grad()
def _save_reconstructions(network: KLAutoencoder, volumes: torch.Tensor, device: torch.device, folder: Path) -> None:
    decoded = network.decode_latent(network.encode_latent(volumes.to(device))).float().clamp(-1, 1).cpu()
    pair = torch.stack([volumes[:, 0], decoded[:, 0]], dim=1)  # [N, 2, X, Y, Z]
    np.save(folder / "reconstructions.npy", pair.numpy().astype(np.float16), allow_pickle=False)


STAGE = Stage(
    name="autoencoder",
    needs=("prepare",),
    settings=lambda pipeline: plain(pipeline.autoencoder),
    run=run,
    revision=2,
)
