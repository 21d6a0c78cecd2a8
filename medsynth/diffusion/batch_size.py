"""How many volumes a device computes at once: found by trial, and halved where memory runs out after all."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

import torch

from medsynth.errors import UsageError

T = TypeVar("T")

BatchSize = int | Literal["auto"]
MOST_BY_TRIAL = 64
"""A larger batch is not looked for: it would fill no device better, and the first volume would only come later."""


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """What `work` returns; None where the device's memory did not suffice, which is then given back."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # memory is given back below, where nothing holds on to the tensors of the attempt any more
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class BatchSizes:
    """What is known of the sizes that fit, by kind of call (whatever its memory depends on besides the size)."""

    def __init__(self) -> None:
        self._fits: dict[Hashable, int] = {}
        self._limits: dict[Hashable, int] = {}

    def limited(self, kind: Hashable, wanted: int) -> int:
        """`wanted`, or what is left of it after memory ran out."""
        return min(wanted, self._limits.get(kind, wanted))

    def find(self, kind: Hashable, most: int, attempt: Callable[[int], object]) -> int:
        """The largest size up to `most` that `attempt` gets through: doubled from one until memory runs out.

        What was found before is not tried again. Raises UsageError where not even one volume fits.
        """
        while (fits := self._fits.get(kind, 0)) < most:
            size = min(max(1, 2 * fits), most)
            if size > self.limited(kind, size):
                break
            if not _got_through(attempt, size):
                self._limit(kind, fits)
                break
            self._fits[kind] = size
        return min(self._fits[kind], most)

    def halve(self, kind: Hashable, size: int) -> int:
        """Note that memory ran out at `size`. Returns half of it; raises UsageError where that is nothing."""
        self._limit(kind, size // 2)
        return size // 2

    def _limit(self, kind: Hashable, size: int) -> None:
        if size == 0:
            raise UsageError(
                "expected enough free memory on the device for one volume, found less; free some, take a larger device, or "
                "compute on the processor with --device cpu"
            )
        self._limits[kind] = size
        self._fits[kind] = min(self._fits.get(kind, size), size)


def _got_through(attempt: Callable[[int], object], size: int) -> bool:
    return unless_out_of_memory(lambda: (attempt(size),)) is not None
