"""How a cost grows with size: exponents, and the size from which one way is cheaper than another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """p of cost ~ size^p: the least-squares slope of log cost over log size; None for fewer than two sizes."""
    if len(sizes) < 2:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def steps(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """The exponent from each size to the next, None for the first."""
    pairs = itertools.pairwise(zip(sizes, costs, strict=True))
    return [None, *(exponent(*zip(*pair, strict=True)) for pair in pairs)]


def crossover(sizes: Sequence[float], costs: Sequence[float], others: Sequence[float]) -> float | None:
    """The size from which `costs` stay below `others`, on straight lines between the measured points in log-log.

    None where they do not at the largest size; the smallest size where they always do.
    """
    gaps = [math.log(cost / other) for cost, other in zip(costs, others, strict=True)]
    if gaps[-1] >= 0:
        return None
    last_above = max((i for i, gap in enumerate(gaps) if gap >= 0), default=None)
    if last_above is None:
        return sizes[0]
    (low, high), (above, below) = sizes[last_above : last_above + 2], gaps[last_above : last_above + 2]
    share = above / (above - below)
    return math.exp(math.log(low) + share * math.log(high / low))
