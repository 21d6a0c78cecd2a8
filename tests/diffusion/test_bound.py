"""The variational bound: the entropy for the ideal denoiser of Gaussian data, and more for every other."""

import math

import pytest
import torch

from medsynth.config.denoiser import DiffusionObjective, FlowObjective
from medsynth.diffusion.angle import NOISE, per_sample
from medsynth.diffusion.bound import HIGHEST, LOWEST, bound_angles, variational_bound
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.seeding import torch_generator

SHAPE = (4, 6, 5, 4)
COUNT = 128


def ideal(mean, std):
    """The posterior mean of N(mean, std^2)."""

    def denoise(x, angle):
        cos, sin = torch.cos(per_sample(angle, x)), torch.sin(per_sample(angle, x))
        return mean + cos * std**2 / (cos**2 * std**2 + sin**2) * (x - cos * mean)

    return denoise


def gaussian(mean, std, count=COUNT, seed=1):
    return mean + std * torch.randn(count, *SHAPE, generator=torch_generator(seed, "data"))


def estimate(denoise, x0, lowest=LOWEST, highest=HIGHEST, seed=2):
    """Mean and standard error."""
    angles = bound_angles(len(x0), lowest, highest, torch_generator(seed, "angles"))
    noise = torch.randn(x0.shape, generator=torch_generator(seed, "noise"))
    bits = variational_bound(denoise, x0, noise, angles, lowest, highest)
    return float(bits.mean()), float(bits.std()) / math.sqrt(len(bits))


def entropy(std):
    return 0.5 * math.log2(2 * math.pi * math.e * std**2)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.3, 0.5), (-1.0, 2.0), (0.0, 0.1)])
def test_the_ideal_denoiser_reaches_the_entropy(mean, std):
    estimates = [estimate(ideal(mean, std), gaussian(mean, std, seed=seed), seed=seed) for seed in range(8)]
    average = sum(value for value, _ in estimates) / 8
    spread = math.sqrt(sum((value - average) ** 2 for value, _ in estimates) / 7 / 8)
    excess = math.tan(LOWEST) ** 2 / (2 * std**2) / math.log(2)  # what the reconstruction term is known to add
    assert average == pytest.approx(entropy(std) + excess, abs=4 * spread + 1e-3)
    assert spread < 0.02


def test_where_it_ends_matters_little():
    x0 = gaussian(0.0, 1.0)
    wide, _ = estimate(ideal(0.0, 1.0), x0)
    narrow, _ = estimate(ideal(0.0, 1.0), x0, math.atan(0.03), math.atan(30.0))
    assert wide == pytest.approx(narrow, abs=0.02)


@pytest.mark.parametrize(
    "other",
    [
        lambda x, angle: torch.zeros_like(x),
        lambda x, angle: 0.97 * ideal(0.3, 0.5)(x, angle),
        lambda x, angle: ideal(0.3, 0.5)(x, angle) + 0.03 * torch.sin(per_sample(angle, x)),
        ideal(0.3, 0.6),
        ideal(0.25, 0.5),
    ],
)
def test_any_other_denoiser_needs_more(other):
    x0 = gaussian(0.3, 0.5)
    best, _ = estimate(ideal(0.3, 0.5), x0)  # the same levels and noise, so that small differences show
    assert estimate(other, x0)[0] > best + 1e-4


def test_levels_are_even_and_in_no_order():
    angles = bound_angles(64, LOWEST, HIGHEST, torch_generator(0, "a")).double()
    place = torch.log(torch.sin(angles) / math.sin(HIGHEST)) / math.log(math.sin(LOWEST) / math.sin(HIGHEST))
    assert torch.equal((place.sort().values * 64).floor(), torch.arange(64).double())
    assert abs(float(torch.corrcoef(torch.stack([place, torch.arange(64).double()]))[0, 1])) < 0.5


def test_even_levels_estimate_it_better_than_even_log_ratios():
    """Against the obvious estimate: log r even between its ends, the integrand weighed by r."""
    x0, denoise = gaussian(0.0, 0.8, count=64), ideal(0.0, 0.8)

    def obvious(seed):
        generator = torch_generator(seed, "obvious")
        ends = [-2 * math.log(math.tan(angle)) for angle in (HIGHEST, LOWEST)]
        ratio = ends[0] + (ends[1] - ends[0]) * torch.rand(64, generator=generator, dtype=torch.float64)
        angles = torch.atan(torch.exp(-ratio / 2)).float()
        noise = torch.randn(x0.shape, generator=generator)
        shaped = per_sample(angles, x0)
        error = denoise(torch.cos(shaped) * x0 + torch.sin(shaped) * noise, angles) - x0
        weighed = torch.exp(ratio).float() * error.square().flatten(1).mean(1)
        return 0.5 * (ends[1] - ends[0]) * float(weighed.mean()) / math.log(2)

    ours = torch.tensor([estimate(denoise, x0, seed=seed)[0] for seed in range(12)])
    theirs = torch.tensor([obvious(seed) for seed in range(12)])
    constant = 0.5 * math.log2(2 * math.pi * math.e * math.tan(LOWEST) ** 2)
    assert float(theirs.mean()) + constant == pytest.approx(float(ours.mean()), abs=4 * float(theirs.std()) / 12**0.5)
    assert float(ours.std()) < 0.2 * float(theirs.std())


OBJECTIVES = [
    FlowObjective(kind="flow"),
    *(DiffusionObjective(kind=kind) for kind in ("epsilon", "v", "x0", "score")),
    DiffusionObjective(kind="v", zero_terminal_snr=True),
]


class Perfect(torch.nn.Module):
    """Answers what its objective asks for, as the ideal denoiser would."""

    def __init__(self, objective, mean, std):
        super().__init__()
        self.objective, self.denoise = objective, ideal(mean, std)

    def forward(self, x, angle, conditions):
        x0 = self.denoise(x, angle)
        shaped = per_sample(angle, x)
        return self.objective.target(x0, (x - torch.cos(shaped) * x0) / torch.sin(shaped), angle)


@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: f"{s.kind}-{getattr(s, 'zero_terminal_snr', '')}")
def test_is_the_same_for_every_objective(settings):
    objective = Objective(settings)
    denoiser = Denoiser(Perfect(objective, 0.3, 0.5), objective)
    ends = max(objective.lowest, LOWEST), min(objective.highest, HIGHEST)
    assert 0 < ends[0] < ends[1] < NOISE
    value, error = estimate(lambda x, angle: denoiser.clean(x, angle, {}), gaussian(0.3, 0.5), *ends)
    assert value == pytest.approx(entropy(0.5), abs=0.02 + 4 * error)
