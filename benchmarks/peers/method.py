"""What a method of the comparison is, and the budget that it trains within."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.peers.data import Data, Request
from medsynth.config.training import Training
from medsynth.diffusion.angle import Denoise
from medsynth.diffusion.samplers import sample
from medsynth.models.conditions import encode
from medsynth.seeding import torch_generator
from medsynth.training.loop import Task, train
from medsynth.training.records import Record

ENDLESS = 10**7
"""Optimiser steps that no budget reaches: the clock ends every run, and its learning rate falls to zero with it."""

GPU_AT_ONCE = 64
"""Scans in a batch."""
GPU_TRAINING = {"batch_size": 8, "validate_every": 1000}
"""What differs from the settings for a CPU, for every method alike: a GPU takes hardly longer for larger batches, and its
steps are so short that validation would take most of the time."""


@dataclass(frozen=True)
class Run:
    """One training of one method."""

    data: Data
    folder: Path
    """Checkpoints and weights; a run that was interrupted goes on from there."""
    seed: int
    minutes: float
    """For autoencoder and denoiser: of the processor on a CPU, all threads together; of the wall on a GPU."""
    device: torch.device


@dataclass
class Trained:
    """A generator, and what its training was."""

    generate: Generate
    facts: dict[str, Any] = field(default_factory=dict)


class Generate(Protocol):
    """Scans [N, 1, X, Y, Z] in [-1, 1], on the CPU, for a request."""

    def __call__(self, request: Request) -> Tensor: ...


class Method(Protocol):
    """Trains autoencoder and denoiser within `run.minutes`."""

    def __call__(self, run: Run) -> Trained: ...


@torch.no_grad()
def draw_scans(
    data: Data,
    request: Request,
    shape: tuple[int, ...],
    denoise: Callable[[Mapping[str, Tensor]], Denoise],
    decode: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    sampler: str,
    evaluations: int,
    shift: float = 1.0,
) -> Tensor:
    """Scans [N, 1, X, Y, Z] in [-1, 1], on the CPU: all methods start from the same noise where their latents have one shape.

    One at a time on a CPU, in batches on a GPU. `denoise` makes a sampler's function for the encoded conditions of some scans;
    `decode` takes latents [B, *shape] to their scans.
    """
    conditions = encode(data.declaration, request.rows, request.masks)
    found = []
    at_once = 1 if device.type == "cpu" else GPU_AT_ONCE
    for start in range(0, len(request), at_once):
        seeds = request.seeds[start : start + at_once]
        given = {name: value[start : start + at_once].to(device) for name, value in conditions.items()}
        drawn = torch.stack([torch.randn(shape, generator=torch_generator(seed, "noise")) for seed in seeds])
        steps = [torch_generator(seed, "steps") for seed in seeds]
        z = sample(denoise(given), drawn.to(device), sampler, evaluations, steps, shift=shift)
        found.append(torch.cat([decode(latent[None]).float().clamp(-1, 1).cpu() for latent in z]))
    return torch.cat(found)


def on_device(settings: Training, device: torch.device) -> Training:
    """The settings of a training on `device`."""
    return settings if device.type == "cpu" else settings.model_copy(update=GPU_TRAINING)


def train_within(
    task: Task, settings: Training, minutes: float, folder: Path, identity: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Train by medsynth's loop for `minutes`, and say what came of it.

    On a CPU the clock counts the process's own time on all its threads, so that other work on the machine takes nothing
    from the budget. `minutes` on two cores without losses are half as many of the wall.
    """
    endless = settings.model_copy(update={"steps": ENDLESS, "max_minutes": minutes})
    now = time.process_time if device.type == "cpu" else time.monotonic
    records = list(train(task, endless, folder=folder, identity=identity, device=device, clock=now))
    return {**_facts(records), "parameters": sum(p.numel() for p in task.network.parameters())}


def _facts(records: list[Record]) -> dict[str, Any]:
    last = records[-1]
    validated: Iterator[Record] = (record for record in reversed(records) if record.validation)
    return {
        "steps": last.step,
        "minutes": round(last.seconds / 60, 2),
        "waiting": round(sum(record.waiting for record in records) / len(records), 4),
        "validation": next(validated).validation,
    }
