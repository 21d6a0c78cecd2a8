"""Device, precision and processes of a training run, through accelerate."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from medsynth.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]

NATIVE_BF16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Instruction sets of x86 processors that multiply in bf16 and add up in float32."""


def computes_bf16(device: torch.device) -> bool:
    """Whether `device` has arithmetic units for bf16; emulation, which is slower than fp32, does not count."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not NATIVE_BF16.isdisjoint(_cpu_flags())


def _cpu_flags() -> frozenset[str]:
    """Instruction sets of this processor as Linux names them; empty where nothing tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next((frozenset(value.split()) for name, _, value in lines if name.strip() == "flags"), frozenset())


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


def require_compiler() -> None:
    """Raises ConfigError where torch.compile would find no C++ compiler."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names if name):
        raise ConfigError(
            ["training.compile: expected a C++ compiler on this machine, found none; install g++ or set it to false"]
        )
