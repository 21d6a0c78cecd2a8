from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medsynth.config.cohort import HuWindow, Percentiles
from medsynth.errors import DataError, ModelFolderError
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import make_scan


def scan_of(voxels, unit=""):
    return make_scan(torch.as_tensor(voxels).reshape(-1, 1, 1), np.eye(4), modality="", unit=unit)


WINDOW = IntensityRule.from_settings(HuWindow(kind="hu_window", low=-1000.0, high=400.0))
PERCENTILES = IntensityRule.from_settings(Percentiles(kind="percentiles", low=1.0, high=99.0))


def test_a_window_is_its_own_limits_whatever_the_scan():
    assert WINDOW.limits(scan_of([-900.0, 3000.0], "HU")) == (-1000.0, 400.0)
    assert WINDOW.unit == "HU"
    assert WINDOW.model_limits() == (-1000.0, 400.0)


def test_percentiles_are_of_the_scan():
    low, high = PERCENTILES.limits(scan_of(np.arange(101, dtype=np.float32)))
    assert (low, high) == (1.0, 99.0)


def test_the_ends_of_the_limits_are_exactly_the_ends_of_the_range():
    voxels = torch.tensor([-2000.0, -1000.0, -300.0, 400.0, 3000.0])
    assert WINDOW.normalise(voxels, (-1000.0, 400.0)).tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_every_hounsfield_unit_in_the_window_survives_the_round_trip():
    hu = torch.arange(-1000, 401, dtype=torch.int16)
    normalised = WINDOW.normalise(hu, (-1000.0, 400.0))
    assert normalised.dtype == torch.float32
    assert torch.equal(WINDOW.restore(normalised).round().to(torch.int16), hu)


@pytest.mark.parametrize("limits", [(0.0, 1.7e6), (-3.5, 12.25), (0.0, 0.003)])
def test_restore_undoes_normalise_within_the_limits(limits):
    voxels = torch.from_numpy(np.random.default_rng(0).uniform(*limits, 1000).astype(np.float32))
    back = PERCENTILES.restore(PERCENTILES.normalise(voxels, limits), limits)
    assert (back - voxels).abs().max() <= 2e-7 * (limits[1] - limits[0]) * 2


def test_restored_values_never_leave_the_limits():
    assert WINDOW.restore(torch.tensor([-1.5, 1.5])).tolist() == [-1000.0, 400.0]


def test_a_scan_gives_a_plain_tensor_that_keeps_no_wrong_unit():
    scan = scan_of([-900.0, 300.0], "HU")
    assert type(WINDOW.normalise(scan, (-1000.0, 400.0))) is torch.Tensor


def test_the_reference_is_the_median_of_the_limits():
    rule = PERCENTILES.with_reference([(0.0, 10.0), (1.0, 100.0), (2.0, 1e6)])
    assert rule.reference == rule.model_limits() == (1.0, 100.0)
    assert rule.restore(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [1.0, 50.5, 100.0]
    assert WINDOW.with_reference([(5.0, 6.0)]) is WINDOW
    with pytest.raises(DataError, match="no reference"):
        PERCENTILES.restore(torch.zeros(1))
    with pytest.raises(DataError, match="no scan is left"):
        PERCENTILES.with_reference([])


def test_rules_travel_as_json():
    for rule in (WINDOW, PERCENTILES, PERCENTILES.with_reference([(0.0, 3.0)])):
        assert IntensityRule.from_json(json.loads(json.dumps(rule.to_json()))) == rule
    with pytest.raises(ModelFolderError, match="may be newer"):
        IntensityRule.from_json({"kind": "histogram"})
    with pytest.raises(ModelFolderError, match="incomplete"):
        IntensityRule.from_json({"kind": "percentiles", "low": 1})


@pytest.mark.parametrize("rule", [WINDOW, PERCENTILES])
def test_constant_scans_are_refused(rule):
    with pytest.raises(DataError, match="the same value in every voxel"):
        rule.limits(scan_of([7.0] * 50))


def test_scans_the_rule_would_make_constant_are_refused():
    with pytest.raises(DataError, match="percentiles 1 and 99 of this scan are the same value"):
        PERCENTILES.limits(scan_of([0.0] * 999 + [1.0]))
    with pytest.raises(DataError, match="no voxel lies inside the window"):
        WINDOW.limits(scan_of([500.0, 600.0], "HU"))
    with pytest.raises(DataError, match="kind: percentiles"):
        WINDOW.limits(scan_of([1.0, 2.0], "a.u."))
