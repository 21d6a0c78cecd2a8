"""Samplers against theory (the exact score of Gaussian data), against diffusers' own loops, and against their counts."""

import itertools
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from gaussian import MEAN, STD, exact, generators, law

from medsynth.diffusion import schedulers
from medsynth.diffusion.angle import per_sample, to_flow_time
from medsynth.diffusion.guidance import Guidance, guided
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.diffusion.samplers import SAMPLERS, STOCHASTIC, TWO_PER_STEP, evaluations_used, sample
from medsynth.diffusion.scheduler_door import drive
from medsynth.diffusion.schedulers import SPREAD
from medsynth.errors import ConfigError
from medsynth.seeding import torch_generator

COUNTS = (25, 30, 50, 60, 75, 100, 200, 333, 400)
"""Among them 30, 60, 75 and 333, which do not divide 1000."""
FEW = {"lms", "sa_solver"}
"""At hundreds of steps their coefficients, computed one by one, take seconds."""
FIRST_ORDER = {
    "ddpm", "ddim", "euler", "euler_ancestral", "edm_euler", "flow_euler", "flow_euler_ancestral"
}  # fmt: skip
HIGH = {"dpm_solver++_sde", "angle_dpm_solver++_sde", "sa_solver", "kdpm2_ancestral", "heun"}
"""Second order with noise, or in sigma: a larger error than the others of second order, which falls as fast."""


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_score(sampler):
    errors = {}
    for evaluations in COUNTS:
        if sampler in FEW and evaluations > 100:
            continue
        mean, std = law(sampler, evaluations)
        assert mean == pytest.approx(MEAN, rel=0.02), evaluations
        errors[evaluations] = abs(std / STD - 1)
    rounding = 2e-3 if sampler in HIGH or sampler == "kdpm2" else 2e-4  # the former cross zero
    assert all(later < earlier + rounding for earlier, later in itertools.pairwise(errors.values())), errors
    assert errors[25] < (0.13 if sampler in FIRST_ORDER else 0.09 if sampler in HIGH else 0.02), errors
    assert errors[100] < (0.037 if sampler in FIRST_ORDER else 0.006 if sampler in HIGH else 0.0015), errors
    if sampler not in FEW:
        assert errors[400] < (0.0095 if sampler in FIRST_ORDER else 0.0006 if sampler in HIGH else 2.5e-4), errors


MODES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Powers of a latent's modes, from fine texture to large shapes, of which white data has only 1."""


