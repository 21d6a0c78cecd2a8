"""Guidance: its formula on a denoiser that is known in closed form, one call each, refusals."""

import math

import pytest
import torch

from medsynth.diffusion.guidance import guided, plan
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.errors import ConfigError


class Sum(torch.nn.Module):
    """A clean latent that is a + 10 b + 100 a b of the conditions, with 0 for a null; counts its calls."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x, angle, conditions):
        self.batches.append(len(x))
        assert len(angle) == len(x)
        a = conditions["a"].clamp_min(0).float() if "a" in conditions else torch.zeros(len(x))
        b = conditions["b"].nan_to_num(0.0) if "b" in conditions else torch.zeros(len(x))
        return (a + 10 * b + 100 * a * b).reshape(-1, 1, 1, 1, 1).expand_as(x)


GIVEN = {"a": torch.tensor([1, 2]), "b": torch.tensor([0.5, math.nan])}


def clean(scales, conditions=GIVEN):
    network = Sum()
    denoise = guided(Denoiser(network, Objective({"kind": "x0"})), conditions, scales)
    out = denoise(torch.zeros(2, 1, 2, 2, 2), torch.full((2,), 0.7))
    assert len(network.batches) == 1, "one batched call per evaluation"
    return out[:, 0, 0, 0, 0].tolist(), network.batches[0] // 2


def value(a, b):
    return a + 10 * b + 100 * a * b


FULL = [value(1, 0.5), value(2, 0)]


@pytest.mark.parametrize(
    ("scales", "expected", "branches"),
    [
        (1.0, FULL, 1),
        (0.0, [0, 0], 1),
        (3.0, [3 * x for x in FULL], 2),
        ({}, FULL, 1),
        ({"a": 1.0, "b": 1.0}, FULL, 1),
        ({"a": 0.0}, [value(0, 0.5), 0], 1),
        ({"a": 3.0}, [FULL[0] + 2 * (FULL[0] - value(0, 0.5)), FULL[1] + 2 * FULL[1]], 2),
        ({"a": 3.0, "b": 1.0}, [FULL[0] + 2 * (FULL[0] - value(0, 0.5)), FULL[1] + 2 * FULL[1]], 2),
        (
            {"a": 3.0, "b": 2.0},
            [FULL[0] + 2 * (FULL[0] - value(0, 0.5)) + (FULL[0] - value(1, 0)), FULL[1] + 2 * FULL[1]],
            3,
        ),
    ],
)
def test_formula(scales, expected, branches):
    found, used = clean(scales)
    assert found == pytest.approx(expected, rel=1e-6)
    assert used == branches


def test_one_condition_means_the_same_either_way():
    only = {"a": GIVEN["a"]}
    assert clean(2.5, only)[0] == pytest.approx(clean({"a": 2.5}, only)[0])


def test_a_model_without_conditions_ignores_the_scale():
    assert clean(4.0, {}) == ([0, 0], 1)


@pytest.mark.parametrize("scales", [0.0, 1.0, 2.5, {"a": 3.0}, {"a": 0.0, "b": 4.0}])
def test_weights_sum_to_one(scales):
    assert math.fsum(weight for weight, _ in plan(GIVEN, scales)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"aa": 2.0}, r"guidance: expected one of the conditions a, b, found 'aa' \(did you mean a\?\)"),
        ({"a": -1.0}, r"guidance\.a: expected a number that is 0 or larger, found -1"),
        (math.nan, r"guidance: expected a number that is 0 or larger, found nan"),
        (math.inf, "guidance"),
    ],
)
def test_wrong_scales_are_refused(scales, message):
    with pytest.raises(ConfigError, match=message):
        plan(GIVEN, scales)
