"""Driving diffusers' schedulers through the angle contract.

A scheduler keeps its sample in one of three conventions, each the house's x times a scalar, and takes one of several
predictions, each computed from the clean latent:

    convention     house x =                 the angle of a call, from
    preserving     sample                    alphas_cumprod[timestep], or sigmas = tan(phi), or betas = sin(phi)
    exploding      cos sample                sigmas = tan(phi)
    flow           (cos + sin) sample        sigmas = t
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

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

from medsynth.diffusion.angle import Denoise, everywhere, from_alpha_bar, from_flow_time, from_sigma
from medsynth.errors import ConfigError


class Convention(Enum):
    """How a scheduler keeps its sample."""

    PRESERVING = "preserving"
    EXPLODING = "exploding"
    FLOW = "flow"


CLASSES: dict[Convention, tuple[type[Any], ...]] = {
    Convention.PRESERVING: (
        DDPMScheduler,
        DDIMScheduler,
        PNDMScheduler,
        IPNDMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        SASolverScheduler,
        UniPCMultistepScheduler,
    ),
    Convention.EXPLODING: (
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        LMSDiscreteScheduler,
        EDMEulerScheduler,
        EDMDPMSolverMultistepScheduler,
    ),
    Convention.FLOW: (
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        LTXEulerAncestralRFScheduler,
    ),
}
"""The schedulers that the door knows. With `use_flow_sigmas` those of the first kind keep flow's convention."""


@dataclass(frozen=True)
class Walk:
    """What a scheduler is about to do: its convention, the angle at each call, and the angle that it ends at."""

    convention: Convention
    angles: tuple[float, ...]
    end: float


def read_walk(scheduler: Any) -> Walk:
    """The walk of a scheduler whose timesteps are set. Raises ConfigError for one that the door does not know."""
    convention = _convention(scheduler)
    match scheduler:
        case IPNDMScheduler():
            angles = torch.atan2(scheduler.betas.double(), scheduler.alphas.double())
        case KDPM2DiscreteScheduler():
            angles = from_sigma(_every_other(scheduler.sigmas, scheduler.sigmas_interpol))
        case KDPM2AncestralDiscreteScheduler():
            angles = from_sigma(_every_other(scheduler.sigmas, scheduler.sigmas_interpol.roll(1)))
        case DDPMScheduler() | DDIMScheduler() | PNDMScheduler():
            levels = scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu().long()]
            angles = from_alpha_bar(torch.cat([levels, torch.ones(1, dtype=levels.dtype)]))
        case _:
            convert = from_flow_time if convention is Convention.FLOW else from_sigma
            angles = convert(scheduler.sigmas.double())
    *calls, end = angles.tolist()
    return Walk(convention, tuple(calls), end)


def _convention(scheduler: Any) -> Convention:
    for convention, classes in CLASSES.items():
        if isinstance(scheduler, classes):
            edm = isinstance(scheduler, EDMEulerScheduler | EDMDPMSolverMultistepScheduler)
            if edm and (scheduler.config.sigma_data, scheduler.config.prediction_type) != (1.0, "v_prediction"):
                raise ConfigError(["scheduler: expected EDM's with sigma_data 1 and v_prediction, found others"])
            return Convention.FLOW if scheduler.config.get("use_flow_sigmas", False) else convention
    known = ", ".join(c.__name__ for classes in CLASSES.values() for c in classes)
    raise ConfigError([f"scheduler: expected one of {known}, found {type(scheduler).__name__}"])


def _every_other(levels: Tensor, between: Tensor) -> Tensor:
    """The levels of KDPM2's calls, and the end: each step's own, then the one between it and the next."""
    calls = levels.double().clone()
    calls[1::2] = between.double()[1::2]
    return calls[:-2]


@torch.no_grad()
def drive(scheduler: Any, denoise: Denoise, noise: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Clean latents from `noise` [B, ...] of unit variance, by a scheduler whose timesteps are set.

    `generators`: one per sample, on the CPU; used by schedulers that draw noise of their own.
    """
    walk = read_walk(scheduler)
    flow = walk.convention is Convention.FLOW
    draws = "generator" in inspect.signature(scheduler.step).parameters
    extra: dict[str, Any] = {"generator": list(generators)} if draws else {}
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # by position: the two calls of a Heun step share one timestep
    if isinstance(scheduler, LTXEulerAncestralRFScheduler):
        scheduler.sigmas = scheduler.sigmas.to(noise.device)  # it multiplies by levels that have axes
    # Those that do not name their prediction are the flow-matching ones and IPNDM.
    kind = scheduler.config.get("prediction_type", "flow_prediction" if flow else "v_prediction")
    sample = noise if flow else noise * float(scheduler.init_noise_sigma)
    for angle, timestep in zip(walk.angles, scheduler.timesteps, strict=True):
        cos, sin = math.cos(angle), math.sin(angle)
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        x = scaled * (cos + sin) if flow else scaled
        answer = _answer(kind, x, denoise(x, everywhere(angle, x)), cos, sin)
        sample = scheduler.step(answer, timestep, sample, return_dict=False, **extra)[0]
    match walk.convention:
        case Convention.PRESERVING:
            return sample / math.cos(walk.end)
        case Convention.FLOW:
            return sample * (1 + math.tan(walk.end))
        case _:
            return sample


def _answer(prediction_type: str, x: Tensor, clean: Tensor, cos: float, sin: float) -> Tensor:
    match prediction_type:
        case "flow_prediction":
            return (x - (cos + sin) * clean) / sin
        case "sample":
            return clean
        case "epsilon":
            return (x - cos * clean) / sin
        case "v_prediction":
            return (cos * x - clean) / sin
        case _:
            raise ConfigError(
                [
                    "scheduler: expected the prediction type sample, epsilon, v_prediction or flow_prediction, "
                    f"found {prediction_type!r}"
                ]
            )
