"""Varied masks: as large as before, where they were before, turned and bent as much as asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.ndimage import distance_transform_edt, map_coordinates

from medsynth.imaging.vary import LENGTH, Variation, draw_variation, varied
from medsynth.seeding import numpy_generator

SPACING = (1.0, 1.0, 1.0)


def two_labels(shape: tuple[int, int, int] = (31, 29, 27)) -> NDArray[np.uint8]:
    """An ellipsoid off the middle, its upper half labelled 1 and its lower half 2."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    inside = ((x - 14) / 8) ** 2 + ((y - 15) / 5) ** 2 + ((z - 13) / 4) ** 2 <= 1
    return np.asarray(np.where(inside, np.where(z >= 13, 1, 2), 0), np.uint8)


def drawn(rotate_degrees: float, bend: float, number: int = 0) -> Variation:
    return draw_variation(numpy_generator(7, "variation", number), rotate_degrees, bend)


def quarter_turn() -> Variation:
    """About the third axis, without bending."""
    return replace(drawn(0, 0), rotation=np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))


def overlap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(2 * ((one > 0) & (other > 0)).sum() / ((one > 0).sum() + (other > 0).sum()))


def naively(mask: NDArray[np.uint8], spacing_mm: tuple[float, ...], variation: Variation) -> NDArray[np.uint8]:
    """Every voxel of the box asked where it came from."""
    spacing, inside = np.asarray(spacing_mm), np.argwhere(mask > 0)
    radius, centre = (3 * len(inside) * spacing.prod() / (4 * np.pi)) ** (1 / 3), inside.mean(0)
    mean = variation.displacements((inside - centre) * spacing / radius).mean(0)
    voxels = np.argwhere(np.ones_like(mask))
    sources = (variation.sources((voxels - centre) * spacing / radius) - mean) * radius / spacing + centre

    def depths(body: np.ndarray) -> np.ndarray:
        depth = distance_transform_edt(body, sampling=spacing) - distance_transform_edt(~body, sampling=spacing)
        return map_coordinates(depth.astype(np.float32), sources.T, order=1, mode="nearest")

    left = sorted(np.argsort(-depths(mask > 0), kind="stable")[: len(inside)])
    result = np.zeros_like(mask)
    sizes = {label: int((mask == label).sum()) for label in np.unique(mask[mask > 0])}
    inner = {label: depths(mask == label) for label in sizes}
    for label in sorted(sizes, key=sizes.__getitem__):
        others = [inner[other] for other in inner if other > 0 and other not in set(result.ravel()) | {label}]
        margin = inner[label][left] - (np.max(others, 0)[left] if others else 0)
        order = [left[i] for i in np.argsort(-margin, kind="stable")]
        result.flat[order[: sizes[label]]] = label
        left = sorted(order[sizes[label] :])
    return result


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("spacing", [SPACING, (0.7, 0.7, 2.5)])
def test_looking_beside_the_mask_alone_misses_nothing(spacing: tuple[float, float, float], number: int) -> None:
    mask, variation = two_labels(), drawn(15, 0.25, number)
    assert np.array_equal(varied(mask, spacing, variation), naively(mask, spacing, variation))


