"""Train the denoiser on latents and assemble the model folder."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsynth import __version__
from medsynth.config.base import plain
from medsynth.config.cohort import CategoryCondition, NumberCondition
from medsynth.config.grid import GRID
from medsynth.config.pipeline import Pipeline
from medsynth.diffusion.geometry import geometry_json
from medsynth.diffusion.model_folder import save_model
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.diffusion.pipeline import DenoisingNetwork, LatentVolumePipeline
from medsynth.evaluation.structure import multiscale_ssim, shrink
from medsynth.models.conditions import Declaration, declare
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.seeding import derive
from medsynth.stages.base import Context, Stage, StageResult
from medsynth.stages.files import read_json
from medsynth.stages.training import (
    CHECKPOINTS,
    deciding,
    follow,
    kept_validation,
    load_autoencoder,
    network_size,
    pick_device,
    prepared,
    reproducible,
    trained_grids,
    waiting_share,
)
from medsynth.training.checkpoint import discard_checkpoints
from medsynth.training.denoiser import selected_by, train_denoiser
from medsynth.training.latents import LatentStatistics, open_stores
from medsynth.training.watch import Eyes

QUANTILES = 11
WATCHED_AXIS = 32
"""Voxels per axis of the samples that are looked at during training."""


def run(context: Context, folder: Path) -> StageResult:
    """Train, then save the whole generator as one model folder."""
    pipeline, settings = context.pipeline, context.pipeline.denoiser
    reproducible(pipeline)
    device = pick_device(pipeline.compute.device)
    latents = context.workspace.stage("encode")
    train, validation = open_stores(latents / "train"), open_stores(latents / "validation")
    declaration = declare(pipeline.conditions, trained_grids(context))
    network = new_network(pipeline, declaration, int(train[0].latents.shape[1]))
    denoiser = Denoiser(network, Objective.from_settings(settings.objective))
    statistics = LatentStatistics.read(latents / "statistics.json")
    records = train_denoiser(
        denoiser,
        train,
        validation,
        settings,
        statistics=statistics,
        folder=folder / CHECKPOINTS,
        seed=pipeline.seed,
        device=device,
        eyes=_eyes(load_autoencoder(context), statistics, pipeline.compute.tile_voxels, device),
    )
    history = follow(context, "training the denoiser", settings.training, records, folder, selected_by(settings))
    shutil.rmtree(folder / "model", ignore_errors=True)
    save_model(_assemble(context, network, declaration, statistics), folder / "model", provenance(context))
    discard_checkpoints(folder / CHECKPOINTS)
    if settings.watch.every and not any("watch" in line for line in history):
        context.say(
            "no samples were looked at during training: that takes two validation patients on a grid with training scans"
        )
    return StageResult(
        {"parameters": network_size(network), "waiting": waiting_share(history), **kept_validation(history)}
    )


def _eyes(autoencoder: VolumeAutoencoder, statistics: LatentStatistics, tile_voxels: int, device: torch.device) -> Eyes:
    """Samples as the finished model would decode them, averaged down: diversity shows in coarse structure."""
    autoencoder.set_latent_statistics(statistics.shift, statistics.scale)
    autoencoder.to(device).eval()

    def decode(latents: torch.Tensor) -> torch.Tensor:
        volumes = [autoencoder.decode_tiled(latent[None].to(device), tile_voxels).float() for latent in latents]
        return torch.cat([shrink(volume.clamp(-1, 1), WATCHED_AXIS).cpu() for volume in volumes])

    return Eyes(decode, multiscale_ssim)


NETWORKS: Mapping[str, type[DenoisingNetwork]] = {"unet": LatentUNet, "transformer": LatentTransformer}


def new_network(pipeline: Pipeline, declaration: Declaration, latent_channels: int) -> DenoisingNetwork:
    """A freshly initialised network; global random state is left as it was."""
    settings = plain(pipeline.denoiser.network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(pipeline.seed, "denoiser", "weights"))
        return NETWORKS[settings.pop("kind")](
            latent_channels=latent_channels,
            downsampling=pipeline.autoencoder.network.downsampling,
            conditions=declaration,
            turned=pipeline.denoiser.augment.turned_copies > 0,
            **settings,
        )


def _assemble(
    context: Context, network: DenoisingNetwork, declaration: Declaration, statistics: LatentStatistics
) -> LatentVolumePipeline:
    pipeline = context.pipeline
    manifest, rule = prepared(context)
    autoencoder = load_autoencoder(context)
    autoencoder.set_latent_statistics(statistics.shift, statistics.scale)
    training = manifest.split("train").cases
    return LatentVolumePipeline(
        autoencoder=autoencoder.cpu().eval(),
        denoiser=network.cpu().eval(),
        objective=Objective.from_settings(pipeline.denoiser.objective).to_json(),
        conditions=declaration,
        intensity=rule.to_json(),
        geometry=geometry_json(trained_grids(context), modality=training[0].modality, unit=rule.unit),
    )


def condition_profile(pipeline: Pipeline, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the training split's conditions are distributed, per value of the balanced category.

    Shares and quantiles instead of rows: a model can then draw plausible conditions without carrying any patient's.
    """
    by = pipeline.category()
    groups = {"": list(rows)}
    if by is not None:
        groups = {str(v): [r for r in rows if r.get(by) == v] for v in dict.fromkeys(row.get(by) for row in rows)}
    profile = {}
    for value, members in groups.items():
        entry: dict[str, Any] = {"share": len(members) / max(len(rows), 1)}
        for name, condition in pipeline.conditions.items():
            found = [row[name] for row in members if row.get(name) is not None]
            if not condition.steer or name == by or not found:
                continue
            if isinstance(condition, CategoryCondition):
                entry[name] = {key: count / len(found) for key, count in sorted(Counter(map(str, found)).items())}
            elif isinstance(condition, NumberCondition):
                levels = np.quantile(np.asarray(found, dtype=float), np.linspace(0.05, 0.95, QUANTILES))
                entry[name] = [_rounded(level) for level in levels]
        grids = Counter(str(row[GRID]) for row in members if GRID in row and GRID not in pipeline.conditions)
        if grids:
            entry[GRID] = {grid: count / len(members) for grid, count in sorted(grids.items())}
        profile[value] = entry
    return {"by": by, "values": profile}


