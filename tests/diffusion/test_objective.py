"""Objectives: the way back undoes the target, schedules match their papers and diffusers, angles follow their law."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from pydantic import ValidationError
from scipy import stats

from medsynth.config.denoiser import DiffusionObjective, FlowObjective
from medsynth.diffusion.angle import NOISE, from_flow_time, mix, per_sample, to_alpha_bar, to_flow_time
from medsynth.diffusion.objective import Denoiser, Objective, alpha_bars

OBJECTIVES = [
    {"kind": "flow"},
    {"kind": "flow", "shift": 3.0, "logit_mean": 0.2},
    *(
        {"kind": kind, "schedule": schedule, "zero_terminal_snr": zero}
        for kind in ("epsilon", "v", "x0", "score")
        for schedule in ("linear", "scaled_linear", "cosine", "sigmoid")
        for zero in (False, True)
        if not (kind in ("epsilon", "score") and zero)
    ),
]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_clean_undoes_target_at_every_angle_of_training(settings):
    objective = Objective(settings)
    assert Objective(objective.to_json()).to_json() == objective.to_json()
    generator = torch.Generator().manual_seed(3)
    angles = torch.cat(
        [objective.sample_angles(61, generator, 1000), torch.tensor([objective.lowest, objective.highest])]
    )
    x0, noise = torch.randn(2, 63, 2, 3, 3, 3, generator=generator, dtype=torch.float64)
    angles = angles.double().clamp(objective.lowest, objective.highest)
    x = mix(x0, noise, angles)
    back = objective.clean(objective.target(x0, noise, angles), x, angles)
    torch.testing.assert_close(back, x0, rtol=1e-9, atol=1e-9)


def test_v_is_the_derivative_by_the_angle():
    x0, noise = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([[-1.1]], dtype=torch.float64)
    phi = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mix(x0, noise, phi).sum(), phi)
    assert slope.item() == pytest.approx(Objective({"kind": "v"}).target(x0, noise, phi).item())


def test_the_loss_of_flow_is_the_error_of_the_derivative_by_time():
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 9, 2, 2, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.1, 1, 9, dtype=torch.float64)
    angles, time = from_flow_time(t), per_sample(t, x0)
    on_the_line = torch.lerp(x0, noise, time)
    slope = (torch.lerp(x0, noise, time + 1e-6) - on_the_line) / 1e-6
    denoiser = Denoiser(Linear(torch.float64), Objective({"kind": "flow"}))
    found = denoiser.clean(mix(x0, noise, angles), angles, {})
    implied = (on_the_line - found) / time  # the velocity that leads from the clean latent found to here within t
    error = (implied - slope).square().flatten(1).mean(1)
    torch.testing.assert_close(denoiser.loss(x0, {}, angles, noise).double(), error, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("linear", {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 2e-2}),
        ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
        ("sigmoid", {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 2e-2}),
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_schedules_agree_with_diffusers(ours, theirs, zero):
    reference = DDPMScheduler(**theirs, rescale_betas_zero_snr=zero).alphas_cumprod.double()
    found = alpha_bars(ours, zero)
    torch.testing.assert_close(found, reference, rtol=2e-3, atol=2e-7)  # the reference accumulates in float32
    assert bool((found[1:] < found[:-1]).all())
    assert (found[-1].item() == 0) == zero
    assert found[0].item() == pytest.approx(reference[0].item(), rel=1e-5)


def test_flow_times_are_logit_normal_and_shifted():
    objective = Objective(FlowObjective(kind="flow", logit_mean=-0.3, logit_std=0.8, shift=2.5))
    angles = objective.sample_angles(20_000, torch.Generator().manual_seed(0), 5).double()
    assert angles.dtype == torch.float64
    assert angles.min() > 0
    assert angles.max() < NOISE
    logits = torch.logit(to_flow_time(angles))
    assert stats.kstest(logits.numpy(), stats.norm(-0.3 + math.log(2.5), 0.8).cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", ["flow", "v"])
def test_a_batch_sees_every_part_of_the_distribution_once_in_any_order(kind):
    objective = Objective({"kind": kind})
    edges = objective.sample_angles(40_000, torch.Generator().manual_seed(1), 100).sort().values[4999:-1:5000]
    generator = torch.Generator().manual_seed(0)
    parts = torch.stack([torch.bucketize(objective.sample_angles(8, generator, 100), edges) for _ in range(400)])
    assert (parts.sort(1).values == torch.arange(8)).float().mean() > 0.98  # the edges are those of a sample
    often = torch.stack([(parts == part).float().mean(0) for part in range(8)])
    assert (often - 1 / 8).abs().max() < 0.07


def test_automatic_shift_grows_with_the_latent_and_never_falls_below_two():
    objective = Objective({"kind": "flow"})
    assert [objective.shift(n) for n in (64, 16384, 65536, 262144)] == [2.0, 2.0, 4.0, 8.0]
    assert Objective({"kind": "flow", "shift": 3.0}).shift(64) == 3.0
    assert Objective({"kind": "v"}).shift(10**6) == 1.0
    few = objective.sample_angles(4000, torch.Generator().manual_seed(1), 4096)
    many = objective.sample_angles(4000, torch.Generator().manual_seed(1), 262144)
    torch.testing.assert_close(torch.tan(many), 4 * torch.tan(few), rtol=1e-3, atol=1e-5)


def test_shift_is_what_the_flow_scheduler_of_diffusers_calls_shift():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    t = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    from medsynth.diffusion.angle import shift

    torch.testing.assert_close(
        to_flow_time(shift(from_flow_time(t), 3.0)), scheduler.sigmas.double(), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_diffusion_angles_are_even_over_the_schedule(schedule):
    objective = Objective(DiffusionObjective(kind="v", schedule=schedule))
    angles = objective.sample_angles(20_000, torch.Generator().manual_seed(0), 100).double()
    levels = alpha_bars(schedule, False).flip(0)
    place = torch.searchsorted(levels, to_alpha_bar(angles)) / 1000
    assert stats.kstest(place.numpy(), "uniform").statistic < 0.012
    assert angles.min() >= objective.lowest - 1e-7
    assert angles.max() <= objective.highest + 1e-7


def test_noise_prediction_is_never_asked_where_it_says_nothing():
    assert Objective({"kind": "epsilon", "schedule": "cosine"}).highest <= math.atan(100)
    assert Objective({"kind": "v", "schedule": "cosine", "zero_terminal_snr": True}).highest == NOISE


def test_sampling_is_deterministic_in_the_generator():
    draw = lambda: Objective({"kind": "flow"}).sample_angles(8, torch.Generator().manual_seed(5), 100)  # noqa: E731
    assert torch.equal(draw(), draw())


def test_weights():
    angle = torch.tensor([1e-3, math.atan(1 / math.sqrt(3)), math.pi / 4, 1.5, NOISE])
    velocity = torch.tensor([1.002, 1 + math.sqrt(3) / 2, 2.0, 1 + math.sin(3), 1.0])
    torch.testing.assert_close(Objective({"kind": "flow"}).weight(angle), velocity, rtol=0, atol=1e-5)
    assert torch.equal(Objective({"kind": "v"}).weight(angle), torch.ones(5))
    weight = Objective({"kind": "x0"}).weight(angle)
    torch.testing.assert_close(weight, torch.tensor([5.0, 3.0, 1.0, 1.0, 1.0]), rtol=1e-4, atol=1e-4)


def test_an_objective_that_is_none_is_refused():
    with pytest.raises(ValidationError):
        Objective({"kind": "energy"})
    with pytest.raises(ValidationError):
        Objective({"kind": "epsilon", "zero_terminal_snr": True})


class Linear(torch.nn.Module):
    """Answers gain * x and remembers what it was asked."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))

    def forward(self, x, angle, conditions):
        self.asked = (x.dtype, angle, conditions)
        return self.gain * x


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_loss_is_the_weighted_squared_error_per_sample(settings):
    objective = Objective(settings)
    denoiser = Denoiser(Linear(), objective)
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 2, 2, 2, 2, generator=generator)
    angles = objective.sample_angles(3, generator, 8)
    loss = denoiser.loss(x0, {}, angles, noise)
    x = mix(x0, noise, angles)
    for i in range(3):
        target = objective.target(x0[i : i + 1], noise[i : i + 1], angles[i : i + 1])
        expected = objective.weight(angles)[i] * ((0.5 * x[i : i + 1] - target) ** 2).mean()
        assert loss[i].item() == pytest.approx(expected.item(), rel=1e-5)
    loss.sum().backward()
    assert denoiser.network.gain.grad is not None


