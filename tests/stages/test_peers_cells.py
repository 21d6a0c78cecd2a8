"""A cell of the comparison with MONAI from training to verdict, on the small pipeline: both methods, one judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.__main__ import table
from benchmarks.peers.data import Data, data_of, draw_request
from benchmarks.peers.judge import Judge
from benchmarks.peers.method import Run
from benchmarks.peers.monai_ldm import monai_ldm
from benchmarks.peers.ours import medsynth
from medsynth.config.pipeline import Pipeline

MINUTES = 0.04
COUNT = 8


@pytest.fixture(scope="module")
def data(finished: Path, tiny: Pipeline) -> Data:
    return data_of(tiny, finished)


@pytest.fixture(scope="module")
def judge(data: Data) -> Judge:
    return Judge(data)


def test_every_training_case_is_asked_for_before_any_comes_twice(data: Data) -> None:
    count = len(data.splits["train"].cases)
    request, again = draw_request(data, count + 3, 1), draw_request(data, count + 3, 1)
    assert sorted(request.cases[:count]) == list(range(count))
    assert request.cases == again.cases and request.seeds == again.seeds
    assert len(set(request.seeds)) == len(request)
    assert request.masks is not None
    for place, case in enumerate(request.cases):
        assert torch.equal(request.masks[place], data.splits["train"].masks[case])  # type: ignore[index]


def test_the_same_cases_are_asked_for_with_masks_of_other_shapes(data: Data) -> None:
    same, varied = (draw_request(data, COUNT, 1, vary=vary) for vary in (False, True))
    assert varied.cases == same.cases and varied.seeds == same.seeds and varied.rows == same.rows
    assert same.masks is not None and varied.masks is not None
    assert varied.masks.dtype == same.masks.dtype and varied.masks.shape == same.masks.shape
    assert torch.equal((varied.masks > 0).flatten(1).sum(1), (same.masks > 0).flatten(1).sum(1))
    assert not torch.equal(varied.masks, same.masks)
    assert torch.equal(varied.masks, draw_request(data, COUNT, 1, vary=True).masks)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("method", [medsynth, monai_ldm], ids=["medsynth", "monai"])
def test_a_cell_is_trained_within_its_budget_goes_on_and_is_judged(
    method: Any, data: Data, judge: Judge, tmp_path: Path
) -> None:
    run = Run(data, tmp_path, 1, MINUTES, torch.device("cpu"))
    trained = method(run)
    for part in ("autoencoder", "denoiser"):
        assert trained.facts[part]["steps"] > 0
    spent = sum(trained.facts[part]["minutes"] for part in ("autoencoder", "denoiser"))
    assert spent >= 0.99 * MINUTES  # and no more than the step that was begun, which takes whatever it takes
    request = draw_request(data, COUNT, 1)
    scans = trained.generate(request)
    assert scans.shape == (COUNT, 1, 16, 16, 16)
    assert scans.isfinite().all() and scans.abs().max() <= 1
    again = method(run)  # from the checkpoints: nothing is trained any more
    assert again.facts["denoiser"]["steps"] == trained.facts["denoiser"]["steps"]
    assert torch.equal(again.generate(request), scans)
    judged = judge(request, scans)
    values = [m["synthetic"]["value"] for space in judged["fidelity"] for m in space["metrics"]]
    assert all(math.isfinite(value) for value in values)
    cell = {"task": "tiny", "method": "m", "minutes": MINUTES, "seed": 1, "device": "here", "seconds_per_scan": 1.0}
    assert "tiny" in table([{**cell, **trained.facts, **judged}]).splitlines()[-1]


@pytest.mark.slow
def test_the_judge_takes_real_scans_for_real_and_copies_for_copies(data: Data, judge: Judge) -> None:
    request = draw_request(data, COUNT, 1)
    copies = torch.stack([data.splits["train"].volumes[case] for case in request.cases])
    noise = torch.rand(copies.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def figure(judged: dict[str, Any], name: str) -> list[float]:
        return [m["synthetic"]["value"] for space in judged["fidelity"] for m in space["metrics"] if m["name"] == name]

    real, nonsense = judge(request, copies), judge(request, noise)
    assert all(a < b for a, b in zip(figure(real, "frechet"), figure(nonsense, "frechet"), strict=True))
    assert all(space["closer"]["value"] == 1.0 for space in real["privacy"])
    assert all(space["closer"]["value"] == 0.0 for space in nonsense["privacy"])
