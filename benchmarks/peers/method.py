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


@dataclass(frozen=True)
class Run:
    """One training of one method."""

    data: Data
    folder: Path
    """Checkpoints and weights; a run that was interrupted goes on from there."""
    seed: int
    minutes: float
    """Processor minutes, of all threads together, for autoencoder and denoiser."""


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
    sampler: str,
    evaluations: int,
    shift: float = 1.0,
) -> Tensor:
    """Scans [N, 1, X, Y, Z] in [-1, 1], one at a time: all methods start from the same noise where their latents have one shape.

    `denoise` makes a sampler's function for a scan's encoded conditions; `decode` takes a latent [1, *shape] to its scan.
    """
    conditions = encode(data.declaration, request.rows, request.masks)
    found = []
    for i, seed in enumerate(request.seeds):
        given = {name: value[i : i + 1] for name, value in conditions.items()}
        start = torch.randn(shape, generator=torch_generator(seed, "noise"))[None]
        steps = [torch_generator(seed, "steps")]
        z = sample(denoise(given), start, sampler, evaluations, steps, shift=shift)
        found.append(decode(z).float().clamp(-1, 1))
    return torch.cat(found)


def train_within(
    task: Task, settings: Training, minutes: float, folder: Path, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Train by medsynth's loop until the process has used `minutes`, and say what came of it.

    The clock counts the process's own time on all its threads, so that other work on the machine takes nothing from
    the budget. `minutes` on two cores without losses are half as many of the wall.
    """
    endless = settings.model_copy(update={"steps": ENDLESS, "max_minutes": minutes})
    records = list(
        train(task, endless, folder=folder, identity=identity, device=torch.device("cpu"), clock=time.process_time)
    )
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
