"""Where devices write text into their pixels: rules as data, the site's own before those that come with medsynth.

A rule names a device and, if need be, the kind of image, and the rectangles to blank. Patterns are shell patterns
(`*`, `?`), read without regard to case. The first rule that fits an image counts, with all its rectangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydicom.dataset import Dataset

from medsynth.config.base import Settings
from medsynth.config.load import load_section
from medsynth.errors import ConfigError
from medsynth.imaging.deidentify.elements import whole_number
from medsynth.imaging.deidentify.suspicion import text_values

Pattern = Annotated[str, Field(min_length=1)]
Size = Annotated[int, Field(ge=1)]
Number = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
TEXTS = {
    "Manufacturer": 0x00080070,
    "ManufacturerModelName": 0x00081090,
    "Modality": 0x00080060,
    "SOPClassUID": 0x00080016,
    "ImageType": 0x00080008,
    "SeriesDescription": 0x0008103E,
}
SIZES = {"Rows": 0x00280010, "Columns": 0x00280011}


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels that is blanked."""

    x: int
    y: int
    width: int
    height: int
    frame: int | None = None
    """Which frame, from 0; None for all."""


class Device(Settings):
    """Which images a rule is for. Attributes carry their names in DICOM."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    Manufacturer: Pattern | None = None
    ManufacturerModelName: Pattern | None = None
    Modality: Pattern | None = None
    SOPClassUID: Pattern | None = None
    ImageType: Pattern | None = None
    SeriesDescription: Pattern | None = None
    Rows: Size | None = None
    Columns: Size | None = None

    @model_validator(mode="after")
    def _names_a_device(self) -> Device:
        if self.Manufacturer is None and self.ManufacturerModelName is None:
            raise ValueError("expected Manufacturer or ManufacturerModelName, so that the rule is one device's")
        return self

    def fits(self, source: Dataset) -> bool:
        """Whether every attribute that the rule names is as it says; of several values one is enough."""
        for keyword, tag in TEXTS.items():
            pattern = getattr(self, keyword)
            if pattern is not None and not any(
                fnmatchcase(value, pattern.upper()) for value in text_values(source, tag) or [""]
            ):
                return False
        return all(getattr(self, keyword) in (None, whole_number(source, tag, 0)) for keyword, tag in SIZES.items())


class Rule(Settings):
    """One device, and the rectangles in which it writes."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    source: str = ""
    """Where the rule is known from."""
    when: Device
    blank: Annotated[tuple[tuple[Number, Number, Number, Number], ...], Field(min_length=1)]
    """[x, y, width, height] from the upper left corner: whole pixels, or shares of the image where any of the four has a
    decimal point."""

    @field_validator("blank")
    @classmethod
    def _have_area(cls, blank: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        for box in blank:
            if box[2] == 0 or box[3] == 0:
                raise ValueError("expected rectangles [x, y, width, height] with an area, found one without")
            if any(isinstance(number, float) for number in box) and max(box) > 1:
                raise ValueError("expected four whole pixels or four shares from 0.0 to 1.0, found a mixture")
        return blank

    def regions(self, rows: int, columns: int) -> tuple[Region, ...]:
        """The rectangles on an image of this size; shares are rounded outwards, and nothing sticks out."""
        found = []
        for box in self.blank:
            shares = any(isinstance(number, float) for number in box)
            scale = (columns, rows) if shares else (1, 1)
            x, y = int(box[0] * scale[0]), int(box[1] * scale[1])
            right = min(columns, -int(-(box[0] + box[2]) * scale[0] // 1))
            bottom = min(rows, -int(-(box[1] + box[3]) * scale[1] // 1))
            if x < right and y < bottom:
                found.append(Region(x, y, right - x, bottom - y))
        return tuple(found)


class RegionRules(Settings):
    """A file of rules."""

    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _names_once(self) -> RegionRules:
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("rules: expected each name once")
        return self


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a YAML file. Raises ConfigError with a line per mistake."""
    if not path.is_file():
        raise ConfigError([f"regions: expected a YAML file of rules, found none at {path}; check the path"])
    return load_section(RegionRules, "regions", str(path)).rules


@cache
def shipped_rules() -> tuple[Rule, ...]:
    """The rules that come with medsynth; read once."""
    with as_file(files(__package__) / "regions.yaml") as path:
        return read_rules(path)


def regions_for(source: Dataset, rules: tuple[Rule, ...]) -> tuple[Region, ...]:
    """The rectangles of the first rule that fits; empty where none does."""
    rows, columns = (whole_number(source, SIZES[keyword], 0) for keyword in ("Rows", "Columns"))
    return next((rule.regions(rows, columns) for rule in rules if rule.when.fits(source)), ())
