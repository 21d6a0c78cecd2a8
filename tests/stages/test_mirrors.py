"""The encode stage says how well scans are told from the mirror images that it is asked to encode too."""

import json
from types import SimpleNamespace

import pytest
import torch

from medsynth.config.pipeline import Pipeline
from medsynth.diffusion.model_folder import load_model
from medsynth.progress import Silent
from medsynth.stages.encode import JUDGED, _judge_mirrors
from medsynth.stages.given_masks import manifest_rows


class Part:
    """Scans of some patients, each with its x axis as `side` says."""

    def __init__(self, count: int, side: float, patients: int) -> None:
        generator = torch.Generator().manual_seed(count)
        self.volumes = 0.1 * torch.randn(count, 1, 8, 8, 8, generator=generator)
        self.volumes[:, :, :3] += side
        self.cases = [SimpleNamespace(patient=f"P{number % patients}") for number in range(count)]

    def __len__(self) -> int:
        return len(self.cases)


def judge(parts, *axes):
    pipeline = Pipeline(
        name="mirrors", cohort={"kind": "phantom", "patients": 4}, denoiser={"augment": {"mirror": axes}}
    )
    lines: list[str] = []
    context = SimpleNamespace(pipeline=pipeline, progress=Silent(), say=lines.append)
    return _judge_mirrors(context, parts, torch.device("cpu")), lines


def test_an_axis_with_a_side_is_warned_of_and_one_without_is_not():
    found, lines = judge([Part(40, 0.5, 40)], "y", "x")
    assert set(found) == {"told_from_mirror_x", "told_from_mirror_y"}
    assert found["told_from_mirror_x"] > 0.9
    assert "leave x out" in lines[0]
    assert "of the time [" in lines[1]
    assert "leave" not in lines[1]


def test_grids_are_judged_together_and_only_so_many_scans():
    parts = [Part(3 * JUDGED, 0.5, 300), Part(JUDGED, 0.5, 300)]
    seen = []
    for part in parts:
        part.volumes = Seen(part.volumes, seen)
    found, _ = judge(parts, "x")
    assert seen == [3 * JUDGED // 4, JUDGED // 4]
    assert found["told_from_mirror_x"] > 0.9


class Seen:
    """Volumes that note how many are taken."""

    def __init__(self, volumes: torch.Tensor, counts: list[int]) -> None:
        self.volumes, self.counts = volumes, counts

    def __getitem__(self, chosen: list[int]) -> torch.Tensor:
        self.counts.append(len(chosen))
        return self.volumes[chosen]


def test_of_a_few_patients_it_says_that_nothing_can_be_said():
    found, lines = judge([Part(40, 0.5, 5)], "x")
    assert found == {}
    assert lines == ["denoiser.augment.mirror: x: whether mirrored scans are like these cannot be told from 5 patients"]


def test_nothing_is_compared_unasked():
    part = Part(40, 0.5, 40)
    part.volumes = None
    assert judge([part]) == ({}, [])


@pytest.mark.slow
def test_the_stage_says_it_and_keeps_it(workspace, run_tiny):
    said = run_tiny(workspace, "denoiser.augment.mirror=[z]", only="encode").lines
    assert any("denoiser.augment.mirror: z" in line for line in said)
    summary = json.loads((workspace / "latents" / "stage.json").read_text())["summary"]
    assert summary["latents"] == 16  # 8 training scans, each twice


@pytest.mark.slow
def test_a_model_of_turned_copies_knows_nothing_of_them_when_asked(workspace, run_tiny):
    for stage in ("encode", "denoiser", "generate"):
        run_tiny(workspace, "denoiser.augment.turned_copies=2", only=stage)
    summary = json.loads((workspace / "latents" / "stage.json").read_text())["summary"]
    assert summary["latents"] == 24  # 8 training scans, each three times
    model = load_model(workspace / "denoiser" / "model")
    assert model.denoiser.config.turned
    assert set(model.condition_declaration) == {"diagnosis", "diameter_mm", "nodule"}
    assert len(manifest_rows(workspace / "synthetic" / "manifest.csv")) == 8
