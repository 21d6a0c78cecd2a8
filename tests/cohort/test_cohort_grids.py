"""Which grid a scan goes onto, and putting all on one grid."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsynth.cohort.grids import choose_grid, common_grid
from medsynth.cohort.manifest import Case, Manifest
from medsynth.cohort.volumes import load_by_grid, load_volumes, onto
from medsynth.config.cohort import HuWindow
from medsynth.config.grid import Grid
from medsynth.digests import file_sha256
from medsynth.errors import CohortError
from medsynth.imaging.intensity import IntensityRule

RULE = IntensityRule.from_settings(HuWindow(kind="hu_window", low=-1000.0, high=400.0))


def grid(box: tuple[int, int, int], *spacing: float) -> Grid:
    return Grid(box=box, spacing_mm=(spacing[0], spacing[1], spacing[2]))


SMALL, LARGE = grid((32, 32, 32), 1, 1, 1), grid((64, 64, 48), 1, 1, 1)
THICK = grid((64, 64, 16), 1, 1, 4)
ALL = (LARGE, SMALL, THICK)


@pytest.mark.parametrize(
    ("spacing", "extent", "expected"),
    [
        ((1, 1, 1), (30, 30, 30), SMALL),
        ((1, 1, 1), (32.4, 30, 30), SMALL),  # half a voxel is rounded away, as resampling rounds it
        ((1, 1, 1), (33, 30, 30), LARGE),
        ((0.5, 0.5, 0.5), (500, 500, 500), LARGE),  # none holds it: the largest
        ((1, 1, 5), (30, 30, 30), THICK),  # never blown up to 1 mm, although a smaller box would hold it
        ((1, 1, 2.01), (30, 30, 30), THICK),  # 2 is as far from 1 as from 4
        ((1, 1, 1.99), (30, 30, 30), SMALL),
    ],
)
def test_the_spacing_decides_first_and_then_the_box(spacing, extent, expected):
    assert choose_grid(ALL, spacing, extent) == expected


def test_the_choice_does_not_depend_on_the_order_of_the_grids_unless_they_are_equal():
    for order in itertools.permutations(ALL):
        assert choose_grid(order, (0.9, 0.9, 3.3), (50, 50, 50)) == THICK
        assert choose_grid(order, (0.9, 1.1, 0.8), (31, 20, 10)) == SMALL
    lying, standing = grid((32, 16, 16), 1, 1, 1), grid((16, 16, 32), 1, 1, 1)
    assert choose_grid((lying, standing), (1, 1, 1), (9, 9, 9)) == lying
    assert choose_grid((standing, lying), (1, 1, 1), (9, 9, 9)) == standing


def test_the_common_grid_holds_every_box_at_the_finest_spacing():
    assert common_grid((SMALL,)) == SMALL
    assert common_grid(ALL) == grid((64, 64, 64), 1, 1, 1)
    odd = common_grid((grid((10, 10, 10), 0.3, 1, 1), grid((7, 10, 48), 0.7, 1, 2.5)))
    assert odd == grid((17, 10, 120), 0.3, 1, 1)  # 4.9 mm in steps of 0.3 mm


def test_a_volume_keeps_its_place_its_values_and_its_labels_on_another_grid():
    """A ball about the centre stays a ball of the same size in millimetres; outside is the lowest intensity."""
    target = grid((40, 40, 40), 1, 1, 1)
    z = (torch.arange(12.0) - 5.5) * 2.5
    x = torch.arange(24.0) - 11.5
    inside = (x[:, None, None] ** 2 + x[None, :, None] ** 2 + z[None, None, :] ** 2).sqrt() < 8
    volume = torch.where(inside, 0.5, -0.5)[None]
    moved = onto(volume, (1.0, 1.0, 2.5), target)
    assert moved.shape == (1, 40, 40, 40) and moved.dtype == torch.float32 and type(moved) is torch.Tensor
    assert float(moved[0, 20, 20, 20]) == 0.5
    assert set(moved[0, 0].flatten().tolist()) == {-1.0}
    volume_mm3 = float((moved > 0).sum())
    assert volume_mm3 == pytest.approx(float(inside.sum()) * 2.5, rel=0.08)
    mask = onto(inside.to(torch.uint8)[None], (1.0, 1.0, 2.5), target)
    assert mask.dtype == torch.uint8 and set(mask.unique().tolist()) == {0, 1}
    assert float(mask.sum()) == pytest.approx(float(inside.sum()) * 2.5, rel=0.05)
    assert onto(volume, (1.0, 1.0, 2.5), grid((24, 24, 12), 1, 1, 2.5)) is volume


@pytest.fixture
def prepared(tmp_path: Path) -> Manifest:
    generator = np.random.default_rng(0)
    cases = []
    for number in range(5):
        on = (SMALL, THICK)[number % 2]
        voxels = generator.integers(-1200, 600, on.box).astype(np.int16)
        path = tmp_path / f"image{number}.nii"
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([*on.spacing_mm, 1.0])), path)
        where = ("", "CT", on.box, on.spacing_mm, file_sha256(path), -1000.0, 400.0, {})
        cases.append(Case(f"C{number}", f"P{number}", "real", "train", path.name, *where))
    return Manifest(tmp_path, tuple(cases), {})


def test_volumes_are_kept_by_grid_and_each_is_there_once(prepared):
    small, thick = load_by_grid(prepared, RULE, ALL)
    assert [case.case for case in small.cases] == ["C0", "C2", "C4"]
    assert [case.case for case in thick.cases] == ["C1", "C3"]
    assert small.volumes.shape == (3, 1, *SMALL.box) and thick.volumes.shape == (2, 1, *THICK.box)
    with pytest.raises(CohortError, match="found 2 on another grid"):
        load_by_grid(prepared, RULE, (SMALL, LARGE))


def test_one_grid_is_the_plain_set(prepared):
    one = replace(prepared, cases=prepared.cases[::2])
    (part,) = load_by_grid(one, RULE, (SMALL,))
    assert torch.equal(part.volumes, load_volumes(one, RULE).volumes)
    assert torch.equal(part.volumes, load_volumes(one, RULE, grid=SMALL).volumes)


def test_all_volumes_on_one_grid_keep_the_order_of_the_manifest(prepared):
    together = load_volumes(prepared, RULE, grid=common_grid(ALL))
    assert together.volumes.shape == (5, 1, 64, 64, 64)
    assert together.cases == prepared.cases
    small, _ = load_by_grid(prepared, RULE, ALL)
    centre = slice(16, 48)
    assert torch.equal(together.volumes[2, 0, centre, centre, centre], small.volumes[1, 0])
