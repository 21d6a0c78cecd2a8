"""A look at a denoiser while it trains: do its samples collapse, do they copy, does it know the training scans too well?

A few samples are drawn with the conditions of validation cases. Each of three questions is answered by a test whose answer
for a sampler that is as good as real scans is known, whatever the data and however few they are. Every patient counts once in
a test, with one scan, since two scans of one patient are more alike than chance has it:

    diversity   the mean likeness among the samples, against that among as many drawn from samples and real scans mixed
    copies      how many samples lie nearer to one training latent than validation latents do, alone and against the
                nearest of another patient
    gap         the losses of training and validation cases on the same grid at the same angles and noise, pair by pair

Real scans have been through the same autoencoder, so that its blur is on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import betabinom
from torch import Tensor
from torch.nn import functional as F

from medsynth.config.denoiser import Watch
from medsynth.config.grid import GRID
from medsynth.diffusion.objective import Denoiser
from medsynth.diffusion.samplers import sample
from medsynth.seeding import numpy_generator, torch_generator
from medsynth.training.batches import noise
from medsynth.training.pool import GridPool, Pool, spread

SAMPLER = "dpm_solver++"
REALS_PER_SAMPLE = 3
"""Real scans that samples are mixed with, per sample."""
JUDGED = 64
"""Validation latents whose distance to the training split sets the scale for samples, at most."""
AXIS = 16
"""Latent voxels per axis, averaged down to, at which distances are taken: a shift by a voxel does not hide a copy."""
PERMUTATIONS = 9999
LEAST = 1 / (PERMUTATIONS + 1)
"""Least p-value of so many permutations."""
NOMINAL = 0.05
"""Share of fresh real scans nearer than the threshold, where there are enough validation cases to set it so."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Eyes:
    """What samples are looked at with."""

    decode: Callable[[Tensor], Tensor]
    """Normalised latents [N, C, x, y, z] -> small volumes [N, 1, X, Y, Z] in [-1, 1] on the CPU."""
    alike: Callable[[Tensor, Tensor], Tensor]
    """Likeness of pairs of such volumes [N], 1 for equal ones."""


class Watcher:
    """Looks at samples of a denoiser, on the grid of most validation cases; what it needs of real scans is computed at the
    first look and kept. `count` is the number of samples: 0 where that grid has no training cases. `pairs` are the case
    numbers, in both pools, whose losses `look` is to be given.

    Everything it draws comes from `seed`, so that looks differ by the weights alone.
    """

    def __init__(self, training: Pool, validation: Pool, settings: Watch, eyes: Eyes, seed: int) -> None:
        self.validation = max(validation.grids, key=len)
        same = [pool for pool in training.grids if _grid(pool) == _grid(self.validation)]
        self.training = (same or training.grids)[0]
        self.evaluations = settings.evaluations
        self.eyes = eyes
        self.seed = seed
        self._known = torch.tensor(self.training.one_per_patient())
        self._held_out = torch.tensor(self.validation.one_per_patient())
        self.count = min(settings.samples, len(self._held_out), len(self._known)) if same else 0
        self.pairs = _pairs(training, validation)
        self._reals: tuple[Tensor, Floats] | None = None
        self._near: tuple[Tensor, Floats] | None = None

    def samples(self, denoiser: Denoiser, device: torch.device, at_once: int) -> Tensor:
        """Latents [count, C, x, y, z] on the CPU, with the conditions of validation cases."""
        cases, parts = _some(self._held_out, self.count), []
        shift = denoiser.objective.shift(self.validation.voxels)
        for start in range(0, self.count, at_once):
            rows = slice(start, min(start + at_once, self.count))
            _, conditions = self.validation.take(cases[rows])
            given = {name: value.to(device) for name, value in conditions.items()}
            drawn = noise(self.validation.shape, self.seed, "watch noise", 0, rows).to(device)
            steps = [torch_generator(self.seed, "watch steps", row) for row in range(rows.start, rows.stop)]
            denoise = partial(denoiser.clean, conditions=given)
            parts.append(sample(denoise, drawn, SAMPLER, self.evaluations, steps, shift=shift).float().cpu())
        return torch.cat(parts)

    def look(self, samples: Tensor, training_losses: Tensor, validation_losses: Tensor) -> dict[str, float]:
        """Figures of the three questions, each with its p-value, and the least that this many patients can give (`_least`).

        samples: from `samples`; losses: [n] each, of `pairs`, pair by pair at the same angles and noise.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return {
                **self._diversity(samples),
                **self._copies(samples),
                "training_loss": float(training_losses.mean()),
                "validation_loss": float(validation_losses.mean()),
                "gap_p": self._gap(validation_losses - training_losses),
                "gap_least": 0.5 ** len(training_losses) + LEAST,
            }

    def _diversity(self, samples: Tensor) -> dict[str, float]:
        if self._reals is None:
            volumes = self.eyes.decode(self._real_latents())
            self._reals = volumes, self._likeness(volumes, volumes)
        reals, among = self._reals
        volumes = self.eyes.decode(samples)
        own, across = self._likeness(volumes, volumes), self._likeness(volumes, reals)
        everything = np.block([[own, across], [across.T, among]])
        generator = numpy_generator(self.seed, "watch mixed")
        drawn = generator.permuted(np.tile(np.arange(len(everything)), (PERMUTATIONS, 1)), axis=1)[:, : self.count]
        mixed = everything[drawn[:, :, None], drawn[:, None, :]].sum((1, 2))
        return {
            "ms_ssim": _mean_of_pairs(own),
            "ms_ssim_real": _mean_of_pairs(among),
            "ms_ssim_p": _p_value(mixed >= own.sum() - 1e-9),
            "ms_ssim_least": 1 / math.comb(len(everything), self.count) + LEAST,
        }

    def _real_latents(self) -> Tensor:
        wanted = REALS_PER_SAMPLE * self.count
        held_out, _ = self.validation.take(_some(self._held_out, wanted))
        seen, _ = self.training.take(_some(self._known, wanted - len(held_out)))
        return torch.cat([held_out.cpu(), seen.cpu()])

    def _likeness(self, first: Tensor, second: Tensor) -> Floats:
        """Likeness of every volume of one group with every one of the other, zero with itself, [N, M]."""
        table = np.zeros((len(first), len(second)))
        itself = first is second
        for i in range(len(first)):
            others = range(i + 1, len(second)) if itself else range(len(second))
            if others:
                row = second[others.start : others.stop]
                table[i, others.start : others.stop] = self.eyes.alike(first[i : i + 1].expand_as(row), row).numpy()
        return table + table.T if itself else table

    def _copies(self, samples: Tensor) -> dict[str, float]:
        if self._near is None:
            chunks = [torch.arange(len(self.training))[i : i + JUDGED] for i in range(0, len(self.training), JUDGED)]
            training = torch.cat([_vectors(self.training.take(chunk)[0]) for chunk in chunks])
            judged, _ = self.validation.take(_some(self._held_out, JUDGED))
            self._near = training, self._distances(_vectors(judged), training)
        training, real = self._near
        found = self._distances(_vectors(samples), training)
        rank = max(1, int(NOMINAL * (real.shape[1] + 1)))
        thresholds = np.sort(real, axis=1)[:, rank - 1 : rank]
        copies = int((found < thresholds).all(0).sum())
        # k-th smallest of m exchangeable values: how many of n further ones lie below it is beta-binomial.
        chance = betabinom(samples.shape[0], rank, real.shape[1] + 1 - rank)
        return {
            "nearest": float(np.median(found[0])),
            "nearest_real": float(np.median(real[0])),
            "copies": copies / len(samples),
            "copies_p": float(chance.sf(copies - 1)),
            "copies_least": float(chance.sf(len(samples) - 1)),
        }

    def _distances(self, judged: Tensor, training: Tensor) -> Floats:
        """Distance to the nearest training latent, and its share of that to the nearest of another patient, [2, N]."""
        patients = np.array([case.patient for case in self.training.store.cases])
        # The faster way squares differences of large numbers; near zero only the plain difference is exact.
        table = torch.cdist(judged, training, compute_mode="donot_use_mm_for_euclid_dist").double().numpy()
        nearest = table.argmin(1)
        first = table[np.arange(len(table)), nearest]
        second = np.where(patients[None] == patients[nearest][:, None], np.inf, table).min(1)
        return np.stack([first, first / np.maximum(second, 1e-12)])

    def _gap(self, differences: Tensor) -> float:
        """Chance of so large a mean of the cases' differences, were their signs random (sign-flip test)."""
        per_case = differences.double().numpy()
        signs = numpy_generator(self.seed, "watch signs").choice((-1.0, 1.0), size=(PERMUTATIONS, len(per_case)))
        return _p_value(signs @ per_case >= per_case.sum() - 1e-12)


