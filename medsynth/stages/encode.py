"""Encode the training and validation splits once; the test split never."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from medsynth.cohort.volumes import VolumeSet
from medsynth.config.base import plain
from medsynth.config.grid import Grid
from medsynth.evaluation.statistics import RESAMPLING
from medsynth.evaluation.symmetry import FEWEST, Floats, sided_features, told_apart
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.training import load_autoencoder, load_split, pick_device, reproducible
from medsynth.training.latents import LatentStatistics, encode_latents, open_stores
from medsynth.training.pool import spread
from medsynth.training.variants import AS_SCANNED, mirrored, variants_of

JUDGED = 512
"""Scans that are held against their mirror images, at most."""
ANOTHER_KIND = 0.75
"""Halfway from chance to certainty: from here on mirrored scans are warned of."""


def run(context: Context, folder: Path) -> StageResult:
    """Write the latents of both splits and the training split's shift and scale per channel."""
    pipeline = context.pipeline
    reproducible(pipeline)
    device = pick_device(pipeline.compute.device)
    network = load_autoencoder(context)
    network.to(device).eval()
    several = len(pipeline.prepare.every_grid()) > 1
    told: dict[str, float] = {}
    for split, variants in (("train", variants_of(pipeline.denoiser.augment)), ("validation", AS_SCANNED)):
        parts = load_split(context, split)
        if split == "train":
            told = _judge_mirrors(context, parts, device)
        for part in parts:
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
                seed=pipeline.seed,
                tile_voxels=pipeline.compute.tile_voxels,
            )
    train = open_stores(folder / "train")
    LatentStatistics.of(train).write(folder / "statistics.json")
    return StageResult({"latents": sum(map(len, train)), "channels": int(train[0].latents.shape[1]), **told})


def _judge_mirrors(context: Context, parts: Sequence[VolumeSet], device: torch.device) -> dict[str, float]:
    """For every axis to mirror along: say how well training scans are told from their mirror images, and return it."""
    axes = sorted(set(context.pipeline.denoiser.augment.mirror))
    if not axes:
        return {}
    count = sum(map(len, parts))
    patients: list[str] = []
    differences: dict[str, list[Floats]] = {axis: [] for axis in axes}
    with context.progress.task("comparing with mirror images", (1 + len(axes)) * min(JUDGED, count)) as advance:
        for part in parts:
            judged = spread(max(1, JUDGED * len(part) // max(JUDGED, count)), len(part)).tolist()
            patients += [part.cases[case].patient for case in judged]
            volumes = part.volumes[judged]
            own = sided_features(volumes, device, advance)
            for axis in axes:
                differences[axis].append(own - sided_features(mirrored(volumes, [axis]), device, advance))
    found = {}
    for axis in axes:
        name = f"denoiser.augment.mirror: {axis}"
        if len(set(patients)) < FEWEST:
            context.say(
                f"{name}: whether mirrored scans are like these cannot be told from {len(set(patients))} patients"
            )
            continue
        share = told_apart(np.concatenate(differences[axis]), patients, RESAMPLING, context.pipeline.seed)
        found[f"told_from_mirror_{axis}"] = share.value
        sentence = (
            f"{name}: a scan is told from its mirror image {share.value:.0%} of the time "
            f"[{share.low:.0%}, {share.high:.0%}]; 50% is chance"
        )
        if share.value >= ANOTHER_KIND:
            sentence += (
                f". Mirrored, these scans are of another kind, and the generator will make such: leave {axis} out"
            )
        context.say(sentence)
    return found


STAGE = Stage(
    name="encode",
    needs=("prepare", "autoencoder"),
    settings=lambda pipeline: plain(pipeline.denoiser.augment),
    run=run,
    revision=2,
)
