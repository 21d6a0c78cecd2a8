"""Whether Triton can build its kernels on this machine, and run them on a device."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch

OLDEST_CAPABILITY = 8
"""Major compute capability (Ampere) from which Triton supports NVIDIA's GPUs."""


def obstacle() -> str | None:
    """Why there can be no kernels here, in words for the user; None where there can.

    Triton builds what launches its kernels with a C compiler and the headers of Python, when a kernel is first used. Where
    either is missing that fails in the middle of a step, so it is looked for beforehand.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "there is no C compiler; install gcc"
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")  # as Triton has it
    if not (Path(sysconfig.get_paths(scheme=scheme)["include"]) / "Python.h").is_file():
        return "the headers of Python are missing; install python3-dev"
    return None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, slowly and on a CPU too, to test them where there is no GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


AVAILABLE = obstacle() is None
INTERPRETED = AVAILABLE and interpreted()


def runs_on(device: torch.device) -> bool:
    """Whether kernels run on `device`: an NVIDIA GPU that Triton knows, or anything where they are interpreted."""
    if INTERPRETED:
        return True
    known = AVAILABLE and device.type == "cuda" and torch.version.hip is None
    return known and torch.cuda.get_device_properties(device).major >= OLDEST_CAPABILITY
