"""Settings of sampling and of the synthetic dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from medsynth.config.base import Fraction, Name, Settings
from medsynth.config.cohort import CategoryCondition, Condition, MaskCondition, NumberCondition
from medsynth.config.explain import nearest
from medsynth.config.training import Count, Precision

Sampler = Literal[
    "ddpm",
    "ddim",
    "pndm",
    "ipndm",
    "euler",
    "euler_ancestral",
    "heun",
    "kdpm2",
    "kdpm2_ancestral",
    "lms",
    "deis",
    "dpm_solver",
    "dpm_solver++",
    "dpm_solver++_sde",
    "dpm_solver++_singlestep",
    "sa_solver",
    "unipc",
    "edm_euler",
    "edm_dpm_solver++",
    "flow_euler",
    "flow_euler_ancestral",
    "flow_heun",
    "angle_heun",
    "angle_dpm_solver++_sde",
]


class Sampling(Settings):
    """How one volume is drawn."""

    sampler: Sampler = "flow_heun"
    evaluations: Annotated[int, Field(ge=2, le=1000)] = 30
    """Calls of the network per volume (a guided call counts once)."""
    guidance: dict[Name, Annotated[float, Field(ge=0, le=20)]] | Annotated[float, Field(ge=0, le=20)] = 1.0
    """1: as trained; above 1: further toward the condition. One number, or one per condition."""
    guidance_interval: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Shares of noise, from data (0) to noise (1), between which guidance acts; elsewhere the model is as trained."""
    guidance_rescale: Fraction = 0.0
    """How far guided latents return to the contrast of unguided ones: 0 not at all, 1 wholly."""

    @model_validator(mode="after")
    def _ordered(self) -> Sampling:
        low, high = self.guidance_interval
        if not low < high:
            raise ValueError("guidance_interval must be [low, high] with low below high")
        return self

    @property
    def guidance_text(self) -> str:
        """All of the guidance in one line, exactly, as it stands in manifests and headers.

        For example `2`, or `diagnosis=4 diameter_mm=1; interval 0.2 0.8; rescale 0.7`.
        """
        if isinstance(self.guidance, dict):
            told = [" ".join(f"{name}={_exact(scale)}" for name, scale in sorted(self.guidance.items()))]
        else:
            told = [_exact(self.guidance)]
        if self.guidance_interval != (0.0, 1.0):
            told.append(f"interval {' '.join(map(_exact, self.guidance_interval))}")
        if self.guidance_rescale:
            told.append(f"rescale {_exact(self.guidance_rescale)}")
        return "; ".join(told)

    @classmethod
    def from_texts(cls, sampler: str, evaluations: str, guidance: str) -> Sampling:
        """The sampling that a row of a synthetic manifest was made with. Raises ValueError for what is none."""
        scales, *others = guidance.split("; ")
        named = [part.partition("=") for part in scales.split()]
        values: dict[str, Any] = {
            "sampler": sampler,
            "evaluations": int(evaluations),
            "guidance": {name: float(scale) for name, _, scale in named}
            if "=" in scales or not named
            else float(scales),
        }
        for name, *numbers in (part.split() for part in others):
            found = tuple(float(number) for number in numbers)
            values[f"guidance_{name}"] = found[0] if len(found) == 1 else found
        return cls.model_validate(values)


