from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.symmetry import FEWEST, sided_features, told_apart
from medsynth.training.latents import mirrored

CPU = torch.device("cpu")
RESAMPLING = Resampling(500, 0.95)
SIZE = 12


def noise(count: int, seed: int) -> Tensor:
    """[count, 1, 12, 12, 12]: the same in distribution whichever way it is turned."""
    return 0.2 * torch.randn(count, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def told(volumes: Tensor, axis: str, patients: list[str] | None = None):
    own, images = (sided_features(each, CPU, lambda done: None) for each in (volumes, mirrored(volumes, [axis])))
    return told_apart(own - images, patients or [str(i) for i in range(len(volumes))], RESAMPLING, 0)


def test_scans_without_a_side_are_told_by_chance() -> None:
    found = [told(noise(60, seed), "xyz"[seed % 3]) for seed in range(12)]
    assert np.mean([share.value for share in found]) == pytest.approx(0.5, abs=0.06)
    assert sum(share.low <= 0.5 <= share.high for share in found) >= 9


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_an_organ_on_one_side_is_told_along_its_axis_alone(axis: str) -> None:
    volumes = noise(60, 1)
    side = [slice(None)] * 5
    side[2 + "xyz".index(axis)] = slice(0, 4)
    volumes[tuple(side)] += 0.3
    assert told(volumes, axis).low > 0.9
    for other in set("xyz") - {axis}:
        assert told(volumes, other).low < 0.6


def test_a_texture_with_a_direction_is_told_though_no_side_is_brighter() -> None:
    # Saws of random phase: each rises slowly along x and falls at once.
    phase = torch.rand(60, 1, 1, 1, 1, generator=torch.Generator().manual_seed(2)) * SIZE
    saws = ((torch.arange(SIZE).view(1, 1, -1, 1, 1) + phase) % 6) / 3 - 1
    volumes = saws + noise(60, 2)
    assert told(volumes, "x").low > 0.9
    assert told(volumes, "y").low < 0.6


def test_scans_that_equal_their_mirror_images_are_guessed() -> None:
    half = noise(20, 3)
    share = told(half + half.flip(2), "x")
    assert share.value == pytest.approx(0.5, abs=0.15)
    constant = told(torch.zeros(20, 1, SIZE, SIZE, SIZE), "x")
    assert (constant.low, constant.value, constant.high) == (0.5, 0.5, 0.5)


def test_what_is_known_of_a_patient_does_not_help() -> None:
    """Each patient has a mark at a place and on a side of their own: seen in another scan, it would give the side away."""
    generator = torch.Generator().manual_seed(4)
    volumes = noise(160, 4)
    for patient in range(40):
        x, y, z = torch.randint(0, SIZE - 2, (3,), generator=generator).tolist()
        volumes[4 * patient : 4 * patient + 4, :, x : x + 3, y : y + 3, z : z + 3] += 2.0
    patients = [str(number // 4) for number in range(160)]
    assert told(volumes, "x").low > 0.6  # where scans of a patient count as strangers
    share = told(volumes, "x", patients)
    assert share.low <= 0.5 <= share.high


def test_of_a_few_patients_nothing_is_said() -> None:
    volumes = noise(30, 5)
    with pytest.raises(ValueError, match=f"at least {FEWEST} patients, found 9"):
        told(volumes, "x", [str(number % 9) for number in range(30)])
