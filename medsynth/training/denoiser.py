"""Training the denoiser on latents: one objective, conditions withheld at random."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsynth.config.base import plain
from medsynth.config.denoiser import Denoiser as DenoiserSettings
from medsynth.diffusion.objective import Denoiser
from medsynth.errors import CohortError, DataError
from medsynth.models.conditions import Declaration, encode, mask_name, random_drop, steering_values
from medsynth.seeding import derive, torch_generator
from medsynth.training.batches import Batch, Order, noise
from medsynth.training.latents import LatentStatistics, LatentStore
from medsynth.training.loop import Task, train
from medsynth.training.records import Record

CONDITION = "condition "
"""Goes before a condition's name in a batch."""
VALIDATION_DRAWS = 128
"""Noise levels that a validation looks at, at least; each case gets its even share."""


class DenoiserTask(Task):
    """The denoiser's loss on normalised latents.

    Angles and withheld conditions are drawn for the whole batch, noise row by row, all from (seed, batch number): the
    processes of a distributed run each take their rows of what a single one would have drawn.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        train_store: LatentStore,
        validation: LatentStore,
        statistics: LatentStatistics,
        settings: DenoiserSettings,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = denoiser.network
        self.denoiser = denoiser
        self.declaration = declaration_of(denoiser)
        self.store = train_store
        self.validation = validation
        self.statistics = statistics
        self.batch_size = settings.training.batch_size
        self.seed = derive(seed, "denoiser")
        self.order = Order(len(train_store), self.batch_size, self.seed)
        self.latent_shape = train_store.latents.shape[1:]
        self.latent_voxels = math.prod(self.latent_shape[1:])

    def draw(self, number: int, rows: slice) -> Batch:
        """Clean latents, noise, angles and conditions."""
        cases = self.order.batch(number)
        generator = torch_generator(self.seed, "angles", number)
        angles = self.denoiser.objective.sample_angles(self.batch_size, generator, self.latent_voxels)
        conditions = random_drop(
            self.declaration, self._conditions(self.store, cases), torch_generator(self.seed, "withheld", number)
        )
        latents, _ = self.store.take(cases[rows])
        return {
            "latents": self.statistics.normalise(latents),
            "noise": noise(self.latent_shape, self.seed, "noise", number, rows),
            "angles": angles[rows],
            **{CONDITION + name: value[rows] for name, value in conditions.items()},
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's loss, mean over the batch."""
        return {"loss": self._losses(batch).mean()}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on validation latents with every condition given; noise and angles are the same every time."""
        device = next(self.network.parameters()).device
        count = len(self.validation)
        repeats = math.ceil(VALIDATION_DRAWS / count)
        generator = torch_generator(self.seed, "validation angles")
        angles = self.denoiser.objective.sample_angles(repeats * count, generator, self.latent_voxels)
        total = 0.0
        for start in range(0, repeats * count, self.batch_size):
            rows = slice(start, min(start + self.batch_size, repeats * count))
            cases = torch.arange(rows.start, rows.stop) % count
            latents, _ = self.validation.take(cases)
            conditions = self._conditions(self.validation, cases)
            batch = {
                "latents": self.statistics.normalise(latents),
                "noise": noise(self.latent_shape, self.seed, "validation noise", 0, rows),
                "angles": angles[rows],
                **{CONDITION + name: value for name, value in conditions.items()},
            }
            total += float(self._losses({name: value.to(device) for name, value in batch.items()}).sum())
        return {"loss": total / (repeats * count)}

    def _conditions(self, store: LatentStore, cases: Tensor) -> dict[str, Tensor]:
        rows = [steering_values(self.declaration, store.rows[case]) for case in cases.tolist()]
        masks = None
        if mask_name(self.declaration) is not None and store.masks is not None:
            masks = torch.from_numpy(store.masks[cases.numpy()])
        return encode(self.declaration, rows, masks)

    def _losses(self, batch: Batch) -> Tensor:
        conditions = {name.removeprefix(CONDITION): v for name, v in batch.items() if name.startswith(CONDITION)}
        return self.denoiser.loss(batch["latents"], conditions, batch["angles"], batch["noise"])


def declaration_of(denoiser: Denoiser) -> Declaration:
    """The conditions that a denoiser's network was made for."""
    config: Any = denoiser.network.config
    return dict(config["conditions"] or {})


def train_denoiser(
    denoiser: Denoiser,
    train_store: LatentStore,
    validation: LatentStore,
    settings: DenoiserSettings,
    *,
    statistics: LatentStatistics,
    folder: Path,
    seed: int,
    device: torch.device,
) -> Iterator[Record]:
    """Train `denoiser.network` on the training split's latents; see `loop.train` for checkpoints, records and errors.

    `statistics` are those of the training split. When the iterator ends, the network holds the averaged weights of the
    last step: the validation loss says when a denoiser starts to memorise, but hardly how good its samples are. Raises
    CohortError where a split is empty, DataError where masks are declared and the latents have none.
    """
    for name, store in (("training", train_store), ("validation", validation)):
        if not len(store):
            raise CohortError(f"the denoiser: expected latents in the {name} split, found none; add patients to it")
        declared = mask_name(declaration_of(denoiser))
        if declared is not None and store.masks is None:
            raise DataError(
                f"condition {declared}: expected a mask with every case of the {name} split, found none; "
                "name the masks in the cohort's table, or set `steer: false`"
            )
    task = DenoiserTask(denoiser, train_store, validation, statistics, settings, seed)
    identity = {
        "kind": "denoiser",
        "seed": seed,
        "network": plain(settings.network),
        "objective": denoiser.objective.to_json(),
        "conditions": task.declaration,
        "data": {"train": train_store.digest, "validation": validation.digest},
        "statistics": [statistics.shift.tolist(), statistics.scale.tolist()],
    }
    yield from train(task, settings.training, folder=folder, identity=identity, device=device)