def _exact(value: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(float(value)).removesuffix(".0")


ScanFormat = Literal["nifti", "dicom", "both"]

FEWEST_MIXED = 3
"""Shapes that have a mixture as varied as they are."""


class VaryMasks(Settings):
    """How a training patient's mask is changed before it is asked for, every label as large as before: its shape is mixed
    with those of other patients, or, where there are not enough of a kind or it lies in several pieces, turned about its
    centre and bent smoothly. With all at 0 it is asked for, and given out, as it is."""

    mix: Annotated[int, Field(ge=0, le=64)] = 24
    """Patients whose masks are mixed, at most; 0: none."""
    rotate_degrees: Annotated[float, Field(ge=0, le=45)] = 10.0
    """Standard deviation of the angle about each axis."""
    bend: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Standard deviation of the displacement, in radii of a ball of the mask's volume."""

    @property
    def any(self) -> bool:
        """Whether masks are changed at all."""
        return self.mix > 0 or self.rotate_degrees > 0 or self.bend > 0

    @field_validator("mix")
    @classmethod
    def _enough(cls, mix: int) -> int:
        if 0 < mix < FEWEST_MIXED:
            raise ValueError(
                f"expected 0 or at least {FEWEST_MIXED}, found {mix}: two shapes have no mixture as varied as they are"
            )
        return mix


class Generate(Settings):
    """How many synthetic scans, of what, and how."""

    count: Count = 64
    balance: Literal["as_training", "even"] = "even"
    """Conditions drawn as the training split has them, or evenly over the values of `by`."""
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Instead of `count` and `balance`: how many of each value of `by`."""
    by: Name | None = None
    """The category that `even` balances; the first one unless given."""
    conditions: dict[Name, str | float | int] = {}
    """Values fixed for every scan."""
    grid: Annotated[str | None, Field(exclude_if=lambda grid: grid is None)] = None
    """Where there are several: the one grid for every scan, `64x64x48@1x1x2.5`; drawn as in training unless given."""
    vary_masks: VaryMasks = VaryMasks()
    """For masks of training patients; masks that a user gives are taken as they are, unless this is set."""
    sampling: Sampling = Sampling()
    batch_size: Count | Literal["auto"] = "auto"
    """Scans that a GPU computes at once; `auto` finds what its memory holds. A processor computes one at a time."""
    precision: Annotated[Precision, Field(exclude_if=lambda precision: precision == "auto")] = "auto"
    """Of the networks' products; `auto`: bf16 on a GPU that computes it, else fp32. In bf16 a GPU decodes in float16."""
    ratio_of_training: Annotated[float, Field(gt=0, le=100)] | None = None
    """Instead of `count`: this many times the number of training scans."""
    format: Literal["nifti", "both"] = "nifti"
    """`both` writes DICOM beside NIfTI. Never DICOM alone in a pipeline: `evaluate` reads the NIfTI files."""


def unanswerable(generate: Generate, conditions: Mapping[str, Condition], by: str | None) -> list[str]:
    """A sentence for whatever `generate` asks of a generator that steers by `conditions` and can never have; `by` is the
    category that `counts` count.
    """
    steering = {name: condition for name, condition in conditions.items() if condition.steer}
    found = []

    def unknown(key: str, name: str) -> str:
        known = ", ".join(steering) or "none"
        return f"{key}.{name}: expected one of the conditions that steer ({known}){nearest(name, steering)}"

    for name, value in generate.conditions.items():
        if name not in steering:
            found.append(unknown("generate.conditions", name))
        elif mistake := _cannot_be(steering[name], value):
            found.append(f"generate.conditions.{name}: {mistake}")
    counted = steering.get(by) if by is not None else None
    if isinstance(counted, CategoryCondition):
        mistakes = {value: _cannot_be(counted, value) for value in generate.counts}
        found += [f"generate.counts.{value}: {mistake}" for value, mistake in mistakes.items() if mistake]
    guidance = generate.sampling.guidance
    scales = guidance if isinstance(guidance, dict) else dict.fromkeys(steering, guidance)
    for name, scale in scales.items():
        if name not in steering:
            found.append(unknown("generate.sampling.guidance", name))
        elif scale != 1 and steering[name].dropout == 0:
            found.append(
                f"generate.sampling.guidance: expected conditions.{name}.dropout above 0, since guidance needs the model "
                "without the condition too, found 0"
            )
    return found


def _cannot_be(condition: Condition, value: str | float) -> str | None:
    """Why a condition cannot have this value, if so."""
    match condition:
        case CategoryCondition() if value not in condition.values:
            return (
                f"expected one of {', '.join(condition.values)}, found {value!r}{nearest(str(value), condition.values)}"
            )
        case NumberCondition():
            low, high = condition.range
            if isinstance(value, str) or not low <= value <= high:
                return f"expected a number from {low:g} to {high:g}, found {value!r}"
        case MaskCondition():
            return "masks are drawn from the training split and cannot be fixed"
    return None
