"""What the two training stages share: device, volumes, and following a loop's records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medsynth.cohort.grids import common_grid, with_grids
from medsynth.cohort.manifest import Manifest
from medsynth.cohort.volumes import VolumeSet, load_by_grid, load_volumes
from medsynth.config.autoencoder import Autoencoder as AutoencoderSettings
from medsynth.config.denoiser import Denoiser as DenoiserSettings
from medsynth.config.grid import Grid, find_grid
from medsynth.config.pipeline import Pipeline
from medsynth.config.training import NEUTRAL, Training
from medsynth.digests import file_sha256
from medsynth.errors import CohortError, UnreadableError, UsageError
from medsynth.imaging.intensity import IntensityRule
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.models.maisi import MaisiAutoencoder
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.stages.base import Context
from medsynth.stages.files import read_json, write_json
from medsynth.training.alarms import alarms, unanswered
from medsynth.training.records import Record

AUTOENCODERS: Mapping[str, type[VolumeAutoencoder]] = {"kl": KLAutoencoder, "maisi": MaisiAutoencoder}
CHECKPOINTS = "checkpoints"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def deciding(settings: AutoencoderSettings | DenoiserSettings) -> dict[str, Any]:
    """What of a training stage's settings decides the weights, as JSON: the rest may change, and the stage goes on, or stays
    done.
    """
    return settings.model_dump(mode="json", exclude={"latents": True, "watch": True, "training": set(NEUTRAL)})


def pick_device(wanted: str) -> torch.device:
    """The device that the settings name; `auto` takes a GPU where there is one. Raises UsageError."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device("cuda" if present["cuda"] else "cpu")
    if not present.get(wanted):
        raise UsageError(
            f"compute.device: expected one of {', '.join(name for name, here in present.items() if here)} on this machine, "
            f"found {wanted}"
        )
    return torch.device(wanted)


def prepared(context: Context) -> tuple[Manifest, IntensityRule]:
    """The manifest and the intensity rule of the prepare stage. Where there are several grids, cases know theirs."""
    folder = context.workspace.stage("prepare")
    manifest = Manifest.read(folder / "manifest.csv", context.pipeline.conditions)
    manifest = with_grids(manifest, context.pipeline.prepare.every_grid())
    return manifest, IntensityRule.from_json(read_json(folder / "intensity.json"))


def trained_grids(context: Context) -> tuple[Grid, ...]:
    """The grids that the training split has scans on: those that the generator knows."""
    manifest, _ = prepared(context)
    training = manifest.split("train").cases
    every = context.pipeline.prepare.every_grid()
    return tuple(grid for grid in every if any(grid.fits(case.shape, case.spacing_mm) for case in training))


def load_split(context: Context, split: str) -> tuple[VolumeSet, ...]:
    """The volumes of one split, a set for each grid that training knows. Raises CohortError where there are none."""
    manifest, rule = prepared(context)
    grids = trained_grids(context)
    cases = manifest.split(split).cases
    known = tuple(case for case in cases if find_grid(grids, case.shape, case.spacing_mm) is not None)
    if not known:
        raise CohortError(
            f"expected cases of the split {split!r} on a grid with training cases, found none; add patients, or leave out "
            "that grid"
        )
    return load_by_grid(replace(manifest, cases=known), rule, grids, context.progress)


def load_together(context: Context, manifest: Manifest) -> VolumeSet:
    """All volumes of a manifest on the common grid, in its order."""
    _, rule = prepared(context)
    grid = common_grid(context.pipeline.prepare.every_grid())
    return load_volumes(manifest, rule, context.progress, grid=grid)


def load_autoencoder(context: Context) -> VolumeAutoencoder:
    """The network of the autoencoder stage. Raises UnreadableError where its weights are not those that were trained."""
    folder = context.workspace.stage("autoencoder")
    weights = folder / "model" / WEIGHTS
    expected = read_json(folder / "stage.json")["summary"].get("weights")
    if not weights.is_file() or (expected is not None and file_sha256(weights) != expected):
        raise UnreadableError(
            "the autoencoder's weights are missing or were changed after training; run `medsynth autoencoder` with --force"
        )
    kind = AUTOENCODERS[context.pipeline.autoencoder.network.kind]
    network: VolumeAutoencoder = kind.from_pretrained(folder / "model", local_files_only=True)
    return network


def follow(
    context: Context,
    label: str,
    settings: Training,
    records: Iterator[Record],
    folder: Path,
    selected_by: str | None,
) -> list[dict[str, Any]]:
    """Run a training loop to its end: progress bar, tracker, `history.json`. Returns the history.

    A loop that was interrupted tells its earlier records again, so the history is whole. The line of the weights that the
    loop keeps is marked: the first whose validation figure `selected_by` is the lowest, or the newest.
    """
    history: list[dict[str, Any]] = []
    told: list[Record] = []
    standing: dict[str, str] = {}
    with context.progress.task(label, settings.steps) as advance:
        before = 0
        for record in records:
            advance(record.step - before)
            before = record.step
            told.append(record)
            earlier, standing = standing, alarms(told)
            for kind in standing.keys() - earlier.keys():
                context.say(f"warning: {standing[kind]}")
                context.workspace.event("warning", about=kind, told=standing[kind])
            if record.watch and not any(line.get("watch") for line in history):
                for question in unanswered(record):
                    context.say(f"{question} cannot be told during training: too few patients for a warning to be sure")
            history.append({**_line(record), "warnings": list(standing.values())})
            context.tracker.metrics(_numbers(record), step=record.step)
        advance(max(settings.steps - before, 0))
    checks = [line for line in history if line["validation"]]
    if checks:
        kept = min(checks, key=lambda check: check["validation"][selected_by]) if selected_by else checks[-1]
        kept["kept"] = True
    write_json(folder / "history.json", history)
    context.say(f"{label}: {100 * waiting_share(history):.1f} % of the time went by waiting for data")
    return history


def _line(record: Record) -> dict[str, Any]:
    return {
        "step": record.step,
        "seconds": round(record.seconds, 3),
        "learning_rate": record.learning_rate,
        "losses": record.losses,
        "validation": record.validation,
        "waiting": round(record.waiting, 4),
        **({"watch": record.watch, "unanswered": unanswered(record)} if record.watch else {}),
    }


def _numbers(record: Record) -> dict[str, float]:
    validation = {f"validation/{name}": value for name, value in (record.validation or {}).items()}
    watch = {f"watch/{name}": value for name, value in (record.watch or {}).items()}
    losses = {f"train/{name}": value for name, value in record.losses.items()}
    return {**losses, **validation, **watch, "learning_rate": record.learning_rate, "waiting": record.waiting}


def kept_validation(history: list[dict[str, Any]]) -> dict[str, float]:
    """Step and validation figures of the weights that were kept; {} where none were validated."""
    return next(({"kept_step": line["step"], **line["validation"]} for line in history if line.get("kept")), {})


def waiting_share(history: list[dict[str, Any]]) -> float:
    """Share of a whole training run that was spent waiting for data."""
    ends = [0.0, *(line["seconds"] for line in history)]
    waited = sum(line["waiting"] * (end - start) for line, start, end in zip(history, ends, ends[1:], strict=False))
    return waited / ends[-1] if ends[-1] > 0 else 0.0


def network_size(network: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def reproducible(pipeline: Pipeline) -> None:
    """Threads and deterministic kernels as the settings say."""
    if pipeline.compute.threads:
        torch.set_num_threads(pipeline.compute.threads)
    torch.backends.cudnn.deterministic = pipeline.compute.deterministic
    torch.backends.cudnn.benchmark = not pipeline.compute.deterministic
