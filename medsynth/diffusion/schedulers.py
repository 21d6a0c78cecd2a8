"""Diffusers' schedulers on the house's noise levels.

The levels become the scheduler's own table (`alphas_cumprod`, one entry per level, or its `sigmas`), so that its timesteps
are 0, 1, 2, ... at any number of steps: no rounding to a grid of 1000, no disagreement between the timesteps walked and
the step that is taken (DDIM goes back by `1000 // n`, which skips or repeats noise wherever n does not divide 1000).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_sasolver import SASolverScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from medsynth.diffusion.angle import from_flow_time, stretch, to_alpha_bar, to_flow_time, to_sigma
from medsynth.diffusion.angle import shift as shift_angle

HIGHEST_SIGMA = 80.0
"""Noise level that the walk starts at where a scheduler cannot start at pure noise (EDM's, Karras 2022, table 1).

Starting there from pure noise moves the mean of the result by 1/80 of the data's own distance from zero.
"""
LOWEST_SIGMA = 0.002
"""Noise level that solvers end at which are written for the noise and cannot reach zero (Karras 2022, table 1)."""
SPREAD = 1.5
"""Power of tan(phi) by which even times are moved together at both ends. Modes of a latent differ in power by a factor of ten
thousand and more: fine texture is settled just before the end of the walk, large shapes just after its start. Of even times
(1) too few lie there, and 21 evaluations of `flow_heun` left texture a half of its spread (docs/samplers.md)."""
STOCHASTIC_SHARE = (0.2, 0.8)
"""Part of its walk in which SA-Solver adds noise (tau = 1; Xue 2023, section 6: none at either end)."""


class _Tabled(NamedTuple):
    """A scheduler that takes its levels from `alphas_cumprod`."""

    kind: type[Any]
    options: Mapping[str, Any] = MappingProxyType({})
    below: bool = False
    """Whether its table holds one more level, below those that are walked: the one that it ends at, if not at zero."""


_CLEAN = MappingProxyType({"prediction_type": "sample", "timestep_spacing": "trailing"})
_V = MappingProxyType({"prediction_type": "v_prediction", "timestep_spacing": "trailing"})
_TABLED = {
    "ddpm": _Tabled(DDPMScheduler, {**_CLEAN, "clip_sample": False}),
    "ddim": _Tabled(DDIMScheduler, {**_CLEAN, "clip_sample": False}),
    # Runge-Kutta start-up (12 calls for 3 steps) loses to one repeated step at every number of calls measured.
    "pndm": _Tabled(PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"}),
    "euler": _Tabled(EulerDiscreteScheduler, _CLEAN),
    "euler_ancestral": _Tabled(EulerAncestralDiscreteScheduler, _V),
    "heun": _Tabled(HeunDiscreteScheduler, _CLEAN),
    "kdpm2": _Tabled(KDPM2DiscreteScheduler, _V),
    "kdpm2_ancestral": _Tabled(KDPM2AncestralDiscreteScheduler, _V),
    "lms": _Tabled(LMSDiscreteScheduler, _CLEAN),
    "deis": _Tabled(DEISMultistepScheduler, {"prediction_type": "sample"}, below=True),
    "dpm_solver": _Tabled(
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "prediction_type": "epsilon"},
        below=True,
    ),
    "dpm_solver++": _Tabled(DPMSolverMultistepScheduler, _CLEAN),
    "dpm_solver++_sde": _Tabled(DPMSolverMultistepScheduler, {**_CLEAN, "algorithm_type": "sde-dpmsolver++"}),
    "dpm_solver++_singlestep": _Tabled(
        DPMSolverSinglestepScheduler, {"prediction_type": "sample", "lower_order_final": True}, below=True
    ),
    "sa_solver": _Tabled(SASolverScheduler, {"prediction_type": "sample"}, below=True),
    "unipc": _Tabled(UniPCMultistepScheduler, _CLEAN),
}
_EDM = {"edm_euler": EDMEulerScheduler, "edm_dpm_solver++": EDMDPMSolverMultistepScheduler}
_FLOW = {
    "flow_euler": FlowMatchEulerDiscreteScheduler,
    "flow_euler_ancestral": LTXEulerAncestralRFScheduler,
    "flow_heun": FlowMatchHeunDiscreteScheduler,
}


def flow_times(steps: int, shift: float) -> Tensor:
    """The times walked, [steps] float64 from 1 down: k / steps, stretched by `SPREAD`, moved toward noise by `shift`."""
    return _walked(torch.arange(steps, 0, -1, dtype=torch.float64) / steps, shift)


def _walked(even: Tensor, shift: float) -> Tensor:
    return to_flow_time(shift_angle(stretch(from_flow_time(even), SPREAD), shift))


def make_scheduler(sampler: str, steps: int, *, shift: float = 1.0) -> Any:
    """The scheduler behind the name of a sampler of diffusers, its levels set, ready for `scheduler_door.drive`."""
    times = flow_times(steps, shift)
    if sampler in _FLOW:
        scheduler: Any = _FLOW[sampler](num_train_timesteps=steps)
        scheduler.set_timesteps(steps)
        # Even times k / steps come out of set_timesteps; its own `shift` would be applied twice by the Heun one.
        scheduler.sigmas = _walked(scheduler.sigmas.double(), shift).float()
        return scheduler
    levels = from_flow_time(times * HIGHEST_SIGMA / (1 + HIGHEST_SIGMA))
    to_data = torch.cat([levels, torch.zeros(1, dtype=levels.dtype)])
    if sampler == "ipndm":
        scheduler = IPNDMScheduler(num_train_timesteps=steps)
        scheduler.betas, scheduler.alphas = torch.sin(to_data).float(), torch.cos(to_data).float()
        return scheduler
    if sampler in _EDM:
        scheduler = _EDM[sampler](sigma_max=HIGHEST_SIGMA, sigma_data=1.0, prediction_type="v_prediction")
        scheduler.set_timesteps(steps)
        scheduler.sigmas = to_sigma(to_data).float()
        return scheduler
    return _tabled(_TABLED[sampler], levels.flip(0))


def _tabled(recipe: _Tabled, levels: Tensor) -> Any:
    """`levels`: angles, rising."""
    steps = len(levels)
    if recipe.below:
        last = torch.atan(torch.tensor([LOWEST_SIGMA], dtype=levels.dtype)).minimum(levels[:1] / 10)
        levels = torch.cat([last, levels])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*algorithm_type dpmsolver is deprecated", category=FutureWarning)
        scheduler = recipe.kind(num_train_timesteps=len(levels), **recipe.options)
    scheduler.alphas_cumprod = to_alpha_bar(levels)
    scheduler.set_timesteps(steps)
    if isinstance(scheduler, SASolverScheduler):
        first, last_share = STOCHASTIC_SHARE
        scheduler.tau_func = lambda timestep: float(first <= timestep / steps <= last_share)
    return scheduler
