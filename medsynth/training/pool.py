"""A split's latents and conditions where a training loop reaches them fastest: on the device, in memory, or on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from medsynth.config.denoiser import Place
from medsynth.models.conditions import TURNED, Declaration, encode, encode_turns, mask_name, steering_values
from medsynth.training.batches import per_grid
from medsynth.training.latents import LatentStatistics, LatentStore

SHARE_OF_DEVICE = 0.2
"""Of a GPU's free memory, before training takes its own, that latents may fill where their place is `auto`."""
SHARE_OF_MEMORY = 0.5
"""Of the machine's available memory, likewise."""
AT_ONCE = 64
"""Cases that are read, and masks that are compared with the declared labels, in one go."""


class Pool:
    """Normalised latents and encoded conditions of a split, by case number; those of one grid after those of another."""

    def __init__(
        self, stores: LatentStore | Sequence[LatentStore], declaration: Declaration, statistics: LatentStatistics
    ) -> None:
        self.grids = tuple(GridPool(store, declaration, statistics) for store in per_grid(stores))
        self._ends = torch.tensor([len(pool) for pool in self.grids]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """What latents and masks take."""
        return sum(pool.nbytes for pool in self.grids)

    def hold(self, device: torch.device) -> None:
        """Keep everything on `device` from now on."""
        for pool in self.grids:
            pool.hold(device)

    def by_grid(self, cases: Tensor) -> Iterator[tuple[int, GridPool, Tensor, Tensor]]:
        """Each grid that some of `cases` lie on: its number, its pool, their places in `cases`, their numbers there."""
        found = torch.bucketize(cases, self._ends, right=True)
        for number, pool in enumerate(self.grids):
            places = (found == number).nonzero().flatten()
            if len(places):
                yield number, pool, places, cases[places] - int(self._ends[number]) + len(pool)

    def numbers(self, grid: int, inside: Sequence[int]) -> list[int]:
        """Case numbers here of those of the grid with this number."""
        start = int(self._ends[grid]) - len(self.grids[grid])
        return [start + number for number in inside]

    def take(self, cases: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Like `GridPool.take`. Raises ValueError where the cases lie on several grids."""
        (_, pool, _, inside), *others = self.by_grid(cases)
        if others:
            raise ValueError("expected cases of one grid")
        return pool.take(inside)


class GridPool:
    """Normalised latents and encoded conditions of the cases on one grid.

    Everything that is the same for a case in every batch is done once, here: values and masks are checked against the
    declaration and encoded, latents are normalised. Raises ConfigError for a value or label that is not declared.
    """

    def __init__(self, store: LatentStore, declaration: Declaration, statistics: LatentStatistics) -> None:
        self.store = store
        self.statistics = statistics
        rows = [steering_values(declaration, row) for row in store.rows]
        self._mask = mask_name(declaration) if store.masks is not None else None
        if self._mask is not None and store.masks is not None:
            for start in range(0, len(rows), AT_ONCE):
                part = slice(start, start + AT_ONCE)
                encode(declaration, rows[part], torch.from_numpy(np.array(store.masks[part])))
        self._values = encode(declaration, rows)
        turns = [case.turned for case in store.cases]
        if any(turn is not None for turn in turns):
            self._values[TURNED] = encode_turns(turns)
        self._held: tuple[Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self.store)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a latent, [C, x, y, z]."""
        return tuple(self.store.latents.shape[1:])

    @property
    def voxels(self) -> int:
        """Those of a latent."""
        return math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        """What latents and masks take."""
        masks = 0 if self._mask is None or self.store.masks is None else int(self.store.masks.nbytes)
        return int(self.store.latents.nbytes) + masks

    def one_per_patient(self) -> list[int]:
        """The first case of every patient, as it was scanned: what tests take for independent of one another."""
        first: dict[str, int] = {}
        for number, case in enumerate(self.store.cases):
            if not case.mirrored and case.turned is None:
                first.setdefault(case.patient, number)
        return list(first.values())

    def hold(self, device: torch.device) -> None:
        """Keep everything on `device` from now on. Beside it only some cases at a time take memory."""
        held: list[Tensor] | None = None
        for start in range(0, len(self), AT_ONCE):
            part = slice(start, min(start + AT_ONCE, len(self)))
            read = [each for each in self._read(np.arange(part.start, part.stop)) if each is not None]
            held = held or [torch.empty(len(self), *each.shape[1:], dtype=each.dtype, device=device) for each in read]
            for whole, each in zip(held, read, strict=True):
                whole[part] = each
        if held is not None:
            self._held = held[0], held[1] if len(held) > 1 else None
        self._values = {name: value.to(device) for name, value in self._values.items()}

    def take(self, cases: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised latents [B, C, x, y, z] and encoded conditions of the cases with these numbers, as copies."""
        if self._held is None:
            latents, masks = self._read(cases.numpy())
        else:
            where = cases.to(self._held[0].device)
            latents = self._held[0][where]
            masks = None if self._held[1] is None else self._held[1][where]
        conditions = {name: value[cases.to(value.device)] for name, value in self._values.items()}
        if self._mask is not None and masks is not None:
            conditions[self._mask] = masks
        return latents, conditions

    def _read(self, cases: np.ndarray) -> tuple[Tensor, Tensor | None]:
        masks = None if self._mask is None or self.store.masks is None else torch.from_numpy(self.store.masks[cases])
        return self.statistics.normalise(torch.from_numpy(self.store.latents[cases])), masks


def place_for(
    nbytes: int, wanted: Place, device: torch.device, processes: int = 1
) -> Literal["device", "memory", "disk"]:
    """Where `nbytes` of latents are kept: as wanted, or with `auto` at the fastest place that they fit.

    `processes` of one machine share its memory, and may share a device.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda" and nbytes * processes <= SHARE_OF_DEVICE * torch.cuda.mem_get_info(device)[0]:
        return "device"
    return "memory" if nbytes * processes <= SHARE_OF_MEMORY * psutil.virtual_memory().available else "disk"


def spread(count: int, pool: int) -> Tensor:
    """`count` case numbers that visit `pool` cases as evenly as can be, in order, int64 [count]."""
    return torch.arange(count) * pool // count


def even_angles(per_bin: int, bins: int, lowest: float, highest: float, generator: torch.Generator) -> Tensor:
    """Angles [bins * per_bin] float32, one in each even step between the ends, in rising order."""
    count = bins * per_bin
    steps = torch.arange(count, dtype=torch.float64) + torch.rand(count, generator=generator, dtype=torch.float64)
    return (lowest + (highest - lowest) * steps / count).float()
