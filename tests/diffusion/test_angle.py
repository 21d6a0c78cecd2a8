"""The noise angle against the conventions it stands for."""

import math

import pytest
import torch

from medsynth.diffusion import angle as A


def test_every_convention_is_the_house_one_times_a_scalar():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 64, generator=generator, dtype=torch.float64)
    phi = torch.linspace(0.01, A.NOISE - 0.01, 64, dtype=torch.float64)
    x = torch.cos(phi) * x0 + torch.sin(phi) * noise
    t, power, sigma = A.to_flow_time(phi), A.to_alpha_bar(phi), A.to_sigma(phi)
    torch.testing.assert_close((1 - t) * x0 + t * noise, x / (torch.cos(phi) + torch.sin(phi)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(power.sqrt() * x0 + (1 - power).sqrt() * noise, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x0 + sigma * noise, x / torch.cos(phi), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A.mix(x0[:, None], noise[:, None], phi), x[:, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("small", [0.0, 1e-12, 1e-6, 1e-3])
def test_no_digits_are_lost_at_the_ends(small):
    t = torch.tensor([small, 1 - small], dtype=torch.float64)
    phi = A.from_flow_time(t)
    torch.testing.assert_close(A.to_flow_time(phi), t, rtol=1e-14, atol=1e-16)
    assert phi[0].item() == pytest.approx(math.atan2(small, 1 - small), rel=1e-15)
    angles = torch.tensor([small, A.NOISE - small], dtype=torch.float64)
    torch.testing.assert_close(A.from_sigma(A.to_sigma(angles)), angles, rtol=1e-12, atol=1e-15)
    # 1 - cos^2 keeps half of the digits near 0: that is alpha_bar's own limit
    torch.testing.assert_close(A.from_alpha_bar(A.to_alpha_bar(angles)), angles, rtol=1e-8, atol=2e-8)


def test_the_ends_are_exact():
    assert A.from_flow_time(torch.tensor([0.0, 1.0])).tolist() == [0.0, pytest.approx(A.NOISE)]
    assert A.from_alpha_bar(torch.tensor([1.0, 0.0])).tolist() == [0.0, pytest.approx(A.NOISE)]
    assert A.from_sigma(torch.tensor([0.0, math.inf])).tolist() == [0.0, pytest.approx(A.NOISE)]


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_shift_is_the_shift_of_flow_times(factor):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = A.to_flow_time(A.shift(A.from_flow_time(t), factor))
    torch.testing.assert_close(shifted, factor * t / (1 + (factor - 1) * t), rtol=1e-12, atol=1e-12)
    assert shifted[0] == 0
    assert shifted[-1] == pytest.approx(1)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_stretch_raises_the_ratio_of_noise_to_signal_to_a_power(power):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    stretched = A.to_flow_time(A.stretch(A.from_flow_time(t), power))
    torch.testing.assert_close(stretched, t**power / (t**power + (1 - t) ** power), rtol=1e-12, atol=1e-12)
    assert stretched[0] == 0
    assert stretched[5] == pytest.approx(0.5)
    assert stretched[-1] == pytest.approx(1)
