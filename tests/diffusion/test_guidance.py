"""Guidance: its formula, interval and rescaling on denoisers known in closed form, one call each, refusals."""

import math

import pytest
import torch

from medsynth.diffusion.angle import from_flow_time, per_sample
from medsynth.diffusion.guidance import Guidance, guided, plan
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
    denoise = guided(Denoiser(network, Objective({"kind": "x0"})), conditions, Guidance(scales))
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


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("scales", [0.0, 1.0, 2.5, {"a": 3.0}, {"a": 0.0, "b": 4.0}])
def test_weights_sum_to_one(scales, rescale):
    assert math.fsum(weight for weight, _ in plan(GIVEN, Guidance(scales, rescale=rescale))) == pytest.approx(1)


class Wave(torch.nn.Module):
    """A clean latent (1 + a + 3 b) x + a, with 0 for a null: linear in x, so that its spread is known. Keeps its batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x, angle, conditions):
        self.batches.append(len(x))
        a, b = (per_sample(conditions[name].clamp_min(0).to(x.dtype), x) for name in ("a", "b"))
        return (1 + a + 3 * b) * x + a


LABELS = {"a": torch.tensor([1, 2, 0]), "b": torch.tensor([0, 1, 1])}
LATENTS = torch.randn(3, 2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def steered(guidance, times):
    network = Wave()
    denoise = guided(Denoiser(network, Objective({"kind": "x0"})), LABELS, guidance)
    return denoise(LATENTS, from_flow_time(torch.as_tensor(times).expand(3))), network.batches


UNGUIDED = steered(Guidance(), 0.5)[0]


@pytest.mark.parametrize("scales", [0.0, 3.0, {"a": 3.0, "b": 0.5}])
@pytest.mark.parametrize(
    ("time", "acts"), [(0.0, False), (0.2, False), (0.25, True), (0.5, True), (0.75, True), (0.8, False), (1.0, False)]
)
def test_outside_its_interval_guidance_neither_acts_nor_costs(scales, time, acts):
    out, batches = steered(Guidance(scales, interval=(0.25, 0.75), rescale=0.5), time)
    everywhere, all_batches = steered(Guidance(scales, rescale=0.5), time)
    assert torch.equal(out, everywhere if acts else UNGUIDED)
    assert batches == (all_batches if acts else [3])


@pytest.mark.parametrize("time", [0.0, 1e-6, 0.5, 1.0])
def test_by_default_guidance_acts_at_every_level(time):
    assert not torch.equal(steered(Guidance(3.0), time)[0], UNGUIDED)


def test_each_sample_of_a_batch_has_its_own_level():
    mixed, _ = steered(Guidance(3.0, interval=(0.4, 0.6)), [0.5, 0.9, 0.5])
    inside, _ = steered(Guidance(3.0), 0.5)
    assert torch.equal(mixed[1], UNGUIDED[1])
    assert torch.equal(mixed[::2], inside[::2])


@pytest.mark.parametrize("scales", [0.0, 3.0, {"a": 3.0}, {"a": 0.5, "b": 2.0}])
def test_rescaling_takes_the_spread_of_the_unguided_latent(scales):
    spread = lambda latents: latents.std((1, 2, 3, 4))  # noqa: E731
    whole, half = (steered(Guidance(scales, rescale=share), 0.5)[0] for share in (1.0, 0.5))
    free, _ = steered(Guidance(scales), 0.5)
    torch.testing.assert_close(spread(whole), spread(UNGUIDED))
    torch.testing.assert_close(half, (whole + free) / 2)
    torch.testing.assert_close(
        whole / spread(whole)[:, None, None, None, None], free / spread(free)[:, None, None, None, None]
    )


@pytest.mark.parametrize("rescale", [0.3, 1.0])
@pytest.mark.parametrize("scales", [1.0, {}, {"a": 1.0, "b": 1.0}])
def test_where_nothing_is_guided_nothing_is_rescaled(scales, rescale):
    out, batches = steered(Guidance(scales, rescale=rescale), 0.5)
    assert torch.equal(out, UNGUIDED)
    assert batches == [3]


def test_the_measure_is_taken_of_all_conditions_even_where_they_weigh_nothing():
    assert steered(Guidance(0.0), 0.5)[1] == [3]
    assert steered(Guidance(0.0, rescale=0.5), 0.5)[1] == [6]


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (
            Guidance({"aa": 2.0}),
            r"guidance: expected one of the conditions a, b, found 'aa' \(did you mean a\?\)",
        ),
        (Guidance({"a": -1.0}), r"guidance\.a: expected a number that is 0 or larger, found -1"),
        (Guidance(math.nan), r"guidance: expected a number that is 0 or larger, found nan"),
        (Guidance(math.inf), "guidance"),
        (Guidance(interval=(0.5, 0.5)), r"guidance_interval: expected two rising .*, found \[0\.5, 0\.5\]"),
        (Guidance(interval=(0.2, 1.5)), "guidance_interval"),
        (Guidance(interval=(0.2, 0.5, 0.7)), "guidance_interval"),
        (Guidance(interval=(math.nan, 1.0)), "guidance_interval"),
        (Guidance(rescale=1.1), r"guidance_rescale: expected a number from 0 to 1, found 1\.1"),
    ],
)
def test_wrong_guidance_is_refused(guidance, message):
    with pytest.raises(ConfigError, match=message):
        guided(Denoiser(Sum(), Objective({"kind": "x0"})), GIVEN, guidance)
