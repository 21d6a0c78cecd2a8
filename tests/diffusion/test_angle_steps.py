"""The house's own steps against the papers' formulas, against diffusers, and at their ends."""

import itertools
import math

import pytest
import torch
from gaussian import MEAN, STD, exact, generators

from medsynth.diffusion.angle import NOISE
from medsynth.diffusion.angle_steps import dpm_solver_sde, heun
from medsynth.diffusion.scheduler_door import drive, read_walk
from medsynth.diffusion.schedulers import make_scheduler
from medsynth.seeding import torch_generator

EVEN = [NOISE * (1 - k / 12) for k in range(12)] + [0.0]


def start(dtype=torch.float64):
    return torch.randn(2, 1, 4, 3, 5, dtype=dtype, generator=torch_generator(1, "noise"))


def wavy(x, angle):
    """Some denoiser that is neither linear nor the same at every level."""
    return torch.tanh(1.3 * x) * torch.cos(angle.double()).reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("denoise", [exact, wavy])
def test_heun_is_the_papers_algorithm_one(denoise):
    """Karras 2022, algorithm 1 word for word, with s = cos and sigma = tan; it starts next to pure noise."""
    angles = [1.5, 1.2, 0.7, 0.65, 0.2, 0.0]
    s, ds = math.cos, lambda t: -math.sin(t)
    sigma, dsigma = math.tan, lambda t: 1 / math.cos(t) ** 2

    def derivative(x, t):
        clean = denoise(x, torch.full((len(x),), t, dtype=torch.float32))
        return (dsigma(t) / sigma(t) + ds(t) / s(t)) * x - dsigma(t) * s(t) / sigma(t) * clean

    x = start()
    for t, after in itertools.pairwise(angles):
        d = derivative(x, t)
        ahead = x + (after - t) * d
        x = x + (after - t) * (d / 2 + derivative(ahead, after) / 2) if sigma(after) != 0 else ahead
    torch.testing.assert_close(heun(denoise, start(), angles), x)


def test_heun_is_of_second_order():
    def error(steps):
        pair = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
        out = heun(exact, pair, [NOISE * (1 - k / steps) for k in range(steps)] + [0.0]).flatten()
        return abs((out[1] - out[0]).item() / STD - 1)

    errors = [error(steps) for steps in (20, 40, 80, 160)]
    assert all(3.2 < earlier / later < 4.8 for earlier, later in itertools.pairwise(errors)), errors


def test_heun_turns_pure_noise_into_the_mean_where_there_is_nothing_else():
    out = heun(lambda x, angle: torch.full_like(x, MEAN), start(), EVEN)
    torch.testing.assert_close(out, torch.full_like(out, MEAN), rtol=0, atol=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("denoise", [exact, wavy])
def test_the_sde_solver_takes_the_steps_of_diffusers(denoise, shift):
    scheduler = make_scheduler("dpm_solver++_sde", 20, shift=shift)
    walk = read_walk(scheduler)
    noise, made = start(torch.float32), generators(2)
    theirs = drive(scheduler, denoise, noise * 1.0, generators(2))

    def fresh():
        return torch.stack([torch.randn(noise.shape[1:], generator=generator) for generator in made])

    ours = dpm_solver_sde(denoise, noise, [*walk.angles, walk.end], fresh)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_the_sde_solver_starts_at_pure_noise_and_ends_at_the_clean_latent():
    drawn, seen = [], []

    def fresh():
        drawn.append(torch.randn(2, 1, 4, 3, 5, dtype=torch.float64, generator=torch_generator(len(drawn), "more")))
        return drawn[-1]

    def denoise(x, angle):
        seen.append((x, wavy(x, angle)))
        return seen[-1][1]

    out = dpm_solver_sde(denoise, start(), EVEN, fresh)
    assert len(drawn) == len(EVEN) - 2
    assert torch.equal(out, seen[-1][1])
    # Nothing of pure noise is kept: after one step there is what it was taken for, and noise that is new.
    expected = math.cos(EVEN[1]) * seen[0][1] + math.sin(EVEN[1]) * drawn[0]
    torch.testing.assert_close(seen[1][0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept(dtype):
    x = start(dtype)
    still = lambda x, angle: x / 2  # noqa: E731
    assert heun(still, x, EVEN).dtype == dpm_solver_sde(still, x, EVEN, lambda: torch.zeros_like(x)).dtype == dtype