def test_denoiser_keeps_to_trained_angles_and_to_the_type_of_its_weights():
    objective = Objective({"kind": "epsilon"})
    network = Linear(torch.bfloat16)
    x = torch.ones(2, 1, 2, 2, 2)
    clean = Denoiser(network, objective).clean(x, torch.tensor([0.0, NOISE]), {"a": torch.zeros(2)})
    dtype, angle, conditions = network.asked
    assert dtype == torch.bfloat16
    assert clean.dtype == torch.float32
    assert angle.tolist() == pytest.approx([objective.lowest, objective.highest])
    assert list(conditions) == ["a"]
    assert bool(clean.isfinite().all())


@pytest.mark.parametrize("kind", ["epsilon", "v", "x0", "score"])
def test_min_snr_weighs_the_error_of_the_clean_latent_alike_whatever_is_predicted(kind):
    """The same mistake in the clean latent costs the same: min(ratio, 5) times its square."""
    objective = Objective({"kind": kind, "weighting": "min_snr"})
    angle = torch.tensor([0.1, 0.4, 0.8, 1.3], dtype=torch.float64)
    x0, noise = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = mix(x0, noise, angle)
    target = objective.target(x0, noise, angle)
    mistake = objective.clean(target + 0.01, x, angle) - x0
    cost = objective.weight(angle) * 0.01**2
    ratio = to_alpha_bar(angle) / (1 - to_alpha_bar(angle))
    torch.testing.assert_close(cost, ratio.clamp_max(5) * mistake.square().mean(1))


def test_the_score_is_the_slope_of_the_log_density_of_noisy_data():
    """For a single clean value the density of x is a Gaussian, whose score is known."""
    angle = torch.tensor([0.7], dtype=torch.float64)
    x0, noise = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[-0.9]], dtype=torch.float64)
    x = mix(x0, noise, angle).requires_grad_()
    density = torch.distributions.Normal(torch.cos(angle) * 0.4, torch.sin(angle))
    (slope,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(Objective({"kind": "score"}).target(x0, noise, angle), slope)
    torch.testing.assert_close(Objective({"kind": "score"}).weight(angle), torch.sin(angle) ** 2)
