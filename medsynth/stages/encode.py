"""Encode the training and validation splits once, training scans mirrored too where asked for; the test split never."""

from __future__ import annotations

from pathlib import Path

from medsynth.config.base import plain
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.training import load_autoencoder, load_split, pick_device, reproducible
from medsynth.training.latents import LatentStatistics, encode_latents


def run(context: Context, folder: Path) -> StageResult:
    """Write the latents of both splits and the training split's shift and scale per channel."""
    reproducible(context.pipeline)
    device = pick_device(context.pipeline.compute.device)
    network = load_autoencoder(context)
    network.to(device).eval()
    variants, tell = context.pipeline.denoiser.augment.variants(), context.progress
    train = encode_latents(network, load_split(context, "train"), folder / "train", device, tell, variants=variants)
    statistics = LatentStatistics.of(train)
    statistics.write(folder / "statistics.json")
    encode_latents(network, load_split(context, "validation"), folder / "validation", device, tell)
    return StageResult({"latents": len(train), "channels": int(train.latents.shape[1])})


STAGE = Stage(
    name="encode",
    needs=("prepare", "autoencoder"),
    settings=lambda pipeline: plain(pipeline.denoiser.augment),
    run=run,
    revision=2,
)
