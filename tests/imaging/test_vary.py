"""Varied masks: as large as before, where they were before, mixed, or turned and bent as much as asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.ndimage import distance_transform_edt, map_coordinates

from medsynth.imaging.vary import LENGTH, REACH, Body, Variation, draw_variation, varied
from medsynth.seeding import numpy_generator

SPACING = (1.0, 1.0, 1.0)


def two_labels(shape: tuple[int, int, int] = (31, 29, 27)) -> NDArray[np.uint8]:
    """An ellipsoid off the middle, its upper half labelled 1 and its lower half 2."""
    x, y, z = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    inside = ((x - 14) / 8) ** 2 + ((y - 15) / 5) ** 2 + ((z - 13) / 4) ** 2 <= 1
    return np.asarray(np.where(inside, np.where(z >= 13, 1, 2), 0), np.uint8)


def drawn(rotate_degrees: float, bend: float, number: int = 0) -> Variation:
    return draw_variation(numpy_generator(7, "variation", number), 0, rotate_degrees, bend)


def mixing(count: int, number: int = 0) -> Variation:
    return draw_variation(numpy_generator(7, "mixing", number), count, 10, 0.15)


def ellipsoid(
    axes: tuple[float, float, float],
    centre: tuple[float, float, float] = (15, 15, 15),
    spacing: tuple[float, float, float] = SPACING,
) -> NDArray[np.uint8]:
    """In a box of 31 voxels; half axes in mm."""
    places = np.stack(np.meshgrid(*[np.arange(31.0)] * 3, indexing="ij"), -1) - centre
    return np.asarray(((places * spacing / axes) ** 2).sum(-1) <= 1, np.uint8)


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
        depth = np.maximum(depth / radius, -REACH).astype(np.float32)
        return map_coordinates(depth, sources.T.astype(np.float32), order=1, mode="nearest")

    whole = depths(mask > 0)
    for taken in range(len(inside), mask.size):  # until one piece is large enough
        body = np.zeros(mask.size, bool)
        body[np.argsort(-whole, kind="stable")[:taken]] = True
        pieces = ndimage.label(body.reshape(mask.shape), np.ones((3, 3, 3)))[0].ravel()
        sizes = np.bincount(pieces)[1:]
        if sizes.max() >= len(inside):
            break
    whole = np.where(pieces == 1 + sizes.argmax(), whole, -np.inf)
    left = sorted(np.argsort(-whole, kind="stable")[: len(inside)])
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


@pytest.mark.parametrize("count", [3, 4, 12])
def test_a_mixture_has_the_mean_and_the_spread_of_what_is_mixed(count: int) -> None:
    generator = numpy_generator(7, "shapes")
    spread = np.array([[2.0, 0.6], [0.6, 0.5]])
    shapes = generator.multivariate_normal([3, -1], spread, size=(20000, count))
    shares = np.stack([mixing(count, number).shares(count) for number in range(200)])
    assert shares.sum(1) == pytest.approx(np.ones(200)) and (shares**2).sum(1) == pytest.approx(np.ones(200))
    assert shares.std(0) == pytest.approx(
        np.full(count, np.sqrt((count - 1) / count**2)), rel=0.2
    )  # nobody's more than another's
    mixed = np.einsum("nk,nkd->nd", np.tile(shares, (100, 1)), shapes)
    assert mixed.mean(0) == pytest.approx([3, -1], abs=0.04)
    assert np.cov(mixed.T) == pytest.approx(spread, abs=0.06)


def test_shares_of_fewer_shapes_than_were_drawn_for() -> None:
    for count in (3, 5):
        shares = mixing(12).shares(count)
        assert len(shares) == count
        assert shares.sum() == pytest.approx(1) and (shares**2).sum() == pytest.approx(1)


@pytest.mark.parametrize("number", range(4))
def test_one_shape_in_several_sizes_and_places_is_mixed_into_itself(number: int) -> None:
    mask = ellipsoid((11, 8, 5.5))
    others = [
        Body(ellipsoid((11 * k, 8 * k, 5.5 * k), centre), SPACING)
        for k, centre in ((0.8, (12, 14, 17)), (1.1, (16, 15, 15)), (0.7, (19, 13, 12)), (0.9, (15, 17, 14)))
    ]
    assert overlap(varied(mask, SPACING, mixing(5, number), others), mask) > 0.9


@pytest.mark.parametrize("number", range(4))
def test_lengths_of_a_mixture_are_millimetres(number: int) -> None:
    spacing = (0.7, 0.7, 2.0)
    mask = ellipsoid((8, 8, 8), spacing=spacing)  # balls, 23 voxels wide and 8 high
    others = [Body(ellipsoid((r, r, r), spacing=spacing), spacing) for r in (6, 7, 9)]
    extents = np.ptp(np.argwhere(varied(mask, spacing, mixing(4, number), others)), axis=0) * spacing
    assert extents == pytest.approx([16, 16, 16], abs=2.5)


@pytest.mark.parametrize("number", range(4))
def test_a_mixture_is_as_large_and_in_one_piece_about_the_same_place(number: int) -> None:
    mask = two_labels((31, 31, 31))
    axes = [(8, 5, 4), (4, 9, 5), (6, 6, 6), (9, 4, 4), (5, 5, 8), (7, 4, 7)]
    others = [Body(ellipsoid(each, (14, 15, 13)) * np.uint8(2), SPACING) for each in axes]  # without the first label
    found = varied(mask, SPACING, mixing(7, number), others)
    assert [(found == label).sum() for label in (1, 2)] == [(mask == label).sum() for label in (1, 2)]
    assert ndimage.label(found, np.ones((3, 3, 3)))[1] == 1
    assert np.abs(np.argwhere(found).mean(0) - np.argwhere(mask).mean(0)).max() < 1.5
    assert all(overlap(found, each) < 0.97 for each in [mask, *(ellipsoid(each, (14, 15, 13)) for each in axes)])


def test_a_mixture_is_computed_as_said() -> None:
    """Against the sum over all voxels of the box, in a box without edges nearby."""
    mask, variation = ellipsoid((5, 4, 3)), mixing(3)
    masks = [mask, ellipsoid((4, 4, 4), (14, 15, 16)), ellipsoid((3, 6, 3))]
    total = np.zeros(mask.size)
    radius = [(3 * each.sum() / (4 * np.pi)) ** (1 / 3) for each in masks]
    for share, each, own in zip(variation.shares(3), masks, radius, strict=True):
        depth = distance_transform_edt(each) - distance_transform_edt(each == 0)
        places = (np.argwhere(mask >= 0) - np.argwhere(mask).mean(0)) * own / radius[0] + np.argwhere(each).mean(0)
        sampled = map_coordinates(np.maximum(depth / own, -REACH), places.T, order=1, mode="nearest")
        total += share * sampled
    found = varied(mask, SPACING, variation, [Body(each, SPACING) for each in masks[1:]])
    assert total.reshape(mask.shape)[found > 0].min() >= total.reshape(mask.shape)[found == 0].max() - 1e-5


def test_what_cannot_be_mixed_is_bent() -> None:
    mask, variation = ellipsoid((8, 6, 4)), mixing(12)
    bent = varied(mask, SPACING, replace(variation, draws=np.zeros(0)))
    assert not np.array_equal(bent, mask)
    ball = Body(ellipsoid((6, 6, 6)), SPACING)
    scattered = ellipsoid((3, 3, 3), (6, 6, 6)) | ellipsoid((3, 3, 3), (24, 24, 24)) | ellipsoid((4, 3, 3), (6, 24, 6))
    spread_out = Body(scattered, SPACING)
    assert ball.in_one_piece and not spread_out.in_one_piece
    for others in ([], [ball], [ball, None], [ball, spread_out, None]):  # two shapes at most
        assert np.array_equal(varied(mask, SPACING, variation, others), bent)
    assert not np.array_equal(varied(mask, SPACING, variation, [ball, ball]), bent)
    pieces = varied(scattered, SPACING, variation, [ball] * 5)
    assert np.array_equal(pieces, varied(scattered, SPACING, variation))
    assert ndimage.label(pieces)[1] == 3
