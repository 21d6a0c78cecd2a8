from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import rotation
from scipy import ndimage

from medsynth.errors import GeometryError
from medsynth.imaging.grid import FWHM, TRUNCATE, crop_or_pad, in_axis_order_of, resample, to_ras
from medsynth.imaging.scan import affine_of, make_scan, spacing_mm, world_mm


def scan_of(voxels, spacing=(1.0, 1.0, 1.0), turn=(0.0, 0.0, 0.0), origin=(-7.0, 11.0, 3.0)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(*turn) * np.array(spacing)
    affine[:3, 3] = origin
    return make_scan(voxels, affine, modality="CT", unit="HU")


def numbered(shape):
    return np.random.default_rng(5).permutation(int(np.prod(shape))).reshape(shape).astype(np.int16)


def worlds(scan):
    """RAS position of every voxel [X, Y, Z, 3]."""
    index = np.stack(np.meshgrid(*map(np.arange, scan.shape[1:]), indexing="ij"), axis=-1)
    return world_mm(affine_of(scan), index)


def by_value(scan):
    return np.column_stack([np.asarray(scan).ravel(), worlds(scan).reshape(-1, 3)])[np.asarray(scan).ravel().argsort()]


AXIS_ORDERS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS)
def test_all_48_axis_orders_keep_every_voxels_world_position(order, signs):
    shape = (4, 5, 6)
    affine = np.eye(4)
    affine[:3, :3] = (rotation(0.2, -0.15, 0.1) * np.array([0.7, 1.1, 2.3]))[:, order] * np.array(signs)
    affine[:3, 3] = [-31.0, 17.0, 5.0]
    scan = make_scan(numbered(shape), affine, modality="CT", unit="HU")
    turned = to_ras(scan)
    assert nib.aff2axcodes(affine_of(turned)) == ("R", "A", "S")
    assert np.allclose(by_value(turned), by_value(scan), atol=1e-9)
    assert np.array_equal(np.asarray(to_ras(turned)), np.asarray(turned))
    back = in_axis_order_of(turned, scan)
    assert np.array_equal(np.asarray(back), np.asarray(scan))
    assert np.allclose(affine_of(back), affine_of(scan), atol=1e-9)