def _rounded(value: float) -> float:
    """Three significant digits: what a plausible draw needs."""
    return float(f"{value:.3g}") if math.isfinite(value) else 0.0


def _autoencoder_settings(context: Context) -> dict[str, Any]:
    """The autoencoder's settings, of given weights their digest instead of their place."""
    settings = plain(context.pipeline.autoencoder)
    if "weights" in settings["network"]:
        record = read_json(context.workspace.stage("autoencoder") / "stage.json")
        settings["network"]["weights"] = record["summary"]["given_weights"]
    return settings


def provenance(context: Context) -> dict[str, Any]:
    """Where a model comes from, without a path or a name of the machine."""
    pipeline, workspace = context.pipeline, context.workspace
    manifest, _ = prepared(context)
    training = manifest.split("train").cases
    return {
        "medsynth": __version__,
        "torch": str(torch.__version__),
        "pipeline": pipeline.name,
        "seed": pipeline.seed,
        "training_cases": len(training),
        "training_patients": len({case.patient for case in training}),
        "data_digest": manifest.digest(),
        "stages": {name: workspace.digest_of(name) for name in ("prepare", "autoencoder", "encode")},
        "settings": {"autoencoder": _autoencoder_settings(context), "denoiser": plain(pipeline.denoiser)},
        "left_out": read_json(workspace.stage("prepare") / "summary.json")["left_out"],
        "profile": condition_profile(pipeline, [case.conditions for case in training]),
        "sampling": plain(pipeline.generate.sampling),
    }


STAGE = Stage(
    name="denoiser",
    needs=("prepare", "autoencoder", "encode"),
    settings=lambda pipeline: [deciding(pipeline.denoiser), declare(pipeline.conditions)],
    run=run,
    room=(
        "expected a training step that fits the memory, found less; lower "
        "denoiser.training.batch_size, and raise denoiser.training.accumulate by as much; "
        "or set denoiser.network.checkpointing: true, or denoiser.latents: disk"
    ),
    revision=3,
)
