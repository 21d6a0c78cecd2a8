"""Irregular series resampled on request: an analytic ramp must come out as the same ramp."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_series import MR, AsItIs, oblique, write_series

from medsynth.errors import GeometryError
from medsynth.imaging.dicom import find_series
from medsynth.imaging.grid import to_ras
from medsynth.imaging.read import read_scan
from medsynth.imaging.scan import affine_of, resampled_of, same_grid, spacing_mm, world_mm

GRADIENT = np.array([3.0, -5.0, 11.0])
"""Of the ramp, per mm along R, A and S."""


def write_ramp(folder, places, *, tilt=0.0, orientation=(1, 0, 0, 0, 1, 0), rows=40, columns=24, sideways=0.0):
    """Slices `places` mm along the normal, each moved down its columns by `tilt` degrees, holding a linear function."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    origin = np.array([-30.0, 12.0, 100.0])

    def position(place):
        return origin + normal * place + column * place * np.tan(np.radians(tilt)) + row * place * sideways

    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    slices = []
    for place in places:
        lps = position(place) + r[..., None] * 0.8 * column + c[..., None] * 0.5 * row
        ras = lps * [-1, -1, 1]
        slices.append(np.round(20000 + ras @ GRADIENT * 8))

    def edit(dataset, k):
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.ImagePositionPatient = [float(x) for x in position(places[k])]

    write_series(
        folder,
        np.array(slices).astype(np.uint16),
        kind=MR,
        rescale=(0.125, -2500.0),
        orientation=orientation,
        edit=edit,
    )
    return position


def resampled(folder):
    return read_scan(folder, deidentifier=AsItIs(), irregular="resample")


def covered(scan, position, places, rows=40, columns=24, orientation=(1, 0, 0, 0, 1, 0)):
    """Which voxels lie inside both neighbouring slices, by geometry alone."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    shape = scan.shape[1:]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    lps = world_mm(affine_of(scan), index) * [-1, -1, 1]
    height = (lps - position(places[0])) @ normal + places[0]
    below = np.clip(np.searchsorted(places, height + 1e-6, side="right") - 1, 0, len(places) - 2)
    inside = np.ones(shape, bool)
    for offset in (0, 1):
        which = below + offset
        on_slice = np.abs(height - np.array(places)[below + 1 - offset]) < 1e-3
        starts = np.array([position(place) for place in places])[which]
        c, r = (lps - starts) @ row / 0.5, (lps - starts) @ column / 0.8
        within = (r > -1e-3) & (r < rows - 1 + 1e-3) & (c > -1e-3) & (c < columns - 1 + 1e-3)
        inside &= within | on_slice
    return inside, index


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), oblique(0.3, -0.2, 0.5), (0, 1, 0, 0, 0, -1)])
@pytest.mark.parametrize(
    ("places", "tilt", "sideways"),
    [
        ([0, 2, 4, 6, 8, 10, 12], 18.5, 0.0),
        ([0, 2, 4, 6, 8, 10, 12], -12.0, 0.1),
        ([0, 2, 4, 8, 10, 12], 0.0, 0.0),
        ([0, 1.1, 3.0, 4.2, 9.0, 12.5, 13.1], 0.0, 0.0),
        ([0, 1.1, 3.0, 4.2, 9.0, 12.5, 13.1], 15.0, 0.0),
    ],
)
def test_a_linear_function_of_position_stays_what_it_was(tmp_path, orientation, places, tilt, sideways):
    position = write_ramp(tmp_path, places, tilt=tilt, orientation=orientation, sideways=sideways)
    scan = resampled(tmp_path)
    voxels = np.asarray(scan)[0]
    inside, index = covered(scan, position, places, orientation=orientation)
    truth = world_mm(affine_of(scan), index) @ GRADIENT
    assert inside.mean() > 0.5
    assert np.abs(voxels - truth)[inside].max() < 0.13  # stored values are rounded to 1/16 of a unit, twice
    assert (voxels[~inside] == voxels.min()).all()
    gaps = np.diff(affine_of(scan)[:3, :3].T, axis=0)
    assert np.isfinite(gaps).all()
    assert spacing_mm(scan)[2] == pytest.approx(np.median(np.diff(places)))
    assert abs(affine_of(scan)[:3, 0] @ affine_of(scan)[:3, 2]) < 1e-9


def test_it_is_only_done_when_asked_for_and_said(tmp_path):
    write_ramp(tmp_path, [0, 2, 4, 8, 10], tilt=10.0)
    with pytest.raises(GeometryError, match=r"tilt of 10\.0 degrees"):
        read_scan(tmp_path, deidentifier=AsItIs())
    scan = resampled(tmp_path)
    assert resampled_of(scan) == "gantry tilt of 10.0 degrees undone; gaps of 2.03 to 4.06 mm brought to 2.00 mm"
    assert set(scan.meta) == {"modality", "unit", "resampled", "affine", "space"}
    assert resampled_of(same_grid(scan, scan.as_tensor())) == resampled_of(scan)


def test_a_regular_series_is_read_as_ever(tmp_path):
    write_ramp(tmp_path, [0, 2, 4, 6])
    plain, asked = read_scan(tmp_path, deidentifier=AsItIs()), resampled(tmp_path)
    assert np.array_equal(np.asarray(plain), np.asarray(asked))
    assert resampled_of(asked) == ""
    assert np.array_equal(affine_of(plain), affine_of(asked))


def test_slices_that_exist_keep_their_values(tmp_path):
    places = [0, 2, 4, 8, 10]
    write_ramp(tmp_path, places)
    scan = np.asarray(resampled(tmp_path))[0]
    assert scan.shape == (24, 40, 6)
    (series,) = find_series(tmp_path).series
    assert len(series.files) == 5
    whole = to_ras(resampled(tmp_path))
    assert whole.shape[1:] == (24, 40, 6)
    assert np.allclose(scan[:, :, 3], (scan[:, :, 2] + scan[:, :, 4]) / 2)


@pytest.mark.parametrize(
    ("places", "tilt", "words"),
    [
        ([0, 2, 4, 16, 18], 0.0, r"no gap over 10 mm, found 12\.00 mm between slices 3 and 4 of 5"),
        ([0, 2, 4, 6], 50.0, "at most 45 degrees"),
    ],
)
def test_what_no_interpolation_can_mend_is_refused_anyway(tmp_path, places, tilt, words):
    write_ramp(tmp_path, places, tilt=tilt)
    with pytest.raises(GeometryError, match=words):
        resampled(tmp_path)


def test_a_slice_beside_the_line_is_refused(tmp_path):
    write_ramp(tmp_path, [0, 2, 4, 6, 8])
    path = sorted(tmp_path.iterdir())[2]
    dataset = pydicom.dcmread(path)
    dataset.ImagePositionPatient[0] += 5.0
    dataset.save_as(path)
    with pytest.raises(GeometryError, match=r"slice 3 of 5 5\.0 mm beside it"):
        resampled(tmp_path)
