"""Samplers against theory (the exact score of Gaussian data), against diffusers' own loops, and against their counts."""

import itertools
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from medsynth.diffusion.angle import from_flow_time, per_sample, to_flow_time
from medsynth.diffusion.guidance import Guidance, guided
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.diffusion.samplers import SAMPLERS, evaluations_used, make_scheduler, sample
from medsynth.diffusion.scheduler_door import drive, read_walk
from medsynth.errors import ConfigError
from medsynth.seeding import torch_generator

MEAN, STD = 0.3, 0.5
COUNTS = (25, 50, 100, 200, 400)
UNEVEN = (30, 60, 75, 333)
DETERMINISTIC = tuple(name for name in SAMPLERS if name != "ddpm")


def exact(x, angle):
    """E[x0 | x] for data N(MEAN, STD^2), of which x = cos x0 + sin noise."""
    angle = per_sample(angle, x).double()
    cos, sin = torch.cos(angle), torch.sin(angle)
    gain = cos * STD**2 / (cos**2 * STD**2 + sin**2)
    return (MEAN + gain * (x - cos * MEAN)).to(x.dtype)


def generators(count, seed=0):
    return [torch_generator(seed, "sampler", i) for i in range(count)]


def moments(sampler, evaluations):
    """Mean and standard deviation of the sampler's law.

    With the exact score every step is affine in x: a sampler without noise of its own maps N(0, 1) to N(b, a^2), read
    exactly from the images of 0 and 1. The stochastic one is measured on 2^16 voxels (standard error of its std 0.28 %).
    """
    if sampler in DETERMINISTIC:
        out = sample(
            exact, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), sampler, evaluations, generators(2)
        ).flatten()
        return out[0].item(), (out[1] - out[0]).item()
    noise = torch.randn(16, 1, 16, 16, 16, generator=torch_generator(1, "noise"))
    out = sample(exact, noise, sampler, evaluations, generators(16))
    return out.mean().item(), out.std().item()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_score(sampler):
    errors = {}
    for evaluations in sorted(COUNTS + UNEVEN):
        mean, std = moments(sampler, evaluations)
        assert mean == pytest.approx(MEAN, rel=0.02), evaluations
        errors[evaluations] = abs(std / STD - 1)
    in_order = list(errors.values())
    noise = 0.006 if sampler == "ddpm" else 2e-4  # sampling error; float32
    assert all(later < earlier + noise for earlier, later in itertools.pairwise(in_order)), errors
    assert errors[400] < 0.03, errors
    assert errors[25] < (0.13 if sampler in ("ddpm", "ddim", "euler", "flow_euler") else 0.02), errors
    if sampler == "flow_heun":
        assert errors[50] < 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_exact_score_on_volumes(sampler):
    noise = torch.randn(16, 1, 16, 16, 16, generator=torch_generator(2, "noise"))
    out = sample(exact, noise, sampler, 50, generators(16))
    assert out.shape == noise.shape
    assert out.mean().item() == pytest.approx(MEAN, rel=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.08)
    kept = torch.corrcoef(torch.stack([out.flatten(), noise.flatten()]))[0, 1]
    assert abs(kept) < 0.05 if sampler == "ddpm" else kept > 0.9999  # DDPM forgets where it started


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("evaluations", [2, 3, 5, 14, 15, 30, 50, 333, 1000])
def test_evaluations_used_is_what_is_called_and_never_more(sampler, evaluations):
    asked = []

    def count(x, angle):
        asked.append(angle[0].item())
        return exact(x, angle)

    out = sample(count, torch.zeros(1, 1, 2, 2, 2), sampler, evaluations, generators(1))
    assert bool(out.isfinite().all())
    assert len(asked) == evaluations_used(sampler, evaluations) <= evaluations
    assert evaluations_used(sampler, evaluations) >= evaluations - 1
    assert all(later <= earlier for earlier, later in itertools.pairwise(asked)), "noise never rises"
    assert asked[0] > 1.55
    assert len(set(asked)) >= math.ceil(len(asked) / 2)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_levels_are_even_flow_times_moved_by_the_shift(sampler, shift):
    walk = read_walk(make_scheduler(sampler, 21, shift=shift))
    times = to_flow_time(torch.tensor(sorted(set(walk.angles)), dtype=torch.float64))
    steps = len(times)
    even = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    top = 1.0 if sampler.startswith("flow") else 80 / 81
    torch.testing.assert_close(times, top * shift * even / (1 + (shift - 1) * even), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shifted_walks_still_reach_the_data(sampler):
    out = sample(
        exact, torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), sampler, 400, generators(2), shift=3.0
    ).flatten()
    if sampler in DETERMINISTIC:
        assert out[0].item() == pytest.approx(MEAN, rel=0.02)
        assert (out[1] - out[0]).item() == pytest.approx(STD, rel=0.03)


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


