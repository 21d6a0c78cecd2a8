"""The settings of a whole experiment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from medsynth.config.augment import contradicted
from medsynth.config.autoencoder import Autoencoder
from medsynth.config.base import ConfigPath, Name, Settings
from medsynth.config.cohort import CategoryCondition, Cohort, Condition, MaskCondition, Prepare
from medsynth.config.deidentify import Deidentify
from medsynth.config.denoiser import Denoiser
from medsynth.config.evidence import Evaluate, Register, Tracking
from medsynth.config.generate import Generate, unanswerable
from medsynth.config.grid import GRID, named_grid
from medsynth.config.training import Compute

RESERVED = frozenset(
    [
        "case",
        "patient",
        "origin",
        "split",
        "image",
        "mask_path",
        "modality",
        "shape",
        "spacing_mm",
        "affine",
        "sha256",
        "source",
        "model",
        "seed",
        "sampler",
        "evaluations",
        "guidance",
        "intensity_low",
        "intensity_high",
        "resampled",
        "share",
    ]
)
"""Columns of the manifest, and a word of a model's profile, that a condition's name must leave alone."""
LEAST_OPPOSED = 4
"""Voxels per axis that the patch discriminator's convolutions need."""
MAISI_HU = 1000
"""MAISI clips CT to plus and minus this before encoding."""


class Pipeline(Settings):
    """One experiment: cohort -> prepare -> autoencoder -> encode -> denoiser -> generate -> evaluate -> register."""

    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    workspace: ConfigPath | None = None
    """`runs/<name>` in the current folder unless given."""
    cohort: Cohort
    conditions: dict[Name, Condition] = {}
    deidentify: Deidentify = Deidentify()
    prepare: Prepare = Prepare()
    autoencoder: Autoencoder = Autoencoder()
    denoiser: Denoiser = Denoiser()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    register_: Annotated[Register, Field(alias="register")] = Register()
    tracking: Tracking = Tracking()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _coherent(self) -> Pipeline:
        wrong: list[str] = []
        clash = sorted(RESERVED & set(self.conditions))
        if clash:
            wrong.append(f"conditions.{clash[0]}: this is a word of the manifest; choose another name")
        if sum(isinstance(c, MaskCondition) for c in self.conditions.values()) > 1:
            wrong.append("conditions: expected at most one condition of kind mask")
        categories = [name for name, c in self.conditions.items() if isinstance(c, CategoryCondition)]
        wrong += [
            f"{key}: expected one of the category conditions ({', '.join(categories)}), found {name!r}"
            for key, name in (
                ("prepare.split.stratify", self.prepare.split.stratify),
                ("evaluate.benefit.label", self.evaluate.benefit.label),
                ("generate.by", self.generate.by),
            )
            if name is not None and name not in categories
        ]
        factor = self.autoencoder.network.downsampling * self.denoiser.network.grid_factor
        for grid in self.prepare.every_grid():
            if any(size % factor for size in grid.box):
                larger = [-(-size // factor) * factor for size in grid.box]
                wrong.append(
                    f"prepare.{'grids' if self.prepare.grids else 'box'}: every size must be a multiple of {factor} "
                    f"(autoencoder downsampling x denoiser grid), found {list(grid.box)}; use {larger}"
                )
        network, intensity = self.autoencoder.network, self.prepare.intensity
        if network.kind == "maisi" and intensity.kind == "hu_window" and max(-intensity.low, intensity.high) > MAISI_HU:
            wrong.append(
                f"prepare.intensity: expected a window within -{MAISI_HU} and {MAISI_HU} HU, which is what MAISI's "
                f"autoencoder knows, found {intensity.low:g} to {intensity.high:g}"
            )
        if len(self.prepare.every_grid()) > 1 and GRID in self.conditions:
            wrong.append(f"conditions.{GRID}: with several grids this is what they steer by; choose another name")
        if self.generate.grid is not None:
            try:
                named_grid(self.prepare.every_grid(), self.generate.grid)
            except ValueError as error:
                wrong.append(f"generate.grid: {error}")
        wrong += unanswerable(self.generate, self.conditions, self.category(self.generate.by))
        told = [c for c in self.conditions.values() if c.steer and not isinstance(c, MaskCondition)]
        if self.denoiser.network.cross_attention and not told and len(self.prepare.every_grid()) == 1:
            wrong.append(
                "denoiser.network.cross_attention: expected a category or a number to look at (a mask joins the input "
                "instead), found none; set it to false"
            )
        if self.autoencoder.loss.adversarial > 0 and min(min(g.box) for g in self.prepare.every_grid()) < LEAST_OPPOSED:
            wrong.append(
                f"autoencoder.loss.adversarial: the discriminator needs boxes of at least {LEAST_OPPOSED} voxels along each axis; "
                "enlarge the box, or set it to 0"
            )
        wrong += contradicted(self.denoiser.augment, self.conditions)
        if self.prepare.centre == "mask" and self.mask() is None:
            wrong.append("prepare.centre: `mask` needs a condition of kind mask")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def category(self, name: str | None = None) -> str | None:
        """The named category, or the first one; None where the pipeline has none."""
        if name is not None:
            return name
        return next((n for n, c in self.conditions.items() if isinstance(c, CategoryCondition)), None)

    def mask(self) -> tuple[str, MaskCondition] | None:
        """The mask condition, if there is one."""
        return next(((n, c) for n, c in self.conditions.items() if isinstance(c, MaskCondition)), None)