GRIDS = [
    ((1.0, 1.0, 1.0), (0.7, 0.6, 0.5)),
    ((0.7, 0.8, 2.5), (1.5, 1.5, 1.5)),
    ((0.5, 0.5, 1.0), (1.0, 1.7, 3.1)),
    ((1.0, 1.0, 5.0), (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_linear_function_of_position_is_reproduced_exactly_inside(old, new):
    scan = scan_of(np.zeros((40, 41, 38), np.float32), old, turn=(0.3, -0.2, 0.1))
    slope, offset = np.array([3.0, -2.0, 1.5]), 40.0
    ramp = (worlds(scan) @ slope + offset).astype(np.float32)
    result = resample(make_scan(ramp, affine_of(scan), modality="CT", unit="HU"), new, "linear")
    error = np.abs(np.asarray(result)[0] - (worlds(result) @ slope + offset))
    inside = []
    for n, m, a, b in zip((40, 41, 38), result.shape[1:], old, new, strict=True):
        reach = (np.ceil(TRUNCATE * np.sqrt(max((b / a) ** 2 - 1, 0)) / FWHM) + 1) * a / b
        margin = int(np.ceil(reach))
        assert m > 2 * margin
        assert abs(m * b - n * a) <= b / 2 + 1e-9
        inside.append(slice(margin, m - margin))
    assert error[tuple(inside)].max() < 2e-4
    assert spacing_mm(result) == pytest.approx(new)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_the_centre_and_the_directions_stay(old, new):
    scan = scan_of(numbered((12, 13, 14)), old, turn=(0.3, -0.2, 0.1))
    for mode in ("linear", "nearest"):
        result = resample(scan, new, mode)
        centres = [world_mm(affine_of(s), (np.array(s.shape[1:]) - 1) / 2) for s in (scan, result)]
        assert np.allclose(*centres, atol=1e-9)
        turns = [affine_of(s)[:3, :3] / spacing_mm(s) for s in (scan, result)]
        assert np.allclose(*turns, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_linear_agrees_with_smoothing_everything_and_then_interpolating(old, new):
    voxels = np.random.default_rng(0).normal(size=(17, 12, 15))
    result = resample(scan_of(voxels.astype(np.float32), old), new, "linear")
    smooth = voxels
    for axis, (a, b) in enumerate(zip(old, new, strict=True)):
        if b > a:
            sigma = np.sqrt((b / a) ** 2 - 1) / FWHM
            radius = int(np.ceil(TRUNCATE * sigma))
            kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
            smooth = ndimage.correlate1d(smooth, kernel / kernel.sum(), axis=axis, mode="nearest")
    start = scan_of(voxels.astype(np.float32), old)
    index = (worlds(result) - affine_of(start)[:3, 3]) / np.array(old)
    twin = ndimage.map_coordinates(smooth, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    assert np.abs(np.asarray(result)[0] - twin).max() < 2e-6


def test_detail_too_fine_for_the_new_grid_vanishes_instead_of_folding_back():
    n = 96
    wave = np.cos(np.pi * 0.9 * np.arange(n))[:, None, None] * np.ones((1, 4, 4))
    scan = scan_of(wave.astype(np.float32))
    plain = wave[::3]
    assert plain[8:-8].std() > 0.6
    assert np.asarray(resample(scan, (3.0, 1.0, 1.0), "linear"))[0, 8:-8].std() < 0.02


def test_smoothing_turns_the_old_point_spread_into_the_new_one():
    weight, offset = [], []
    # A point at each of the four places that a voxel of 4 mm covers: together every offset of the kernel once.
    for place in range(29, 33):
        point = np.zeros((61, 2, 2), np.float32)
        point[place] = 1.0
        scan = scan_of(point)
        result = resample(scan, (4.0, 1.0, 1.0), "linear")
        weight.append(np.asarray(result)[0, :, 0, 0].astype(np.float64))
        offset.append(worlds(result)[:, 0, 0, 0] - world_mm(affine_of(scan), [place, 0, 0])[0])
    w, x = np.concatenate(weight), np.concatenate(offset)
    assert w.sum() == pytest.approx(1.0, abs=1e-6)
    assert (w * x).sum() == pytest.approx(0.0, abs=1e-6)
    # A Gaussian cut at three standard deviations has lost 3 % of its variance.
    assert (w * x**2).sum() == pytest.approx((4**2 - 1**2) / FWHM**2, rel=0.04)


def test_nearest_invents_no_label_and_keeps_the_type():
    labels = np.random.default_rng(1).choice([0, 3, 200], (9, 10, 11)).astype(np.uint8)
    scan = scan_of(labels, (1.0, 1.0, 1.0))
    for spacing in ((0.4, 0.5, 0.6), (2.2, 1.7, 3.0)):
        result = resample(scan, spacing, "nearest")
        assert result.dtype == torch.uint8
        index = np.clip((worlds(result) - affine_of(scan)[:3, 3]), 0, np.array(labels.shape) - 1)
        twin = labels[tuple(np.moveaxis(np.floor(np.round(index, 9) + 0.5).astype(int), -1, 0))]
        assert (np.asarray(result)[0] == twin).mean() > 0.999


def test_masks_and_images_land_on_the_same_grid():
    shape, spacing = (31, 30, 12), (0.71, 0.69, 2.5)
    image = resample(scan_of(numbered(shape), spacing), (1.1, 1.1, 1.1), "linear")
    mask = resample(scan_of(np.zeros(shape, np.uint8), spacing), (1.1, 1.1, 1.1), "nearest")
    assert image.shape == mask.shape
    assert np.array_equal(affine_of(image), affine_of(mask))


def test_the_same_spacing_changes_nothing():
    scan = scan_of(numbered((5, 6, 7)), (0.7, 0.8, 2.5), turn=(0.1, 0.2, 0.3))
    for mode in ("linear", "nearest"):
        result = resample(scan, spacing_mm(scan), mode)
        assert np.array_equal(np.asarray(result), np.asarray(scan))
        assert np.array_equal(affine_of(result), affine_of(scan))


def test_an_axis_of_one_voxel_survives():
    result = resample(scan_of(numbered((1, 6, 7)), (4.0, 1.0, 1.0)), (1.0, 2.0, 2.0), "linear")
    assert result.shape == (1, 4, 3, 4)
    assert np.ptp(np.asarray(result)[0], axis=0).max() == 0


@pytest.mark.parametrize("box", [(3, 4, 5), (9, 9, 9), (2, 12, 6), (1, 1, 1)])
@pytest.mark.parametrize("pad", ["constant", "edge"])
@pytest.mark.parametrize("centre", [None, (-4.0, 12.5, 9.0), (-5.0, 10.5, 2.5)])
def test_every_voxel_of_a_box_lies_where_it_did(box, pad, centre):
    scan = scan_of(numbered((5, 6, 7)), (1.5, 1.0, 2.0), turn=(0.2, 0.1, -0.3))
    result = crop_or_pad(scan, box, centre_mm=centre, pad=pad, value=-1)
    assert result.shape == (1, *box)
    inverse = np.linalg.inv(affine_of(scan))
    index = np.rint(world_mm(inverse, worlds(result))).astype(int)
    assert np.allclose(world_mm(affine_of(scan), index), worlds(result), atol=1e-9)
    inside = ((index >= 0) & (index < scan.shape[1:])).all(-1)
    nearest = np.asarray(scan)[0][tuple(np.moveaxis(np.clip(index, 0, np.array(scan.shape[1:]) - 1), -1, 0))]
    expected = nearest if pad == "edge" else np.where(inside, nearest, -1)
    assert np.array_equal(np.asarray(result)[0], expected)
    asked = world_mm(affine_of(scan), (np.array(scan.shape[1:]) - 1) / 2) if centre is None else np.array(centre)
    middle = world_mm(inverse, world_mm(affine_of(result), (np.array(box) - 1) / 2))
    assert np.abs(middle - world_mm(inverse, asked)).max() <= 0.5 + 1e-5


def test_a_box_that_misses_the_scan_is_refused():
    with pytest.raises(GeometryError, match="wholly outside"):
        crop_or_pad(scan_of(numbered((5, 6, 7))), (3, 3, 3), centre_mm=(100.0, 0.0, 0.0))


def test_a_padding_value_must_fit_the_voxels():
    with pytest.raises(ValueError, match="cannot hold"):
        crop_or_pad(scan_of(numbered((5, 6, 7))), (9, 9, 9), value=-1000.5)
    with pytest.raises(ValueError, match="cannot hold"):
        crop_or_pad(scan_of(np.zeros((5, 6, 7), np.uint8)), (9, 9, 9), value=-1)