def _pairs(training: Pool, validation: Pool) -> tuple[Tensor, Tensor]:
    """Numbers of as many training as validation cases, pair by pair on equal grids, every patient once."""
    known: list[int] = []
    held_out: list[int] = []
    met: set[str] = set()

    def new(pool: GridPool) -> list[int]:
        return [number for number in pool.one_per_patient() if pool.store.cases[number].patient not in met]

    places = {_grid(pool): place for place, pool in enumerate(training.grids)}
    for place, pool in enumerate(validation.grids):
        twin = places.get(_grid(pool))
        if twin is None:
            continue
        fewest = min(len(new(training.grids[twin])), len(new(pool)))
        for number, whole, part, numbers in (
            (twin, training, training.grids[twin], known),
            (place, validation, pool, held_out),
        ):
            chosen = _some(torch.tensor(new(part), dtype=torch.int64), fewest).tolist()
            numbers += whole.numbers(number, chosen)
            met.update(part.store.cases[each].patient for each in chosen)
    return torch.tensor(known, dtype=torch.int64), torch.tensor(held_out, dtype=torch.int64)


def _some(cases: Tensor, count: int) -> Tensor:
    """At most `count` of the cases, evenly chosen."""
    return cases[spread(min(count, len(cases)), len(cases))]


def _grid(pool: GridPool) -> tuple[object, ...]:
    """What tells grids apart: the latent's shape, and the spacing where that differs among them."""
    return (*pool.shape, pool.store.rows[0].get(GRID) if pool.store.rows else None)


def _vectors(latents: Tensor) -> Tensor:
    """[N, D] float32 on the CPU, averaged down to at most `AXIS` voxels per axis."""
    factors = [-(-size // AXIS) for size in latents.shape[2:]]
    return F.avg_pool3d(latents.float(), factors, ceil_mode=True).flatten(1).cpu()


def _mean_of_pairs(table: Floats) -> float:
    return float(table.sum() / (len(table) * (len(table) - 1)))


def _p_value(as_extreme: NDArray[np.bool_]) -> float:
    """Of a permutation test, the observed arrangement counted in (Phipson 2010)."""
    return float((as_extreme.sum() + 1) / (len(as_extreme) + 1))
