"""The types of number that a device is good at."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from medsynth.config.training import Precision

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


def sampling_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """What networks that draw samples on `device` multiply in; `auto`: bf16 on a GPU that computes it, else fp32."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" and computes_bf16(device) else "fp32"
    return precision