@pytest.mark.parametrize("number", range(4))
def test_as_many_voxels_of_the_same_labels_about_the_same_centre(number: int) -> None:
    mask = two_labels()
    found = varied(mask, SPACING, drawn(10, 0.15, number))
    assert found.dtype == mask.dtype and found.shape == mask.shape
    assert (found > 0).sum() == (mask > 0).sum()
    assert set(np.unique(found)) == {0, 1, 2}
    for label in (1, 2):
        assert (found == label).sum() == (mask == label).sum()
    assert np.abs(np.argwhere(found > 0).mean(0) - np.argwhere(mask > 0).mean(0)).max() < 0.8
    assert 0.5 < overlap(found, mask) < 0.95


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("radius", [2.2, 4.5])
def test_a_part_within_another_stays_within_it_and_as_large(radius: float, number: int) -> None:
    places = np.stack(np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij"))
    mask = np.zeros((32, 32, 32), np.uint8)
    mask[np.linalg.norm(places - 15.5, axis=0) < 11] = 3
    tumour = np.linalg.norm(places - np.array([18.0, 15, 13])[:, None, None, None], axis=0) < radius
    mask[tumour] = 7
    found = varied(mask, SPACING, drawn(10, 0.15, number))
    for label in (3, 7):
        assert (found == label).sum() == (mask == label).sum()
    _, count = ndimage.label(found == 7)
    assert count == 1, "in one piece"
    grown = ndimage.binary_dilation(found == 7)
    assert (found[grown] == 0).sum() == 0, "and nowhere at the organ's edge"


def test_nothing_asked_for_changes_nothing() -> None:
    mask = two_labels()
    assert np.array_equal(varied(mask, SPACING, drawn(0, 0)), mask)
    empty = np.zeros_like(mask)
    assert np.array_equal(varied(empty, SPACING, drawn(10, 0.15)), empty)


def test_more_asked_for_changes_more() -> None:
    mask = two_labels()
    overlaps = [
        np.mean([overlap(varied(mask, SPACING, drawn(10 * share, 0.15 * share, n)), mask) for n in range(8)])
        for share in (0.25, 1.0, 2.0)
    ]
    assert overlaps[0] > overlaps[1] > overlaps[2]


def test_a_quarter_turn_is_one() -> None:
    mask = np.zeros((9, 9, 5), np.uint8)
    mask[1:8, 4, 2] = 1
    mask[4, 5:8, 2] = 2
    mask[4, 1:4, 2] = 2  # what the turn is about is the middle
    assert np.array_equal(varied(mask, SPACING, quarter_turn()), np.rot90(mask, -1, (0, 1)))


def test_turns_are_turns_in_millimetres() -> None:
    mask = np.zeros((41, 21, 5), np.uint8)
    mask[10:31, 8:13, 1:4] = 1  # 21 x 10 mm
    found = np.argwhere(varied(mask, (1.0, 2.0, 3.0), quarter_turn()))
    assert np.ptp(found, axis=0).tolist() == pytest.approx([9, 10, 2], abs=1)  # 10 x 21 mm


def test_a_mask_far_from_the_edge_knows_nothing_of_the_box() -> None:
    mask, variation = two_labels(), drawn(10, 0.15)
    roomy, roomier = (varied(np.pad(mask, room), SPACING, variation) for room in (8, 12))
    assert np.array_equal(roomy, roomier[(slice(4, -4),) * 3])


def test_a_mask_cut_by_the_box_stays_cut_there() -> None:
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[:9, 6:18, 6:18] = 1
    for number in range(4):
        found = varied(mask, SPACING, drawn(5, 0.1, number))
        assert (found > 0).sum() == (mask > 0).sum()
        assert (found[0] > 0).sum() > 0.6 * (mask[0] > 0).sum()


def test_a_mask_that_fills_the_box_fills_it() -> None:
    full = np.ones((8, 9, 10), np.uint8)
    full[4:] = 2
    assert (varied(full, SPACING, drawn(10, 0.15)) > 0).all()


def test_displacements_are_a_gaussian_field_of_the_stated_spread_and_length() -> None:
    places = np.array([[0.0, 0, 0], [LENGTH, 0, 0], [0, 2 * LENGTH, 0]])
    fields = np.stack([drawn(0, 0.2, n).displacements(places) for n in range(4000)])  # [draws, 3 places, 3]
    assert np.abs(fields.mean(0)).max() < 0.012
    assert fields.std(0) == pytest.approx(np.full((3, 3), 0.2), rel=0.05)
    products = (fields[:, :1] * fields).mean((0, 2)) / 0.2**2
    # The kernel of the field: exp(-d^2 / 2 LENGTH^2).
    assert products == pytest.approx([1, np.exp(-0.5), np.exp(-2.0)], abs=0.03)
