"""Diffusers' schedulers through the door against diffusers' own loops, and the schedulers that are not offered."""

import inspect
import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from gaussian import exact, generators

from medsynth.diffusion.angle import from_flow_time
from medsynth.diffusion.scheduler_door import Convention, drive, read_walk
from medsynth.errors import ConfigError
from medsynth.seeding import torch_generator

SD = {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 1.2e-2}
NATIVE = {
    "ddpm": lambda p: DDPMScheduler(**SD, prediction_type=p, clip_sample=False),
    "ddim": lambda p: DDIMScheduler(**SD, prediction_type=p, clip_sample=False),
    "pndm": lambda p: PNDMScheduler(**SD, prediction_type=p),
    "pndm without Runge-Kutta": lambda p: PNDMScheduler(**SD, prediction_type=p, skip_prk_steps=True),
    "euler": lambda p: EulerDiscreteScheduler(**SD, prediction_type=p),
    "euler trailing": lambda p: EulerDiscreteScheduler(**SD, prediction_type=p, timestep_spacing="trailing"),
    "euler ancestral": lambda p: EulerAncestralDiscreteScheduler(**SD, prediction_type=p),
    "heun": lambda p: HeunDiscreteScheduler(**SD, prediction_type=p),
    "kdpm2": lambda p: KDPM2DiscreteScheduler(**SD, prediction_type=p),
    "kdpm2 ancestral": lambda p: KDPM2AncestralDiscreteScheduler(**SD, prediction_type=p),
    "lms": lambda p: LMSDiscreteScheduler(**SD, prediction_type=p),
    "deis": lambda p: DEISMultistepScheduler(**SD, prediction_type=p),
    "dpm_solver": lambda p: DPMSolverMultistepScheduler(
        **SD, prediction_type=p, algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "dpm_solver++": lambda p: DPMSolverMultistepScheduler(**SD, prediction_type=p),
    "dpm_solver++ sde": lambda p: DPMSolverMultistepScheduler(
        **SD, prediction_type=p, algorithm_type="sde-dpmsolver++"
    ),
    "dpm_solver++ singlestep": lambda p: DPMSolverSinglestepScheduler(**SD, prediction_type=p, lower_order_final=True),
    "sa_solver": lambda p: SASolverScheduler(**SD, prediction_type=p),
    "unipc": lambda p: UniPCMultistepScheduler(**SD, prediction_type=p),
    "unipc karras": lambda p: UniPCMultistepScheduler(**SD, prediction_type=p, use_karras_sigmas=True),
    "edm euler": lambda p: EDMEulerScheduler(prediction_type=p, sigma_data=1.0),
    "edm dpm_solver++": lambda p: EDMDPMSolverMultistepScheduler(prediction_type=p, sigma_data=1.0),
    "ipndm": lambda p: IPNDMScheduler(),
}
ONLY = {"pndm": "epsilon", "edm": "v_prediction", "ipndm": "v_prediction"}
"""EDM's and IPNDM know no other; PNDM averages v across noise levels, which is no method at all."""
OURS = {**ONLY, "euler ancestral": "v_prediction", "kdpm2": "v_prediction"}
"""What the door is asked for: the clean latent where a scheduler takes it."""


def of(table, name, otherwise):
    return next((kind for start, kind in table.items() if name.startswith(start)), otherwise)


LOOPS = [(name, kind) for name in NATIVE for kind in ("epsilon", "v_prediction") if of(ONLY, name, kind) == kind]


def draws(scheduler):
    return "generator" in inspect.signature(scheduler.step).parameters


def native_loop(scheduler, predict, noise):
    """The loop of diffusers' own pipelines, with a model that predicts what the scheduler was told it does."""
    x = noise * float(scheduler.init_noise_sigma)
    stream = generators(1)[0]
    walk = read_walk(scheduler)
    for timestep, angle in zip(scheduler.timesteps, walk.angles, strict=True):
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        if walk.convention is Convention.EXPLODING:
            factor = float(scheduler.scale_model_input(torch.ones(1), timestep))
            assert math.cos(angle) == pytest.approx(factor, rel=1e-5), "the scheduler's own noise level"
        extra = {"generator": stream} if draws(scheduler) else {}
        x = scheduler.step(predict(seen, angle), timestep, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.parametrize(("name", "kind"), LOOPS)
def test_through_the_door_as_in_diffusers_own_loop(name, kind):
    noise = torch.randn(1, 1, 6, 6, 6, generator=torch_generator(5, "noise"))

    def predict(x, angle):
        cos, sin = math.cos(angle), math.sin(angle)
        clean = exact(x, torch.tensor([angle]))
        eps = (x - cos * clean) / sin
        return eps if kind == "epsilon" else cos * eps - sin * clean

    scheduler = NATIVE[name](kind)
    scheduler.set_timesteps(25)
    theirs = native_loop(scheduler, predict, noise)
    scheduler = NATIVE[name](of(OURS, name, "sample"))
    scheduler.set_timesteps(25)
    end = math.cos(read_walk(scheduler).end) if read_walk(scheduler).convention is Convention.PRESERVING else 1.0
    ours = drive(scheduler, exact, noise, generators(1))
    torch.testing.assert_close(ours, theirs / end, rtol=2e-3, atol=3e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "kind",
    [
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        LTXEulerAncestralRFScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_flow_through_the_door_as_in_diffusers_own_loop(kind, shift):
    solver = kind in (DPMSolverMultistepScheduler, UniPCMultistepScheduler)
    options = (
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        if solver
        else {"shift": shift}
    )
    if kind is LTXEulerAncestralRFScheduler:
        options = {}  # its `shift` is that of flow-match Euler, by a configuration of its own

    def ready():
        scheduler = kind(**options)
        scheduler.set_timesteps(25)
        if kind is LTXEulerAncestralRFScheduler:
            scheduler.sigmas = shift * scheduler.sigmas / (1 + (shift - 1) * scheduler.sigmas)
        return scheduler

    noise = torch.randn(1, 1, 6, 6, 6, generator=torch_generator(6, "noise"))
    scheduler, x, stream = ready(), noise, generators(1)[0]
    times = scheduler.sigmas[:-1].tolist()
    scheduler.set_begin_index(0)
    for timestep, t in zip(scheduler.timesteps, times, strict=True):
        angle = from_flow_time(torch.tensor([t], dtype=torch.float64))
        clean = exact(x / math.hypot(t, 1 - t), angle)
        extra = {"generator": stream} if draws(scheduler) else {}
        x = scheduler.step((x - clean) / t, timestep, x, return_dict=False, **extra)[0]
    end = 1 - scheduler.sigmas[-1].item()
    torch.testing.assert_close(drive(ready(), exact, noise, generators(1)), x / end, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler])
def test_flow_sigmas_change_the_levels_and_not_the_method(kind):
    """On the same levels these solvers take the same steps in either convention, so that one name is enough."""
    noise = torch.randn(1, 1, 6, 6, 6, generator=torch_generator(6, "noise"))
    flow, plain = kind(use_flow_sigmas=True, prediction_type="sample"), kind(prediction_type="sample")
    flow.set_timesteps(20)
    plain.set_timesteps(20)
    flow.sigmas = torch.cat([torch.arange(20, 0, -1) / 20 * 0.99, torch.zeros(1)])
    plain.sigmas = flow.sigmas / (1 - flow.sigmas)
    ours = drive(flow, exact, noise, generators(1))
    theirs = drive(plain, exact, noise / math.hypot(0.99, 0.01), generators(1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (LCMScheduler(), "expected one of DDPMScheduler, .*, found LCMScheduler"),
        (EDMEulerScheduler(), "EDM's with sigma_data 1 and v_prediction"),
        (EDMEulerScheduler(sigma_data=1.0), "EDM's with sigma_data 1 and v_prediction"),
    ],
)
def test_a_scheduler_that_the_door_does_not_know_is_refused(scheduler, message):
    scheduler.set_timesteps(10)
    with pytest.raises(ConfigError, match=message):
        drive(scheduler, exact, torch.zeros(1, 1, 2, 2, 2), generators(1))
