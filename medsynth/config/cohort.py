"""Settings of what comes in: the cohort, the conditions and how scans are prepared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medsynth.config.base import ConfigPath, Fraction, Name, Positive, Settings, Triple
from medsynth.config.grid import Grid, find_grid


class PhantomCohort(Settings):
    """A generated thorax-like CT cohort with invented patients, written as true DICOM series."""

    kind: Literal["phantom"]
    patients: Annotated[int, Field(ge=4, le=100_000)] = 96


class CsvCohort(Settings):
    """A table with the columns `patient`, `image`, optional `mask`, `split`, and one column per condition."""

    kind: Literal["csv"]
    csv: ConfigPath
    root: ConfigPath | None = None
    """Folder that the paths in the table start from; the table's own folder unless given."""


class FolderCohort(Settings):
    """A folder of NIfTI files, one patient each, and optionally a folder of masks under the same file names."""

    kind: Literal["folder"]
    images: ConfigPath
    masks: ConfigPath | None = None


class MedmnistCohort(Settings):
    """A MedMNIST 3D `.npz` file; its own split is kept, and each volume counts as a patient."""

    kind: Literal["medmnist"]
    npz: ConfigPath
    label: Name = "label"
    """The condition that the file's labels become."""
    spacing_mm: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)


Cohort = Annotated[PhantomCohort | CsvCohort | FolderCohort | MedmnistCohort, Field(discriminator="kind")]


class CategoryCondition(Settings):
    """One of a few named values."""

    kind: Literal["category"]
    values: Annotated[tuple[str, ...], Field(min_length=1, max_length=256)]
    dropout: Fraction = 0.1
    """Share of training cases in which the condition is withheld, so that guidance can do without it."""
    derive: Literal["mask_volume"] | None = None
    """Take the value from the mask instead of a column: below / at or above the training median of its volume."""
    steer: bool = True
    """Whether the generator takes the condition; a label that only the classifier uses says false."""

    @model_validator(mode="after")
    def _consistent(self) -> CategoryCondition:
        if len(set(self.values)) != len(self.values):
            raise ValueError("values must be different from each other")
        if self.derive and len(self.values) != 2:
            raise ValueError("a condition derived from the mask's volume has exactly two values: [smaller, larger]")
        return self


class NumberCondition(Settings):
    """A measured quantity."""

    kind: Literal["number"]
    range: tuple[Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]]
    """Smallest and largest value that may be asked for, in `unit`."""
    unit: str = ""
    dropout: Fraction = 0.1
    steer: bool = True

    @model_validator(mode="after")
    def _ordered(self) -> NumberCondition:
        if not self.range[0] < self.range[1]:
            raise ValueError("range must be [low, high] with low below high")
        return self


class MaskCondition(Settings):
    """A label volume on the scan's grid; at most one per cohort."""

    kind: Literal["mask"]
    labels: Annotated[dict[str, Annotated[int, Field(ge=1, le=254)]], Field(min_length=1)]
    """Name -> voxel value; 0 is background."""
    dropout: Fraction = 0.1
    steer: bool = True

    @model_validator(mode="after")
    def _different(self) -> MaskCondition:
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("labels must have values that are different from each other")
        return self


Condition = Annotated[CategoryCondition | NumberCondition | MaskCondition, Field(discriminator="kind")]


class HuWindow(Settings):
    """CT: Hounsfield units, clipped to [low, high]."""

    kind: Literal["hu_window"]
    low: float = -1000.0
    high: float = 400.0

    @model_validator(mode="after")
    def _ordered(self) -> HuWindow:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class Percentiles(Settings):
    """MR and everything without a fixed unit: each scan between two percentiles of its own voxels."""

    kind: Literal["percentiles"]
    low: Annotated[float, Field(ge=0, lt=50)] = 0.5
    high: Annotated[float, Field(gt=50, le=100)] = 99.5


Intensity = Annotated[HuWindow | Percentiles, Field(discriminator="kind")]


class Split(Settings):
    """Shares of patients. A `split` column in the cohort's table wins over these."""

    train: Annotated[float, Field(gt=0, lt=1)] = 0.7
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15
    stratify: Name | None = None
    """The category whose shares should be alike in every split."""

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train + validation + test must be 1")
        return self


class Prepare(Settings):
    """How scans come in: grid, box, intensity, split, key."""

    spacing_mm: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    box: Triple = (48, 48, 48)
    """Size in voxels that every scan is cropped or padded to."""
    grids: Annotated[tuple[Grid, ...], Field(max_length=32, exclude_if=lambda grids: not grids)] = ()
    """Several boxes and spacings in the place of the one above; each scan goes onto the grid that suits it."""
    centre: Literal["volume", "mask"] = "volume"
    """What the box is centred on."""
    pad: Literal["constant", "edge"] = "constant"
    """What fills the box beyond the scan: the lowest intensity of the rule, or the nearest voxel."""
    intensity: Intensity = HuWindow(kind="hu_window")
    split: Split = Split()
    on_bad_case: Literal["skip", "stop"] = "skip"
    """An unusable case is left out and reported, or stops the run."""
    duplicates: Literal["keep_first", "stop"] = "keep_first"
    """Scans with the same pixels under two names: keep the first and report, or stop."""
    key_file: ConfigPath | None = None
    """Secret for pseudonyms; created in the workspace unless given. Share it to get the same pseudonyms elsewhere."""
    linking_table: ConfigPath | None = None
    """Encrypted table that leads from pseudonyms back to patients; none is kept unless given."""
    irregular: Literal["refuse", "resample"] = "refuse"
    """Tilted gantry, uneven or missing slices: such series are left out, or put on a regular grid and marked so."""
    workers: Annotated[int, Field(ge=1, le=256)] = 2

    @model_validator(mode="after")
    def _different(self) -> Prepare:
        for number, grid in enumerate(self.grids):
            if find_grid(self.grids[:number], grid.box, grid.spacing_mm) is not None:
                raise ValueError(f"grids must be different from each other, found {grid} twice")
        return self

    def every_grid(self) -> tuple[Grid, ...]:
        """The grids that scans go onto: one, unless several are given."""
        return self.grids or (Grid(box=self.box, spacing_mm=self.spacing_mm),)