def over_modes(sampler, evaluations):
    """Root mean square over the modes of the relative error of the standard deviation."""
    stds = [math.sqrt(power) for power in MODES]
    return math.sqrt(sum((law(sampler, evaluations, 2.0, std)[1] / std - 1) ** 2 for std in stds) / len(stds))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_score_over_modes_of_very_different_power(sampler, monkeypatch):
    spread = over_modes(sampler, 30)
    assert spread < (0.15 if sampler in FIRST_ORDER else 0.12 if sampler in HIGH else 0.035), spread
    monkeypatch.setattr(schedulers, "SPREAD", 1.0)
    even = over_modes(sampler, 30)
    if sampler == "sa_solver":  # needs levels that lie close together where it adds noise
        assert spread < 1.25 * even
    else:
        assert spread < (0.85 if sampler in FIRST_ORDER or sampler in HIGH else 0.6) * even, even


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_score_on_volumes(sampler):
    """With noise drawn as it is in use; the standard error of the standard deviation is 0.3 %."""
    noise = torch.randn(16, 1, 16, 16, 16, generator=torch_generator(2, "noise"))
    out = sample(exact, noise, sampler, 50, generators(16))
    assert out.shape == noise.shape
    mean, std = law(sampler, 50)
    assert out.mean().item() == pytest.approx(mean, abs=0.012)
    assert out.std().item() == pytest.approx(std, rel=0.015)
    kept = torch.corrcoef(torch.stack([out.flatten(), noise.flatten()]))[0, 1]
    if sampler in STOCHASTIC:
        assert abs(kept) < 0.25, "what is drawn on the way counts for more than the start"
    else:
        assert kept > 0.9999


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("evaluations", [2, 3, 5, 14, 15, 30, 333, 1000])
def test_evaluations_used_is_what_is_called_and_never_more(sampler, evaluations):
    if sampler in FEW and evaluations > 300:
        pytest.skip("slow, and counted like the others")
    asked = []

    def count(x, angle):
        asked.append(angle[0].item())
        return exact(x, angle)

    out = sample(count, torch.zeros(1, 1, 2, 2, 2), sampler, evaluations, generators(1))
    assert bool(out.isfinite().all())
    assert len(asked) == evaluations_used(sampler, evaluations) <= evaluations
    assert evaluations_used(sampler, evaluations) >= evaluations - 1
    assert all(later <= earlier + 1e-3 for earlier, later in itertools.pairwise(asked)), "noise never rises"
    assert asked[0] > 1.55
    assert len(set(asked)) >= math.ceil(len(asked) / 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_even_flow_times_stretched_and_moved_by_the_shift(sampler, shift):
    asked = []

    def note(x, angle):
        asked.append(angle[0].item())
        return exact(x, angle)

    sample(note, torch.zeros(1, 1, 2, 2, 2), sampler, 21, generators(1), shift=shift)
    levels = sorted(set(asked[::2] if sampler in TWO_PER_STEP else asked))
    times = to_flow_time(torch.tensor(levels, dtype=torch.float64))
    even = torch.arange(1, len(times) + 1, dtype=torch.float64) / len(times)
    top = 1.0 if sampler.startswith(("flow", "angle")) else 80 / 81
    signal, noise = (1 - even) ** SPREAD, shift * even**SPREAD
    torch.testing.assert_close(times, top * noise / (signal + noise), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shifted_walks_still_reach_the_data(sampler):
    mean, std = law(sampler, 100 if sampler in FEW else 200, shift=3.0)
    assert mean == pytest.approx(MEAN, rel=0.02)
    assert std == pytest.approx(STD, rel=0.04)


def elementwise(x, angle):
    return torch.tanh(0.7 * x) * per_sample(torch.cos(angle), x)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch_mates(sampler):
    noise = torch.randn(3, 2, 5, 3, 7, generator=torch_generator(3, "noise"))
    together = sample(elementwise, noise, sampler, 20, generators(3))
    for i in range(3):
        alone = sample(elementwise, noise[i : i + 1], sampler, 20, generators(3)[i : i + 1])
        assert torch.equal(alone[0], together[i])
    backwards = sample(elementwise, noise.flip(0), sampler, 20, generators(3)[::-1])
    assert torch.equal(backwards.flip(0), together)


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_only_the_generators_decide_the_stochastic_part(sampler):
    noise = torch.randn(1, 1, 4, 4, 4, generator=torch_generator(4, "noise"))
    first = sample(exact, noise, sampler, 10, generators(1))
    torch.manual_seed(99)
    assert torch.equal(first, sample(exact, noise, sampler, 10, generators(1)))
    assert not torch.equal(first, sample(exact, noise, sampler, 10, generators(1, seed=1)))


def test_the_others_draw_nothing():
    noise = torch.randn(1, 1, 4, 4, 4, generator=torch_generator(4, "noise"))
    for sampler in set(SAMPLERS) - set(STOCHASTIC):
        first, other = (sample(exact, noise, sampler, 10, generators(1, seed=seed)) for seed in (0, 1))
        assert torch.equal(first, other), sampler


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "flow_euler_ancestral"])
def test_no_sampler_mixes_devices(sampler):
    """The meta device refuses tensors of another one, as a GPU does. (The one left out reads its levels back from it.)"""
    out = sample(elementwise, torch.empty(2, 1, 3, 3, 3, device="meta"), sampler, 6, generators(2))
    assert out.device.type == "meta"


def test_ddim_of_diffusers_misses_the_trap_that_ours_avoids():
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, prediction_type="sample", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(400)
    pair = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
    out = drive(scheduler, exact, pair, generators(2)).flatten()
    assert (out[1] - out[0]).item() > 1.05 * STD
    assert law("ddim", 400)[1] == pytest.approx(STD, rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": "dpm_solver+"}, r"sampler: expected one of ddpm.*dpm_solver\+\+"),
        ({"evaluations": 1}, "evaluations: expected at least 2, found 1"),
        ({"generators": []}, r"generators: expected one per sample \(1\), found 0"),
    ],
)
def test_wrong_requests_are_refused(change, message):
    request = {"sampler": "ddim", "evaluations": 5, "generators": generators(1)} | change
    with pytest.raises(ConfigError, match=message):
        sample(exact, torch.zeros(1, 1, 2, 2, 2), **request)


class ExactNetwork(torch.nn.Module):
    """What a network of this objective would answer if it had learned the Gaussian data perfectly."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, x, angle, conditions):
        cos, sin = torch.cos(per_sample(angle, x)), torch.sin(per_sample(angle, x))
        clean = exact(x, angle)
        noise = (x - cos * clean) / sin.clamp_min(1e-6)
        return self.objective.target(clean, noise, angle)


@pytest.mark.parametrize("kind", ["flow", "epsilon", "v", "x0", "score"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_on_every_objective(kind, sampler):
    """The mean is off by what the schedule leaves of the data at its noisiest level (up to 3.5 %: Lin 2023)."""
    objective = Objective({"kind": kind})
    denoise = guided(Denoiser(ExactNetwork(objective), objective), {}, Guidance())
    noise = torch.randn(4, 1, 12, 12, 12, generator=torch_generator(0, "noise"))
    noise = (noise - noise.mean()) / noise.std()
    out = sample(denoise, noise, sampler, 100, generators(4))
    assert out.mean().item() == pytest.approx(MEAN, rel=0.08 if sampler in STOCHASTIC else 0.04)
    assert out.std().item() == pytest.approx(law(sampler, 100)[1], rel=0.05)
