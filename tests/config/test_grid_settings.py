"""A grid's name reads back as the same grid; a pipeline's several grids are checked as one box was."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsynth.config.base import plain
from medsynth.config.cohort import Prepare
from medsynth.config.grid import Grid, find_grid, named_grid
from medsynth.config.load import load_pipeline
from medsynth.config.resolved import resolved_yaml
from medsynth.errors import ConfigError

THIN = Grid(box=(64, 64, 64), spacing_mm=(1.0, 1.0, 1.0))
THICK = Grid(box=(96, 96, 48), spacing_mm=(0.9765625, 0.9765625, 2.5))
TWO = "prepare: {grids: [{box: [64, 64, 64], spacing_mm: [1, 1, 1]}, {box: [96, 96, 48], spacing_mm: [1, 1, 2.5]}]}\n"
HEAD = "name: mine\ncohort: {kind: phantom, patients: 8}\n"


@pytest.mark.parametrize("grid", [THIN, THICK, Grid(box=(1, 2, 3), spacing_mm=(1 / 3, 0.1, 1e-2))])
def test_a_grid_reads_back_from_its_name(grid: Grid) -> None:
    assert Grid.parse(str(grid)) == grid
    assert named_grid([THIN, THICK, grid], str(grid)) == grid


def test_names_are_short_and_say_voxels_and_millimetres() -> None:
    assert str(THIN) == "64x64x64@1x1x1"
    assert Grid.parse("64x64x64@1.0x1x1.00") == THIN
    assert THICK.extent_mm == (93.75, 93.75, 120.0)


@pytest.mark.parametrize("text", ["", "64x64x64", "64x64@1x1x1", "64x64x64@1x1", "axbxc@1x1x1", "64x64x0@1x1x1"])
def test_what_is_no_grid_is_refused_and_the_known_ones_are_listed(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected one of 64x64x64@1x1x1, 96x96x48@0\.9765625x0\.9765625x2\.5"):
        named_grid([THIN, THICK], text)


def test_a_volume_lies_on_a_grid_up_to_the_precision_of_a_header() -> None:
    assert find_grid([THIN, THICK], (96, 96, 48), (0.976562, 0.976563, 2.5)) == THICK
    assert find_grid([THIN, THICK], (96, 96, 48), (0.98, 0.98, 2.5)) is None
    assert find_grid([THIN, THICK], (64, 64, 48), (1.0, 1.0, 1.0)) is None


def test_without_grids_the_settings_say_nothing_of_them() -> None:
    """So that what was prepared before stays done."""
    assert "grids" not in plain(Prepare())
    assert Prepare().every_grid() == (Grid(box=(48, 48, 48), spacing_mm=(1.0, 1.0, 1.0)),)


def _mistakes(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_pipeline(str(path))
    return "\n".join(caught.value.mistakes)


def test_a_pipeline_with_several_grids_survives_being_written_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + TWO + "generate: {grid: 96x96x48@1x1x2.5}\n", encoding="utf-8")
    pipeline = load_pipeline(str(path))
    assert [str(grid) for grid in pipeline.prepare.every_grid()] == ["64x64x64@1x1x1", "96x96x48@1x1x2.5"]
    path.write_text(resolved_yaml(pipeline), encoding="utf-8")
    assert load_pipeline(str(path)) == pipeline


def test_what_several_grids_must_not_be(tmp_path: Path) -> None:
    odd = _mistakes(tmp_path, TWO.replace("48]", "46]"))
    assert "prepare.grids: every size must be a multiple of" in odd
    assert "found [96, 96, 46]; use [96, 96, 48]" in odd
    same = (
        "prepare: {grids: [{box: [64, 64, 64], spacing_mm: [1, 1, 1]}, {box: [64, 64, 64], spacing_mm: [1, 1, 1]}]}\n"
    )
    assert "found 64x64x64@1x1x1 twice" in _mistakes(tmp_path, same)
    taken = _mistakes(tmp_path, TWO + "conditions: {grid: {kind: category, values: [a, b]}}\n")
    assert "conditions.grid: with several grids" in taken
    unknown = _mistakes(tmp_path, TWO + "generate: {grid: 96x96x48@1x1x5}\n")
    assert (
        "generate.grid: expected one of 64x64x64@1x1x1, 96x96x48@1x1x2.5 (voxels@mm), found '96x96x48@1x1x5'" in unknown
    )
