"""Samplers: from noise to a clean latent, by calling `denoise(x, angle)` a stated number of times.

The steps are those of diffusers' schedulers; what happens here is the conversion at their door. A scheduler is shown its
own kind of sample and is handed the prediction that it handles best, both computed from the angle contract, so that every
scheduler runs on every model.

All samplers walk the same noise levels: even steps of rectified flow's time, moved toward noise by `shift`. The levels
become the scheduler's own table (its `alphas_cumprod`, one entry per level), so that its timesteps are 0, 1, 2, ... at any
number of steps: no rounding to a grid of 1000, no disagreement between the timesteps walked and the step that is taken
(DDIM goes back by `1000 // n`, which skips or repeats noise wherever n does not divide 1000).

Evaluations used, when `n` are allowed:

    ddpm, ddim, euler, dpm_solver, dpm_solver++, unipc, flow_euler    n
    pndm (linear multistep, started by one repeated step)             n; 1 where n is 2
    heun, flow_heun (two per step, one in the last)                   n if odd, else n - 1

Below about 10 evaluations pndm, and below 15 heun, overshoot: their higher order needs levels that lie close together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from medsynth.config.explain import nearest
from medsynth.config.generate import Sampler
from medsynth.diffusion.angle import from_flow_time, to_alpha_bar, to_flow_time
from medsynth.diffusion.angle import shift as shift_angle
from medsynth.diffusion.scheduler_door import Denoise, drive
from medsynth.errors import ConfigError

SAMPLERS: tuple[str, ...] = get_args(Sampler)
HIGHEST_SIGMA = 80.0
"""Noise level that the walk starts at where a scheduler cannot start at pure noise (EDM's, Karras 2022, table 1).

Starting there from pure noise moves the mean of the result by 1/80 of the data's own distance from zero.
"""
LOWEST_SIGMA = 0.002
"""Noise level that DPM-Solver ends at (Karras 2022, table 1): it is written for the noise and cannot reach zero."""


def sample(
    denoise: Denoise,
    noise: Tensor,
    sampler: str,
    evaluations: int,
    generators: Sequence[torch.Generator],
    *,
    shift: float = 1.0,
) -> Tensor:
    """Clean latents from `noise` [B, ...] of unit variance, in its shape and type.

    `denoise(x, angle)` gives the clean latent of x [B, ...] at the angles [B]; it is called `evaluations_used(sampler,
    evaluations)` times. `generators`, CPU ones and one per sample, feed the stochastic sampler (ddpm), so that a sample
    depends on its own generator and not on its batch mates. `shift` multiplies tan(angle) along the walk, both ends kept
    (`Objective.shift`). Raises ConfigError for an unknown sampler, fewer than 2 evaluations, or generators that do not
    match the batch.
    """
    if len(generators) != len(noise):
        raise ConfigError([f"generators: expected one per sample ({len(noise)}), found {len(generators)}"])
    return drive(make_scheduler(sampler, evaluations, shift=shift), denoise, noise, generators)


def evaluations_used(sampler: str, evaluations: int) -> int:
    """Number of times the network is called when `evaluations` are allowed; never more."""
    steps = _steps(sampler, evaluations)
    if sampler in ("heun", "flow_heun"):
        return 2 * steps - 1
    if sampler == "pndm":
        return steps + 1 if steps > 1 else 1
    return steps


def make_scheduler(sampler: str, evaluations: int, *, shift: float = 1.0) -> Any:
    """The diffusers scheduler behind `sampler`, its levels set, ready for `drive`."""
    steps = _steps(sampler, evaluations)
    if sampler in _FLOW:
        scheduler = _FLOW[sampler](num_train_timesteps=steps)
        scheduler.set_timesteps(steps)
        # Even times k / steps come out of set_timesteps; its own `shift` would be applied twice by the Heun one.
        scheduler.sigmas = _shifted_times(scheduler.sigmas.double(), shift).float()
        return scheduler
    top = HIGHEST_SIGMA / (1 + HIGHEST_SIGMA)
    times = _shifted_times(torch.arange(1, steps + 1, dtype=torch.float64) / steps, shift) * top
    levels = from_flow_time(times)
    if sampler == "dpm_solver":
        last = torch.atan(torch.tensor([LOWEST_SIGMA], dtype=torch.float64)).minimum(levels[:1] / 10)
        levels = torch.cat([last, levels])
    scheduler = _DIFFUSION[sampler](len(levels))
    scheduler.alphas_cumprod = to_alpha_bar(levels)
    scheduler.set_timesteps(steps)
    return scheduler


def _steps(sampler: str, evaluations: int) -> int:
    if sampler not in SAMPLERS:
        raise ConfigError(
            [f"sampler: expected one of {', '.join(SAMPLERS)}, found {sampler!r}{nearest(sampler, SAMPLERS)}"]
        )
    if evaluations < 2:
        raise ConfigError([f"evaluations: expected at least 2, found {evaluations}"])
    if sampler in ("heun", "flow_heun"):
        return (evaluations + 1) // 2
    return evaluations - 1 if sampler == "pndm" else evaluations


def _shifted_times(times: Tensor, factor: float) -> Tensor:
    return to_flow_time(shift_angle(from_flow_time(times), factor))


def _ddpm(levels: int) -> Any:
    return DDPMScheduler(
        num_train_timesteps=levels, prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
    )


def _ddim(levels: int) -> Any:
    return DDIMScheduler(
        num_train_timesteps=levels, prediction_type="sample", clip_sample=False, timestep_spacing="trailing"
    )


def _pndm(levels: int) -> Any:
    # Runge-Kutta start-up (12 calls for 3 steps) loses to one repeated step at every number of calls measured.
    return PNDMScheduler(
        num_train_timesteps=levels, skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="trailing"
    )


def _euler(levels: int) -> Any:
    return EulerDiscreteScheduler(num_train_timesteps=levels, prediction_type="sample", timestep_spacing="trailing")


def _heun(levels: int) -> Any:
    return HeunDiscreteScheduler(num_train_timesteps=levels, prediction_type="sample", timestep_spacing="trailing")


def _dpm_solver(levels: int) -> Any:
    # "linspace" over one level more than there are steps: walks every level and ends at the lowest.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*algorithm_type dpmsolver is deprecated", category=FutureWarning)
        return DPMSolverMultistepScheduler(
            num_train_timesteps=levels,
            algorithm_type="dpmsolver",
            final_sigmas_type="sigma_min",
            prediction_type="epsilon",
            timestep_spacing="linspace",
        )


def _dpm_solver_pp(levels: int) -> Any:
    return DPMSolverMultistepScheduler(
        num_train_timesteps=levels, prediction_type="sample", timestep_spacing="trailing"
    )


def _unipc(levels: int) -> Any:
    return UniPCMultistepScheduler(num_train_timesteps=levels, prediction_type="sample", timestep_spacing="trailing")


_FLOW: dict[str, Callable[..., Any]] = {
    "flow_euler": FlowMatchEulerDiscreteScheduler,
    "flow_heun": FlowMatchHeunDiscreteScheduler,
}
_DIFFUSION: dict[str, Callable[[int], Any]] = {
    "ddpm": _ddpm,
    "ddim": _ddim,
    "pndm": _pndm,
    "euler": _euler,
    "heun": _heun,
    "dpm_solver": _dpm_solver,
    "dpm_solver++": _dpm_solver_pp,
    "unipc": _unipc,
}
