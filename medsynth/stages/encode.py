"""Encode the training and validation splits once; the test split never."""

from __future__ import annotations

from pathlib import Path

from medsynth.config.base import plain
from medsynth.config.grid import Grid
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.training import load_autoencoder, load_split, pick_device, reproducible
from medsynth.training.latents import LatentStatistics, encode_latents, open_stores


def run(context: Context, folder: Path) -> StageResult:
    """Write the latents of both splits and the training split's shift and scale per channel."""
    pipeline = context.pipeline
    reproducible(pipeline)
    device = pick_device(pipeline.compute.device)
    network = load_autoencoder(context)
    network.to(device).eval()
    several = len(pipeline.prepare.every_grid()) > 1
    for split, variants in (("train", pipeline.denoiser.augment.variants()), ("validation", [()])):
        for part in load_split(context, split):
            place = folder / split
            if several:  # a folder for each grid, by its name
                place /= str(Grid(box=part.cases[0].shape, spacing_mm=part.cases[0].spacing_mm))
            encode_latents(
                network,
                part,
                place,
                device,
                context.progress,
                variants=variants,
                tile_voxels=pipeline.compute.tile_voxels,
            )
    train = open_stores(folder / "train")
    LatentStatistics.of(train).write(folder / "statistics.json")
    return StageResult({"latents": sum(map(len, train)), "channels": int(train[0].latents.shape[1])})


STAGE = Stage(
    name="encode",
    needs=("prepare", "autoencoder"),
    settings=lambda pipeline: plain(pipeline.denoiser.augment),
    run=run,
    revision=2,
)
