"""A local function over a volume that is too large for one piece."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medsynth.errors import ConfigError, DataError


def process_tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    tile: Sequence[int],
    overlap: int,
    reach: int,
    units: tuple[int, int],
) -> Tensor:
    """`function` of overlapping tiles of x [B, C, X, Y, Z], blended into one volume.

    `tile` (along each axis), `overlap` and `reach` count units of space, each `units[0]` voxels of x and `units[1]`
    voxels of the result per axis. `reach` is how far away an input can still change an output. With an overlap of twice
    the reach, no voxel that a tile's edge has touched is used, and the result is that of the whole volume up to
    rounding; with less, the tiles' disagreement is blended by a linear ramp over the middle third of the overlap.

    Raises ConfigError where an axis is cut into tiles that are not longer than the overlap.
    """
    unit_in, unit_out = units
    sizes = [size // unit_in for size in x.shape[2:]]
    if overlap < 0 or any(length <= overlap and length < size for length, size in zip(tile, sizes, strict=True)):
        raise ConfigError([f"tile and overlap: expected 0 <= overlap < tile, found {list(tile)} and overlap {overlap}"])
    spans = [tile_spans(size, length, overlap) for size, length in zip(sizes, tile, strict=True)]
    if all(len(axis) == 1 for axis in spans):
        return function(x)
    margin = reach if overlap >= 2 * reach else overlap // 3
    axes = [list(zip(axis, axis_weights(axis, margin, unit_out), strict=True)) for axis in spans]
    total: Tensor | None = None
    dtype = x.dtype
    for (span_x, share_x), (span_y, share_y), (span_z, share_z) in itertools.product(*axes):
        bounds = (span_x, span_y, span_z)
        source, target = ([slice(a * unit, b * unit) for a, b in bounds] for unit in units)
        piece = function(x[:, :, source[0], source[1], source[2]])
        if total is None:
            dtype = piece.dtype
            total = piece.new_zeros(
                *piece.shape[:2], *(size * unit_out for size in sizes), dtype=torch.promote_types(dtype, torch.float32)
            )
        share = share_x[:, None, None] * share_y[:, None] * share_z
        total[:, :, target[0], target[1], target[2]] += share.to(total) * piece
    if total is None:
        raise DataError(f"expected a volume with voxels, found the shape {list(x.shape)}")
    return total.to(dtype)


def tile_shape(sizes: Sequence[int], most: int, overlap: int, unit_voxels: int = 1) -> tuple[int, ...]:
    """Lengths of a tile along each axis of a volume of `sizes` units, so that it holds at most `most` voxels.

    Of all such tiles, those that compute the least: what neighbours share is computed by both, and a tile that is long
    where the volume is long shares less. Raises ConfigError where no tile would be longer than the overlap.
    """
    options = [_lengths(size, overlap) for size in sizes]
    units = most // unit_voxels
    fitting = (shape for shape in itertools.product(*options) if math.prod(length for length, _ in shape) <= units)
    best = min(fitting, key=lambda shape: math.prod(length * count for length, count in shape), default=None)
    if best is None:
        least = unit_voxels * math.prod(min(length for length, _ in axis) for axis in options)
        raise ConfigError(
            [
                f"tile_voxels: expected at least {least} for these networks and volumes, found {most}; a smaller tile would "
                "lie wholly in what it shares with its neighbours"
            ]
        )
    return tuple(length for length, _ in best)


def _lengths(size: int, overlap: int) -> list[tuple[int, int]]:
    """Every way to cut an axis into equal tiles: the shortest length for each number of tiles, and that number."""
    lengths = {size: 1}
    for count in range(2, size - overlap + 1):
        length = -(-(size + (count - 1) * overlap) // count)
        lengths.setdefault(length, count)
    return list(lengths.items())


def tile_spans(size: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and end of each tile along an axis of `size` units: equal lengths, spread evenly, overlapping at least
    `overlap`, the outermost ones flush with the ends."""
    if size <= tile:
        return [(0, size)]
    count = -(-(size - overlap) // (tile - overlap))
    starts = [round(i * (size - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def axis_weights(spans: list[tuple[int, int]], margin: int, unit: int) -> list[Tensor]:
    """Each tile's share in every output voxel along one axis, float64; the shares of a voxel add up to one.

    In the overlap of two neighbours the share of the first falls linearly from 1 to 0, all within the part that stays
    `margin` units clear of either tile's edge.
    """
    weights = [torch.ones((end - start) * unit, dtype=torch.float64) for start, end in spans]
    for i in range(len(spans) - 1):
        (_, end), (start, _) = spans[i], spans[i + 1]
        length = (end - start) * unit
        clear = margin * unit
        position = torch.arange(length, dtype=torch.float64) + 0.5
        rise = ((position - clear) / max(length - 2 * clear, 1e-9)).clamp(0, 1)
        weights[i][len(weights[i]) - length :] *= 1 - rise
        weights[i + 1][:length] *= rise
    total = torch.zeros(spans[-1][1] * unit, dtype=torch.float64)
    for (start, end), weight in zip(spans, weights, strict=True):
        total[start * unit : end * unit] += weight
    # Where more than two tiles meet, the ramps of neighbours alone do not add up to one.
    return [weight / total[start * unit : end * unit] for (start, end), weight in zip(spans, weights, strict=True)]
