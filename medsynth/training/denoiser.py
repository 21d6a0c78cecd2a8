"""Training the denoiser on latents: one objective, conditions withheld at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsynth.config.base import plain
from medsynth.config.denoiser import Denoiser as DenoiserSettings
from medsynth.diffusion.bound import HIGHEST, LOWEST, bound_angles, variational_bound
from medsynth.diffusion.objective import Denoiser
from medsynth.errors import CohortError, DataError
from medsynth.models.conditions import Declaration, conditions_of, mask_name, named, random_drop
from medsynth.seeding import derive, torch_generator
from medsynth.training.batches import Batch, GridOrder, noise, per_grid
from medsynth.training.devices import at_once_without_gradients, processes
from medsynth.training.latents import LatentStatistics, LatentStore
from medsynth.training.loop import Task, train
from medsynth.training.pool import Pool, even_angles, place_for, spread
from medsynth.training.records import Record
from medsynth.training.watch import Eyes, Watcher

VALIDATION_DRAWS = 128
"""Noise levels that the validation loss looks at, at least; each case gets its even share."""
BINS, DRAWS_PER_BIN = 5, 16
"""Noise levels whose loss is told apart: even steps of the angle, and the draws in each."""
BOUND_DRAWS = 64


class DenoiserTask(Task):
    """The denoiser's loss on normalised latents, from a store or from one per grid: a batch is of one grid.

    Angles and withheld conditions are drawn for the whole batch, noise row by row, all from (seed, batch number): the
    processes of a distributed run each take their rows of what a single one would have drawn.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        train: LatentStore | Sequence[LatentStore],
        validation: LatentStore | Sequence[LatentStore],
        statistics: LatentStatistics,
        settings: DenoiserSettings,
        seed: int,
        eyes: Eyes | None = None,
    ) -> None:
        super().__init__()
        self.network = denoiser.network
        self.denoiser = denoiser
        self.declaration = declaration_of(denoiser)
        self.pool = Pool(train, self.declaration, statistics)
        self.validation = Pool(validation, self.declaration, statistics)
        self.place = settings.latents
        self.selected_by = selected_by(settings)
        self.batch_size = settings.training.batch_size
        self.seed = derive(seed, "denoiser")
        self.order = GridOrder([len(pool) for pool in self.pool.grids], self.batch_size, self.seed)
        self.watcher: Watcher | None = None
        if eyes is not None:
            self.watcher = Watcher(self.pool, self.validation, settings.watch, eyes, self.seed)
            self.look_every = settings.watch.every if self.watcher.count > 1 else 0

    def settle(self, device: torch.device) -> None:
        """Bring the latents to where they are wanted."""
        pools = (self.pool, self.validation)
        place = place_for(sum(pool.nbytes for pool in pools), self.place, device, processes())
        for pool in pools:
            if place != "disk":
                pool.hold(device if place == "device" else torch.device("cpu"))

    def draw(self, number: int, rows: slice) -> Batch:
        """Clean latents, noise, angles and conditions."""
        grid, cases = self.order.batch(number)
        pool = self.pool.grids[grid]
        generator = torch_generator(self.seed, "angles", number)
        angles = self.denoiser.objective.sample_angles(self.batch_size, generator, pool.voxels)
        latents, conditions = pool.take(cases)
        conditions = random_drop(self.declaration, conditions, torch_generator(self.seed, "withheld", number))
        return {
            "latents": latents[rows],
            "noise": noise(pool.shape, self.seed, "noise", number, rows),
            "angles": angles[rows],
            **named({name: value[rows] for name, value in conditions.items()}),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The objective's loss, mean over the batch."""
        return {"loss": self._losses(batch).mean()}

    def validate(self) -> dict[str, float]:
        """Figures on validation latents with every condition given; noise and angles are the same every time.

        `loss` at the angles of training, `loss at ...` in even steps of the angle, and `bits`, the variational bound in
        bits per dimension of the normalised latent.
        """
        losses = self.losses(self.validation, torch.arange(len(self.validation)))
        return {"loss": float(losses.mean()), **self._loss_per_level(), "bits": self._bits()}

    def look(self) -> dict[str, float]:
        """Figures of a look at some samples, see `training.watch`."""
        if self.watcher is None:
            return {}
        device = next(self.network.parameters()).device
        samples = self.watcher.samples(self.denoiser, device, at_once_without_gradients(self.batch_size, device))
        known, held_out = self.watcher.pairs
        return self.watcher.look(samples, self.losses(self.pool, known), self.losses(self.validation, held_out))

    def losses(self, pool: Pool, cases: Tensor) -> Tensor:
        """The loss of each of these cases, [n] on the CPU, with every condition given: the mean over draws of angle and
        noise, which are the same for another pool where its cases lie on the same grids in the same order.
        """
        drawn = cases.repeat(math.ceil(VALIDATION_DRAWS / len(cases)))
        angles = torch.empty(len(drawn))
        for number, (_, part, places, _) in enumerate(sorted(pool.by_grid(drawn), key=lambda each: int(each[2][0]))):
            seed = derive(self.seed, "grid", number) if number else self.seed
            generator = torch_generator(seed, "validation angles")
            angles[places] = self.denoiser.objective.sample_angles(len(places), generator, part.voxels)
        return self._over(pool, drawn, angles, "validation noise", self._losses).view(-1, len(cases)).mean(0)

    def _loss_per_level(self) -> dict[str, float]:
        objective, generator = self.denoiser.objective, torch_generator(self.seed, "level angles")
        lowest, highest = objective.lowest, objective.highest
        angles = even_angles(DRAWS_PER_BIN, BINS, lowest, highest, generator)
        # The same cases at every level, so that levels differ by their noise alone.
        cases = spread(DRAWS_PER_BIN, len(self.validation)).repeat(BINS)
        losses = self._over(self.validation, cases, angles, "level noise", self._losses).view(BINS, DRAWS_PER_BIN)
        edges = [math.degrees(lowest + (highest - lowest) * i / BINS) for i in range(BINS + 1)]
        return {
            f"loss at {edges[i]:.0f}-{edges[i + 1]:.0f} degrees": float(loss) for i, loss in enumerate(losses.mean(1))
        }

    def _bits(self) -> float:
        objective, generator = self.denoiser.objective, torch_generator(self.seed, "bound angles")
        ends = max(objective.lowest, LOWEST), min(objective.highest, HIGHEST)

        def bits(batch: Batch) -> Tensor:
            conditions = conditions_of(batch)
            return variational_bound(
                lambda x, angle: self.denoiser.clean(x, angle, conditions),
                batch["latents"],
                batch["noise"],
                batch["angles"],
                *ends,
            )

        cases, angles = spread(BOUND_DRAWS, len(self.validation)), bound_angles(BOUND_DRAWS, *ends, generator)
        return float(self._over(self.validation, cases, angles, "bound noise", bits).mean())

    @torch.no_grad()
    def _over(self, pool: Pool, cases: Tensor, angles: Tensor, name: str, measure: Callable[[Batch], Tensor]) -> Tensor:
        """`measure` of every draw, [n] on the CPU, in batches; the noise named `name` is the same every time."""
        device = next(self.network.parameters()).device
        at_once = at_once_without_gradients(self.batch_size, device)
        found = torch.empty(len(cases))
        for _, part, places, inside in pool.by_grid(cases):
            for start in range(0, len(places), at_once):
                rows = places[start : start + at_once]
                latents, conditions = part.take(inside[start : start + at_once])
                batch = {
                    "latents": latents,
                    "noise": noise(part.shape, self.seed, name, 0, rows.tolist()),
                    "angles": angles[rows],
                    **named(conditions),
                }
                found[rows] = measure({name: value.to(device) for name, value in batch.items()}).cpu()
        return found

    def _losses(self, batch: Batch) -> Tensor:
        return self.denoiser.loss(batch["latents"], conditions_of(batch), batch["angles"], batch["noise"])


def selected_by(settings: DenoiserSettings) -> str | None:
    """As `Task.selected_by`."""
    return "loss" if settings.keep == "best" else None


def declaration_of(denoiser: Denoiser) -> Declaration:
    """The conditions that a denoiser's network was made for."""
    config: Any = denoiser.network.config
    return dict(config["conditions"] or {})


def train_denoiser(
    denoiser: Denoiser,
    train_stores: LatentStore | Sequence[LatentStore],
    validation: LatentStore | Sequence[LatentStore],
    settings: DenoiserSettings,
    *,
    statistics: LatentStatistics,
    folder: Path,
    seed: int,
    device: torch.device,
    eyes: Eyes | None = None,
) -> Iterator[Record]:
    """Train `denoiser.network` on the training split's latents; see `loop.train` for checkpoints, records and errors.

    A split comes as a store, or as one per grid; `statistics` are those of the training split; without `eyes` no samples
    are looked at. When the iterator ends, the network holds the averaged weights that `settings.keep` names. Raises
    CohortError where a split is empty, DataError where masks are declared and the latents have none.
    """
    parts = {"train": per_grid(train_stores), "validation": per_grid(validation)}
    declared = mask_name(declaration_of(denoiser))
    for split, name in (("train", "training"), ("validation", "validation")):
        if not sum(len(store) for store in parts[split]):
            raise CohortError(f"the denoiser: expected latents in the {name} split, found none; add patients to it")
        if declared is not None and any(store.masks is None for store in parts[split]):
            raise DataError(
                f"condition {declared}: expected a mask with every case of the {name} split, found none; "
                "name the masks in the cohort's table, or set `steer: false`"
            )
    task = DenoiserTask(denoiser, parts["train"], parts["validation"], statistics, settings, seed, eyes)
    identity = {
        "kind": "denoiser",
        "seed": seed,
        "network": plain(settings.network),
        "objective": denoiser.objective.to_json(),
        "keep": settings.keep,
        "conditions": task.declaration,
        "data": {split: " ".join(store.digest for store in stores) for split, stores in parts.items()},
        "statistics": [statistics.shift.tolist(), statistics.scale.tolist()],
    }
    yield from train(task, settings.training, folder=folder, identity=identity, device=device)
