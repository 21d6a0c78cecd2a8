"""Driving diffusers' schedulers through the angle contract.

A scheduler keeps its sample in one of three conventions, each the house's x times a scalar, and takes one of several
predictions, each computed from the clean latent:

    convention     house x =                 the angle of a call, from
    preserving     sample                    alphas_cumprod[timestep], or sigmas = tan(phi)
    exploding      cos sample                sigmas = tan(phi)
    flow           (cos + sin) sample        sigmas = t
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

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

from medsynth.diffusion.angle import from_alpha_bar, from_flow_time, from_sigma
from medsynth.errors import ConfigError

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], angle [B]) -> clean latent [B, ...]."""


class Convention(Enum):
    """How a scheduler keeps its sample."""

    PRESERVING = "preserving"
    EXPLODING = "exploding"
    FLOW = "flow"


_CLASSES: dict[Convention, tuple[type[Any], ...]] = {
    Convention.PRESERVING: (
        DDPMScheduler,
        DDIMScheduler,
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    ),
    Convention.EXPLODING: (EulerDiscreteScheduler, HeunDiscreteScheduler),
    Convention.FLOW: (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler),
}


@dataclass(frozen=True)
class Walk:
    """What a scheduler is about to do: its convention, the angle at each call, and the angle that it ends at."""

    convention: Convention
    angles: tuple[float, ...]
    end: float


def read_walk(scheduler: Any) -> Walk:
    """The walk of a scheduler whose timesteps are set. Raises ConfigError for one that the door does not know."""
    found = [convention for convention, classes in _CLASSES.items() if isinstance(scheduler, classes)]
    if not found or scheduler.config.get("use_flow_sigmas", False):
        known = ", ".join(c.__name__ for classes in _CLASSES.values() for c in classes)
        raise ConfigError([f"scheduler: expected one of {known} on its own levels, found {type(scheduler).__name__}"])
    if hasattr(scheduler, "sigmas"):
        convert = from_flow_time if found[0] is Convention.FLOW else from_sigma
        angles = convert(scheduler.sigmas.double()).tolist()
        return Walk(found[0], tuple(angles[:-1]), angles[-1])
    angles = from_alpha_bar(scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu().long()]).tolist()
    return Walk(found[0], tuple(angles), 0.0)


@torch.no_grad()
def drive(scheduler: Any, denoise: Denoise, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Clean latents from `noise` [B, ...] of unit variance, by a scheduler whose timesteps are set.

    `generators`: one per sample, on the CPU; used by DDPM alone.
    """
    walk = read_walk(scheduler)
    flow = walk.convention is Convention.FLOW
    extra: dict[str, Any] = {"generator": list(generators)} if isinstance(scheduler, DDPMScheduler) else {}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # by position: the two calls of a Heun step share one timestep
    sample = noise if flow else noise * float(scheduler.init_noise_sigma)
    for angle, timestep in zip(walk.angles, scheduler.timesteps, strict=True):
        cos, sin = math.cos(angle), math.sin(angle)
        x = sample * (cos + sin) if flow else scheduler.scale_model_input(sample, timestep)
        clean = denoise(x, torch.full((len(x),), angle, dtype=torch.float32, device=x.device))
        answer = _answer("flow" if flow else scheduler.config.prediction_type, x, clean, cos, sin)
        sample = scheduler.step(answer, timestep, sample, return_dict=False, **extra)[0]
    return sample / math.cos(walk.end) if walk.convention is Convention.PRESERVING else sample


def _answer(prediction_type: str, x: Tensor, clean: Tensor, cos: float, sin: float) -> Tensor:
    match prediction_type:
        case "flow":
            return (x - (cos + sin) * clean) / sin
        case "sample":
            return clean
        case "epsilon":
            return (x - cos * clean) / sin
        case "v_prediction":
            return (cos * x - clean) / sin
        case _:
            raise ConfigError(
                [f"scheduler: expected the prediction type sample, epsilon or v_prediction, found {prediction_type!r}"]
            )
