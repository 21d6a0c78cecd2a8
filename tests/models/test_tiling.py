"""Tiles that cover, weights that add up, and a local function that is not changed by tiling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn.functional import conv3d

from medsynth.errors import ConfigError
from medsynth.models.tiling import axis_weights, process_tiled, tile_shape, tile_spans
from medsynth.seeding import torch_generator


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(5, 8, 2), (8, 8, 2), (9, 8, 2), (37, 8, 3), (64, 16, 15), (40, 12, 0)]
)
def test_tiles_cover_the_axis_and_overlap_enough(size: int, tile: int, overlap: int) -> None:
    spans = tile_spans(size, tile, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == size
    assert all(end - start == min(tile, size) for start, end in spans)
    assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "margin"), [(37, 8, 3, 1), (64, 16, 15, 5), (64, 16, 10, 5), (40, 12, 0, 0)]
)
@pytest.mark.parametrize("unit", [1, 4])
def test_shares_of_a_voxel_add_up_to_one(size: int, tile: int, overlap: int, margin: int, unit: int) -> None:
    spans = tile_spans(size, tile, overlap)
    total = torch.zeros(size * unit, dtype=torch.float64)
    for (start, end), weight in zip(spans, axis_weights(spans, margin, unit), strict=True):
        assert (weight >= 0).all()
        if start:
            assert weight[: margin * unit].eq(0).all()
        total[start * unit : end * unit] += weight
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("overlap", [4, 5, 7])
def test_a_local_function_is_the_same_in_tiles(overlap: int) -> None:
    generator = torch_generator(0, "tiling")
    kernel = torch.randn(2, 1, 5, 5, 5, generator=generator, dtype=torch.float64)
    x = torch.randn(1, 1, 17, 9, 23, generator=generator, dtype=torch.float64)

    def smooth(piece: torch.Tensor) -> torch.Tensor:
        return conv3d(piece, kernel, padding=2)

    tiled = process_tiled(smooth, x, tile=(9, 9, 9), overlap=overlap, reach=2, units=(1, 1))
    torch.testing.assert_close(tiled, smooth(x))


def test_a_global_function_is_blended_without_a_seam() -> None:
    x = torch.linspace(0, 1, 32, dtype=torch.float64).view(1, 1, 32, 1, 1).expand(1, 1, 32, 4, 4)
    blended = process_tiled(
        lambda piece: piece * 0 + piece.mean(), x, tile=(16, 4, 4), overlap=12, reach=9, units=(1, 1)
    )
    steps = blended[0, 0, :, 0, 0].diff().abs()
    hard = process_tiled(lambda piece: piece * 0 + piece.mean(), x, tile=(16, 4, 4), overlap=0, reach=0, units=(1, 1))
    assert steps.max() < 0.3 * hard[0, 0, :, 0, 0].diff().abs().max()


@pytest.mark.parametrize(("tile", "overlap"), [(4, 4), (4, -1)])
def test_a_tile_no_longer_than_its_overlap_is_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match="overlap < tile"):
        process_tiled(lambda x: x, torch.zeros(1, 1, 8, 8, 8), tile=(tile,) * 3, overlap=overlap, reach=1, units=(1, 1))


def computed(sizes: tuple[int, ...], tile: tuple[int, ...], overlap: int) -> int:
    """Units that all tiles hold together."""
    return math.prod(
        sum(end - start for start, end in tile_spans(size, length, overlap))
        for size, length in zip(sizes, tile, strict=True)
    )


@pytest.mark.parametrize(
    ("sizes", "most", "overlap"), [((64, 64, 64), 48**3, 10), ((128, 128, 20), 48**3, 10), ((9, 30, 17), 900, 3)]
)
def test_the_tile_is_within_bounds_and_no_other_computes_less(sizes: tuple[int, ...], most: int, overlap: int) -> None:
    tile = tile_shape(sizes, most, overlap)
    assert math.prod(tile) <= most
    assert all(length > overlap or length == size for length, size in zip(tile, sizes, strict=True))
    cube = tuple(min(size, round(most ** (1 / 3))) for size in sizes)
    assert computed(sizes, tile, overlap) <= computed(sizes, cube, overlap)
    if max(sizes) <= 30:
        lengths = [[n for n in range(1, size + 1) if n > overlap or n == size] for size in sizes]
        shapes = [shape for shape in itertools.product(*lengths) if math.prod(shape) <= most]
        assert computed(sizes, tile, overlap) == min(computed(sizes, shape, overlap) for shape in shapes)


def test_a_volume_that_fits_is_one_tile() -> None:
    assert tile_shape((12, 7, 30), 12 * 7 * 30, 4) == (12, 7, 30)
    assert tile_shape((12, 7, 30), 12 * 7 * 30 * 8, 4, unit_voxels=8) == (12, 7, 30)


def test_two_thirds_and_more_of_a_large_volume_is_computed_once() -> None:
    assert computed((128,) * 3, tile_shape((128,) * 3, 96**3, 10), 10) < 1.5 * 128**3


def test_room_for_less_than_an_overlap_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected at least 10648 .*found 8000"):
        tile_shape((40, 40, 40), 8000, 10, unit_voxels=8)