def test_only_the_generators_decide_the_stochastic_part():
    noise = torch.randn(1, 1, 4, 4, 4, generator=torch_generator(4, "noise"))
    first = sample(exact, noise, "ddpm", 10, generators(1))
    torch.manual_seed(99)
    assert torch.equal(first, sample(exact, noise, "ddpm", 10, generators(1)))
    assert not torch.equal(first, sample(exact, noise, "ddpm", 10, generators(1, seed=1)))


SD = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}
NATIVE = {
    "ddpm": lambda p: DDPMScheduler(**SD, prediction_type=p, clip_sample=False),
    "ddim": lambda p: DDIMScheduler(**SD, prediction_type=p, clip_sample=False),
    "pndm": lambda p: PNDMScheduler(**SD, prediction_type=p),
    "pndm without Runge-Kutta": lambda p: PNDMScheduler(**SD, prediction_type=p, skip_prk_steps=True),
    "euler": lambda p: EulerDiscreteScheduler(**SD, prediction_type=p),
    "euler trailing": lambda p: EulerDiscreteScheduler(**SD, prediction_type=p, timestep_spacing="trailing"),
    "heun": lambda p: HeunDiscreteScheduler(**SD, prediction_type=p),
    "dpm_solver": lambda p: DPMSolverMultistepScheduler(
        **SD, prediction_type=p, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "dpm_solver++": lambda p: DPMSolverMultistepScheduler(**SD, prediction_type=p),
    "unipc": lambda p: UniPCMultistepScheduler(**SD, prediction_type=p),
}


def noise_at(x, angle):
    cos, sin = math.cos(angle), math.sin(angle)
    return (x - cos * exact(x, torch.tensor([angle]))) / sin


def native_loop(scheduler, predict, noise, scale):
    """The loop of diffusers' own pipelines, with a model that predicts what the scheduler was told it does."""
    x = noise * scale
    stream = generators(1)[0]
    walk = iter(read_walk(scheduler).angles)
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        extra = {"generator": stream} if isinstance(scheduler, DDPMScheduler) else {}
        x = scheduler.step(predict(seen, next(walk)), timestep, x, return_dict=False, **extra)[0]
    return x


# The PNDM scheduler averages v across noise levels, which is no method at all: epsilon alone.
LOOPS = [
    (name, kind)
    for name in NATIVE
    for kind in ("epsilon", "v_prediction")
    if kind == "epsilon" or not name.startswith("pndm")
]


@pytest.mark.parametrize(("name", "kind"), LOOPS)
def test_through_the_door_as_in_diffusers_own_loop(name, kind):
    noise = torch.randn(1, 1, 6, 6, 6, generator=torch_generator(5, "noise"))

    def predict(x, angle):
        eps = noise_at(x, angle)
        clean = exact(x, torch.tensor([angle]))
        return eps if kind == "epsilon" else math.cos(angle) * eps - math.sin(angle) * clean

    scheduler = NATIVE[name](kind)
    scheduler.set_timesteps(25)
    theirs = native_loop(scheduler, predict, noise, float(scheduler.init_noise_sigma))
    scheduler = NATIVE[name]("epsilon" if name.startswith("pndm") else "sample")
    scheduler.set_timesteps(25)
    end = math.cos(read_walk(scheduler).end) if name == "dpm_solver" else 1.0
    ours = drive(scheduler, exact, noise, generators(1))
    torch.testing.assert_close(ours, theirs / end, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_through_the_door_as_in_diffusers_own_loop(kind, shift):
    noise = torch.randn(1, 1, 6, 6, 6, generator=torch_generator(6, "noise"))
    scheduler = kind(shift=shift)
    scheduler.set_timesteps(25)
    x = noise
    for timestep in scheduler.timesteps:
        t = timestep.item() / 1000
        angle = from_flow_time(torch.tensor([t], dtype=torch.float64))
        house = x / math.hypot(t, 1 - t)
        clean = exact(house, angle)
        x = scheduler.step((x - clean) / t, timestep, x, return_dict=False)[0]
    scheduler = kind(shift=shift)
    scheduler.set_timesteps(25)
    torch.testing.assert_close(drive(scheduler, exact, noise, generators(1)), x, rtol=1e-4, atol=1e-5)


def test_ddim_of_diffusers_misses_the_trap_that_ours_avoids():
    scheduler = DDIMScheduler(**SD, clip_sample=False, prediction_type="sample", timestep_spacing="trailing")
    scheduler.set_timesteps(400)
    pair = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1)
    out = drive(scheduler, exact, pair, generators(2)).flatten()
    assert (out[1] - out[0]).item() > 1.05 * STD
    assert moments("ddim", 400)[1] == pytest.approx(STD, rel=0.01)


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


def test_a_scheduler_that_the_door_does_not_know_is_refused():
    scheduler = DPMSolverSinglestepScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match="found DPMSolverSinglestepScheduler"):
        drive(scheduler, exact, torch.zeros(1, 1, 2, 2, 2), generators(1))


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
    assert out.mean().item() == pytest.approx(MEAN, rel=0.04 if sampler != "ddpm" else 0.08)
    assert out.std().item() == pytest.approx(STD, rel=0.05)
