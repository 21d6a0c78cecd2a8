"""Which cases are in which batch, and fetching batches ahead of time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar, cast

import torch
from torch import Tensor

from medsynth.seeding import derive, torch_generator

Batch = dict[str, Tensor]
"""Tensors by name, the sample along the first axis of each."""

Part = TypeVar("Part")

AHEAD = 2
"""Batches fetched before they are asked for."""
GPU_AHEAD, GPU_THREADS = 6, 3
"""The same beside a GPU, whose steps are short, and the threads that fetch them."""


class Order:
    """An endless shuffled order of `count` cases: every case once before any comes again.

    A function of the seed and the position alone, so that a resumed run, and every process of a distributed one, sees
    the batches that an uninterrupted single process sees.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self._seed = seed

    def batch(self, number: int) -> Tensor:
        """Case numbers of batch `number`, int64 [batch_size]; the last batch of a round runs on into the next."""
        start, end = number * self.batch_size, (number + 1) * self.batch_size
        rounds = range(start // self.count, (end - 1) // self.count + 1)
        cases = torch.cat([self._round(number) for number in rounds])
        skipped = rounds.start * self.count
        return cases[start - skipped : end - skipped]

    def _round(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=torch_generator(self._seed, "order", number))


def per_grid(parts: Part | Sequence[Part]) -> tuple[Part, ...]:
    """What there is of each grid; a part by itself is that of the only one."""
    return tuple(parts) if isinstance(parts, list | tuple) else (cast("Part", parts),)


class GridOrder:
    """An endless order of batches over several grids, each batch from one of them.

    A grid has its own shuffled order of cases. A cycle is as many batches as there are cases in all, and of them each
    grid has as many as it has cases, so that over a cycle every case of every grid comes equally often. Within a cycle
    the batches of a grid lie at random in even stretches of it, so that none runs ahead of its share, or behind, by more
    batches than there are grids. A function of the seed and the position alone, and with one grid the order of `Order`.
    """

    def __init__(self, counts: Sequence[int], batch_size: int, seed: int) -> None:
        self.counts = tuple(counts)
        self._seed = seed
        self._orders = [
            Order(count, batch_size, derive(seed, "grid", grid) if grid else seed) for grid, count in enumerate(counts)
        ]

    def batch(self, number: int) -> tuple[int, Tensor]:
        """The grid of batch `number`, and the numbers of its cases within that grid, int64 [batch_size]."""
        cycle, place = divmod(number, sum(self.counts))
        grids = self._cycle(cycle)
        grid = int(grids[place])
        earlier = cycle * self.counts[grid] + int((grids[:place] == grid).sum())
        return grid, self._orders[grid].batch(earlier)

    def _cycle(self, cycle: int) -> Tensor:
        """The grid of every batch of a cycle: batch i of n is due at a random time in its stretch [i / n, (i + 1) / n)."""
        generator = torch_generator(self._seed, "grids", cycle)
        due = [(torch.arange(n) + torch.rand(n, generator=generator, dtype=torch.float64)) / n for n in self.counts]
        grids = torch.cat([torch.full((n,), grid) for grid, n in enumerate(self.counts)])
        return grids[torch.cat(due).argsort(stable=True)]


def noise(shape: tuple[int, ...], seed: int, name: str, number: int, rows: slice | Sequence[int]) -> Tensor:
    """Standard normal noise [rows, *shape] for `rows` of batch `number`; each row has a stream of its own."""
    chosen = range(rows.start, rows.stop) if isinstance(rows, slice) else rows
    drawn = torch.empty(len(chosen), *shape)
    for place, row in enumerate(chosen):
        torch.randn(shape, generator=torch_generator(seed, name, number, row), out=drawn[place])
    return drawn


class Ahead:
    """Draws batches in the background while the device computes, and measures the wait for them.

    On a GPU they are brought over on a stream of their own, since on the usual one each copy would wait for the steps
    before it, and several threads draw at once: a batch is a function of its number alone.
    """

    def __init__(self, draw: Callable[[int], Batch], first: int, device: torch.device) -> None:
        self.waited_seconds = 0.0
        self._draw = draw
        self._number = first
        self._device = device
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._ahead = GPU_AHEAD if on_gpu else AHEAD
        self._pool = ThreadPoolExecutor(GPU_THREADS if on_gpu else 1, thread_name_prefix="batches")
        self._pending: deque[Future[tuple[Batch, torch.cuda.Event | None]]] = deque()

    def __enter__(self) -> Ahead:
        for _ in range(self._ahead):
            self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def next(self) -> Batch:
        """The next batch, on the device."""
        began = time.perf_counter()
        batch, there = self._pending.popleft().result()
        self._ask()
        if there is None:
            batch = {name: tensor.to(self._device) for name, tensor in batch.items()}
        else:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(there)
            for tensor in batch.values():
                tensor.record_stream(now)
        self.waited_seconds += time.perf_counter() - began
        return batch

    def _ask(self) -> None:
        self._pending.append(self._pool.submit(self._fetch, self._number))
        self._number += 1

    def _fetch(self, number: int) -> tuple[Batch, torch.cuda.Event | None]:
        if self._stream is None:
            return self._draw(number), None
        with torch.cuda.stream(self._stream):
            batch = {
                name: tensor if tensor.is_cuda else tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in self._draw(number).items()
            }
            return batch, self._stream.record_event()
