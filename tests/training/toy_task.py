"""A small regression task, for tests of the loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medsynth.config.training import Training
from medsynth.seeding import torch_generator
from medsynth.training.batches import Batch, Order
from medsynth.training.loop import Task

CASES = 37
FEATURES = 6


class ToyTask(Task):
    """Fit a small network to a fixed non-linear function."""

    def __init__(self, batch_size: int, seed: int = 0, selected_by: str | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.network = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 1))
        self.selected_by = selected_by
        self.inputs = torch.randn(CASES, FEATURES, generator=torch_generator(1, "toy"))
        self.order = Order(CASES, batch_size, seed)
        self.seed = seed
        self.poisoned_batch: int | None = None
        self.exploding_from: int | None = None
        self.validations: list[float] = []

    def draw(self, number: int, rows: slice) -> Batch:
        cases = self.order.batch(number)
        jitter = torch.randn(len(cases), FEATURES, generator=torch_generator(self.seed, "jitter", number))
        inputs = (self.inputs[cases] + 0.1 * jitter)[rows]
        if number == self.poisoned_batch:
            inputs = inputs / 0
        if self.exploding_from is not None and number >= self.exploding_from:
            inputs = inputs * 100
        return {"inputs": inputs}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        error = self.network(batch["inputs"])[:, 0] - truth(batch["inputs"])
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}

    def validate(self) -> dict[str, float]:
        error = self.network(self.inputs).detach()[:, 0] - truth(self.inputs)
        self.validations.append(float(error.square().mean()))
        return {"loss": self.validations[-1]}


def truth(inputs: Tensor) -> Tensor:
    return inputs[:, 0] * 0.5 + inputs[:, 1].sin()


def settings(**changes: Any) -> Training:
    base = {
        "precision": "fp32",
        "steps": 40,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
        "ema_decay": 0.9,
        "validate_every": 10,
        "log_every": 4,
        "checkpoint_minutes": 1000.0,
    }
    return Training(**{**base, **changes})
