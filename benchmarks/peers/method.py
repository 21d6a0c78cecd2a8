"""What a method of the comparison is, and the budget that it trains within."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from benchmarks.peers.data import Data, Request
from medsynth.config.training import Training
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


def train_within(
    task: Task, settings: Training, minutes: float, folder: Path, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Train by medsynth's loop until the process has used `minutes`, and say what came of it.

    The clock counts the process's own time on all its threads, so that other work on the machine takes nothing from
    the budget. `minutes` on two cores without losses are half as many of the wall.
    """
    import torch

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
