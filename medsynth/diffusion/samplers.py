"""Samplers by name: from noise to a clean latent, by calling `denoise(x, angle)` a stated number of times.

Most take the steps of diffusers' schedulers (`schedulers`, `scheduler_door`); the two whose names begin with `angle` are
the house's own (`angle_steps`). A scheduler is shown its own kind of sample and is handed the prediction that it handles
best, both computed from the angle contract, so that every sampler runs on every model. docs/samplers.md says what each is,
and which schedulers of diffusers are not offered and why.

All walk the same noise levels: steps of rectified flow's time that lie closer toward both ends (`schedulers.SPREAD`), moved
toward noise by `shift`. Evaluations used, when `n` are allowed:

    one per step                                                                 n
    pndm (linear multistep, started by one repeated step)                        n; 1 where n is 2
    heun, kdpm2, kdpm2_ancestral, flow_heun, angle_heun (two per step, one in    n if odd, else n - 1
    the last)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from medsynth.config.explain import nearest
from medsynth.config.generate import Sampler
from medsynth.diffusion.angle import Denoise, from_flow_time
from medsynth.diffusion.angle_steps import dpm_solver_sde, heun
from medsynth.diffusion.scheduler_door import drive
from medsynth.diffusion.schedulers import flow_times, make_scheduler
from medsynth.errors import ConfigError

SAMPLERS: tuple[str, ...] = get_args(Sampler)
STOCHASTIC = (
    "ddpm",
    "euler_ancestral",
    "kdpm2_ancestral",
    "dpm_solver++_sde",
    "sa_solver",
    "flow_euler_ancestral",
    "angle_dpm_solver++_sde",
)
"""Those that draw noise on their way. The others are maps from noise to data."""
TWO_PER_STEP = ("heun", "kdpm2", "kdpm2_ancestral", "flow_heun", "angle_heun")
"""Those that call the network twice per step, and once in the last."""


@torch.no_grad()
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
    evaluations)` times. `generators`, CPU ones and one per sample, feed the stochastic samplers, so that a sample depends
    on its own generator and not on its batch mates. `shift` multiplies tan(angle) along the walk, both ends kept
    (`Objective.shift`). Raises ConfigError for an unknown sampler, fewer than 2 evaluations, or generators that do not
    match the batch.
    """
    if len(generators) != len(noise):
        raise ConfigError([f"generators: expected one per sample ({len(noise)}), found {len(generators)}"])
    steps = steps_taken(sampler, evaluations)
    if not sampler.startswith("angle"):
        return drive(make_scheduler(sampler, steps, shift=shift), denoise, noise, generators)
    angles = [*from_flow_time(flow_times(steps, shift)).tolist(), 0.0]
    if sampler == "angle_heun":
        return heun(denoise, noise, angles)

    def fresh() -> Tensor:
        drawn = [torch.randn(noise.shape[1:], generator=generator, dtype=noise.dtype) for generator in generators]
        return torch.stack(drawn).to(noise.device)

    return dpm_solver_sde(denoise, noise, angles, fresh)


def evaluations_used(sampler: str, evaluations: int) -> int:
    """Number of times the network is called when `evaluations` are allowed; never more."""
    steps = steps_taken(sampler, evaluations)
    if sampler in TWO_PER_STEP:
        return 2 * steps - 1
    if sampler == "pndm":
        return steps + 1 if steps > 1 else 1
    return steps


def steps_taken(sampler: str, evaluations: int) -> int:
    """Number of steps for which `evaluations` suffice. Raises ConfigError as `sample` does."""
    if sampler not in SAMPLERS:
        raise ConfigError(
            [f"sampler: expected one of {', '.join(SAMPLERS)}, found {sampler!r}{nearest(sampler, SAMPLERS)}"]
        )
    if evaluations < 2:
        raise ConfigError([f"evaluations: expected at least 2, found {evaluations}"])
    if sampler in TWO_PER_STEP:
        return (evaluations + 1) // 2
    return evaluations - 1 if sampler == "pndm" else evaluations
