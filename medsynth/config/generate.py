"""Settings of sampling and of the synthetic dataset."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medsynth.config.base import Name, Settings
from medsynth.config.training import Count

Sampler = Literal[
    "ddpm", "ddim", "pndm", "euler", "heun", "dpm_solver", "dpm_solver++", "unipc", "flow_euler", "flow_heun"
]


class Sampling(Settings):
    """How one volume is drawn."""

    sampler: Sampler = "flow_heun"
    evaluations: Annotated[int, Field(ge=2, le=1000)] = 30
    """Calls of the network per volume (a guided call counts once)."""
    guidance: dict[Name, Annotated[float, Field(ge=0, le=20)]] | Annotated[float, Field(ge=0, le=20)] = 1.0
    """1: as trained; above 1: further toward the condition. One number, or one per condition."""


ScanFormat = Literal["nifti", "dicom", "both"]


class Generate(Settings):
    """How many synthetic scans, of what, and how."""

    count: Count = 64
    balance: Literal["as_training", "even"] = "even"
    """Conditions drawn as the training split has them, or evenly over the values of `by`."""
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Instead of `count` and `balance`: how many of each value of `by`."""
    by: Name | None = None
    """The category that `even` balances; the first steering one unless given."""
    conditions: dict[Name, str | float | int] = {}
    """Values fixed for every scan."""
    sampling: Sampling = Sampling()
    batch_size: Count = 8
    ratio_of_training: Annotated[float, Field(gt=0, le=100)] | None = None
    """Instead of `count`: this many times the number of training scans."""
    format: Literal["nifti", "both"] = "nifti"
    """`both` writes DICOM beside NIfTI. Never DICOM alone in a pipeline: `evaluate` reads the NIfTI files."""
