"""Device, precision and processes of a training run, through accelerate."""

from __future__ import annotations

import os
import shutil
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from medsynth.config.training import Precision
from medsynth.errors import ConfigError
from medsynth.precision import computes_bf16


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` as what `device` is best at; anything else as asked for."""
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return precision


def open_accelerator(device: torch.device, precision: Precision, accumulate: int) -> Accelerator:
    """An Accelerator on `device` (on this process's own one under torchrun), with every process joined.

    accelerate keeps device and precision in a state that all its objects of a process share and that outlives them.
    Stages of one run may differ in both, so that state is dropped first; the process group of torch stays.
    """
    mixed = "bf16" if resolve_precision(precision, device) == "bf16" else "no"
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=mixed, gradient_accumulation_steps=accumulate)
    found = accelerator.device.type
    if found != device.type:
        raise ConfigError(
            [f"compute.device: expected a device of this machine, found {device.type!r}; it has {found!r}"]
        )
    return accelerator


def processes() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rows_of_process(batch_size: int, accelerator: Accelerator) -> slice:
    """The rows of each global batch that this process computes."""
    processes = int(accelerator.num_processes)
    if batch_size % processes:
        raise ConfigError(
            [
                f"training.batch_size: expected a multiple of the {processes} processes, found {batch_size}; "
                "it is the size of the whole batch over all of them"
            ]
        )
    each = batch_size // processes
    start = int(accelerator.process_index) * each
    return slice(start, start + each)


def summed_over_processes(figures: Tensor) -> Tensor:
    """The sum of `figures` over all processes, the same on each; no gradient passes."""
    figures = figures.detach().clone()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(figures)
    return figures


def at_once_without_gradients(batch_size: int, device: torch.device) -> int:
    """Latents that go through a denoiser together where nothing is kept for a backward pass.

    On a GPU four times a training batch, which takes no more memory than a step: fewer calls for Python to ask for. On a
    CPU the same, which its cache is the measure of.
    """
    return 4 * batch_size if device.type == "cuda" else batch_size


def require_compiler() -> None:
    """Raises ConfigError where torch.compile would find no C++ compiler."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names if name):
        raise ConfigError(
            ["training.compile: expected a C++ compiler on this machine, found none; install g++ or set it to false"]
        )
