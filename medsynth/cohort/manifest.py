"""The manifest: `manifest.csv`, one row per prepared or synthetic case.

Case and patient names are pseudonyms, paths are relative to the manifest's folder, and a manifest holds either real or
synthetic cases, never both. Reading is strict: what does not belong there is an error, and all errors come out at once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from medsynth.cohort.split import SPLITS
from medsynth.cohort.table import Mistakes, Row, nearest, read_table
from medsynth.config.cohort import CategoryCondition, Condition, MaskCondition
from medsynth.digests import file_sha256
from medsynth.errors import CohortError, DataError

Value = str | float | None

FILE_NAME = "manifest.csv"
ORIGINS = ("real", "synthetic")
BEFORE_CONDITIONS = ("case", "patient", "origin", "split", "image", "mask")
AFTER_CONDITIONS = ("modality", "shape", "spacing_mm", "sha256", "mask_sha256", "intensity_low", "intensity_high")
LATER = ("resampled",)
"""Columns that manifests of earlier versions do not have."""
GENERATION = ("model", "seed", "sampler", "evaluations", "guidance")
"""Columns that only synthetic cases have: enough, with the conditions and those of LATER_GENERATION, to draw the same voxels
again."""
LATER_GENERATION = ("precision",)
"""Like GENERATION; manifests of earlier versions do not have them."""
SYNTHETIC = (*GENERATION, *LATER_GENERATION)

MANIFEST = "manifest.csv"
"""Its name wherever one is written."""
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Case:
    """One scan of a manifest."""

    case: str
    patient: str
    origin: str
    """`real` or `synthetic`."""
    split: str
    """`train`, `validation` or `test`; a synthetic case is `train` or `synthetic`, so that no test ever holds one."""
    image: str
    """Path from the manifest's folder, with forward slashes."""
    mask: str
    """Like `image`; empty where there is none."""
    modality: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    sha256: str
    """Of the image's file."""
    intensity_low: float
    intensity_high: float
    """The two intensities, in the image's unit, that training maps to -1 and 1."""
    conditions: Mapping[str, Value]
    """Categories and numbers; None where the condition is unknown (generation: not asked for)."""
    generation: Mapping[str, str] = field(default_factory=dict)
    """The columns of SYNTHETIC; empty for a real case."""
    mask_sha256: str = ""
    """Of the mask's file; empty where there is no mask."""
    resampled: str = ""
    """Why the series was put on a regular grid when it was read; empty where it had one."""

    @property
    def made_again(self) -> str:
        """What to do where a file of it is missing or broken."""
        return f"{'generate' if self.origin == 'synthetic' else 'prepare the cohort'} again (--force)"


@dataclass(frozen=True)
class Manifest:
    """The cases in one folder, and the conditions they are described by."""

    folder: Path
    cases: tuple[Case, ...]
    declared: Mapping[str, Condition]

    @classmethod
    def read(cls, path: Path, conditions: Mapping[str, Condition]) -> Manifest:
        """The manifest in `path`.

        Raises UnreadableError where there is none, CohortError with every mistake in it.
        """
        names = _column_conditions(conditions)
        plain, generated = _header(names, synthetic=False), _header(names, synthetic=True)
        table = read_table(path, generated)
        mistakes = Mistakes(path.name)
        for name in plain:
            if name not in table.columns and name not in LATER:
                others = [column for column in table.columns if column not in plain]
                mistakes.add(f"column {name} is missing{nearest(name, others)}; prepare the cohort again")
        for name in table.columns:
            if name not in generated:
                mistakes.add(f"column {name} is not one of a manifest's{nearest(name, generated)}; remove it")
        mistakes.raise_any()
        cases = [_parse(row, conditions, mistakes) for row in table.rows]
        mistakes.raise_any()
        _check(cases, conditions, [row.line for row in table.rows], mistakes)
        mistakes.raise_any()
        return cls(path.parent, tuple(cases), dict(conditions))

    def write(self, path: Path) -> None:
        """Write the manifest, whole or not at all. Raises CohortError with everything that `read` would refuse."""
        mistakes = Mistakes(path.name)
        _check(self.cases, self.declared, range(2, len(self.cases) + 2), mistakes)
        mistakes.raise_any()
        header = _header(_column_conditions(self.declared), synthetic=any(c.origin == "synthetic" for c in self.cases))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                table = csv.DictWriter(stream, header, lineterminator="\n", extrasaction="ignore")
                table.writeheader()
                table.writerows(_cells(case, self.declared) for case in self.cases)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def split(self, name: str) -> Manifest:
        """The cases of one split. Raises CohortError where there are none."""
        cases = tuple(case for case in self.cases if case.split == name)
        if not cases:
            raise CohortError(f"expected cases in the split {name}, found none; check the cohort and its split")
        return replace(self, cases=cases)

    def digest(self) -> str:
        """sha256 of all that the manifest says, whatever the order of its rows and wherever its folder is."""
        rows = sorted(json.dumps(_cells(case, self.declared), sort_keys=True) for case in self.cases)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def image_path(self, case: Case) -> Path:
        return self.folder / case.image

    def mask_path(self, case: Case) -> Path | None:
        return self.folder / case.mask if case.mask else None

    def verify(self) -> None:
        """Raise DataError, naming the cases, where a file is missing or is not the one that was written."""
        missing, altered = [], []
        for case in self.cases:
            for path, expected in ((self.image_path(case), case.sha256), (self.mask_path(case), case.mask_sha256)):
                if path is None:
                    continue
                if not path.is_file():
                    missing.append(case.case)
                elif expected and file_sha256(path) != expected:
                    altered.append(case.case)
        if missing or altered:
            found = [
                f"{len(cases)} {word} ({_some(cases)})"
                for cases, word in ((missing, "missing"), (altered, "altered"))
                if cases
            ]
            raise DataError(
                f"expected the files that the manifest lists, found {', '.join(found)}; {self.cases[0].made_again}"
            )

    def check_training_values(self) -> None:
        """Raise CohortError where a declared value has no training case: the generator could not learn it."""
        mistakes = Mistakes("training split")
        training = [case for case in self.cases if case.split == "train"]
        for name, condition in self.declared.items():
            if isinstance(condition, CategoryCondition):
                found = {case.conditions.get(name) for case in training}
                missing = [value for value in condition.values if value not in found]
                if missing:
                    mistakes.add(
                        f"{name}: expected cases of every value, found none of {', '.join(missing)}; add cases, or "
                        f"remove it from conditions.{name}.values"
                    )
        mistakes.raise_any()


def _some(cases: Sequence[str]) -> str:
    unique = list(dict.fromkeys(cases))
    return ", ".join(unique[:5]) + (", ..." if len(unique) > 5 else "")


def _column_conditions(conditions: Mapping[str, Condition]) -> list[str]:
    """Conditions that have a column of their own; a mask is a file."""
    return [name for name, condition in conditions.items() if not isinstance(condition, MaskCondition)]


def _header(names: Sequence[str], *, synthetic: bool) -> list[str]:
    return [*BEFORE_CONDITIONS, *names, *AFTER_CONDITIONS, *LATER, *(SYNTHETIC if synthetic else ())]


def _cells(case: Case, declared: Mapping[str, Condition]) -> dict[str, str]:
    """The row as text. Numbers are written so that they read back exactly."""
    values = {name: case.conditions.get(name) for name in _column_conditions(declared)}
    return {
        "case": case.case,
        "patient": case.patient,
        "origin": case.origin,
        "split": case.split,
        "image": case.image,
        "mask": case.mask,
        **{name: "" if v is None else v if isinstance(v, str) else repr(float(v)) for name, v in values.items()},
        "modality": case.modality,
        "shape": "x".join(str(int(size)) for size in case.shape),
        "spacing_mm": "x".join(repr(float(step)) for step in case.spacing_mm),
        "sha256": case.sha256,
        "mask_sha256": case.mask_sha256,
        "intensity_low": repr(float(case.intensity_low)),
        "intensity_high": repr(float(case.intensity_high)),
        "resampled": case.resampled,
        **{name: str(case.generation.get(name, "")) for name in SYNTHETIC},
    }


def _parse(row: Row, declared: Mapping[str, Condition], mistakes: Mistakes) -> Case:
    """The row as a case; cells that cannot be read are noted in `mistakes`."""
    cells = row.cells

    def numbers(name: str, count: int, kind: Callable[[str], float]) -> tuple[float, ...]:
        try:
            found = tuple(kind(part) for part in cells[name].split("x"))
        except ValueError:
            found = ()
        if len(found) != count or not all(map(math.isfinite, found)):
            mistakes.add(f"{name}: expected {'three numbers joined by x' if count == 3 else 'a number'}", row.line)
            return (0,) * count
        return found

    def value(name: str, condition: Condition) -> Value:
        if not cells[name] or isinstance(condition, CategoryCondition):
            return cells[name] or None
        return numbers(name, 1, float)[0]

    shape, spacing = numbers("shape", 3, int), numbers("spacing_mm", 3, float)
    return Case(
        case=cells["case"],
        patient=cells["patient"],
        origin=cells["origin"],
        split=cells["split"],
        image=cells["image"],
        mask=cells["mask"],
        modality=cells["modality"],
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        sha256=cells["sha256"],
        intensity_low=numbers("intensity_low", 1, float)[0],
        intensity_high=numbers("intensity_high", 1, float)[0],
        conditions={name: value(name, declared[name]) for name in _column_conditions(declared)},
        generation={name: cells[name] for name in SYNTHETIC if cells.get(name)},
        mask_sha256=cells["mask_sha256"],
        resampled=cells.get("resampled", ""),
    )


def _check(cases: Sequence[Case], declared: Mapping[str, Condition], lines: Sequence[int], mistakes: Mistakes) -> None:
    """Note everything that no manifest may say."""
    reserved = (*BEFORE_CONDITIONS, *AFTER_CONDITIONS, *LATER, *SYNTHETIC)
    for name in _column_conditions(declared):
        if name in reserved:
            mistakes.add(f"{name} is a column of the manifest; give the condition another name")
    if not cases:
        mistakes.add("expected at least one case, found none")
    if len({case.origin for case in cases} & set(ORIGINS)) > 1:
        mistakes.add("real and synthetic cases must not share a manifest; write one for each")
    first_split: dict[str, str] = {}
    seen: set[str] = set()
    for case, line in zip(cases, lines, strict=True):
        for message in _faults(case, declared):
            mistakes.add(message, line)
        if case.case in seen:
            mistakes.add("case: the name stands in an earlier row too; every case needs its own", line)
        seen.add(case.case)
        if case.origin == "real" and first_split.setdefault(case.patient, case.split) != case.split:
            mistakes.add("split: an earlier row has this patient in another split; keep a patient in one", line)


def _faults(case: Case, declared: Mapping[str, Condition]) -> list[str]:
    """What is wrong with one case by itself."""
    splits = SPLITS if case.origin == "real" else ("train", "synthetic")
    rules = {
        "case: expected letters, digits, dots, dashes and underscores": SAFE_NAME.fullmatch(case.case),
        "patient: the pseudonym is missing": case.patient or case.origin == "synthetic",
        f"origin: expected {' or '.join(ORIGINS)}": case.origin in ORIGINS,
        f"split: expected {', '.join(splits)} for a {case.origin} case": case.origin not in ORIGINS
        or case.split in splits,
        "image: expected a path inside the manifest's folder, with forward slashes": _inside(case.image),
        "mask: expected a path inside the manifest's folder, with forward slashes": not case.mask or _inside(case.mask),
        "shape: expected three sizes of at least 1": len(case.shape) == 3 and min(case.shape) >= 1,
        "spacing_mm: expected three lengths above 0": len(case.spacing_mm) == 3 and min(case.spacing_mm) > 0,
        "sha256: expected 64 hexadecimal digits": _SHA256.fullmatch(case.sha256),
        "mask_sha256: expected 64 hexadecimal digits": not case.mask_sha256 or _SHA256.fullmatch(case.mask_sha256),
        "intensity_low must be below intensity_high": case.intensity_low < case.intensity_high,
        "generation columns belong to synthetic cases": case.origin != "real" or not case.generation,
        f"expected {', '.join(GENERATION)} of a synthetic case": case.origin != "synthetic"
        or set(case.generation) >= set(GENERATION),
    }
    faults = [message for message, holds in rules.items() if not holds]
    for name in _column_conditions(declared):
        condition, value = declared[name], case.conditions.get(name)
        if value is None:
            continue
        if isinstance(condition, CategoryCondition):
            if value not in condition.values:
                faults.append(
                    f"{name}: expected one of {', '.join(condition.values)}{nearest(str(value), condition.values)}"
                )
        elif not isinstance(condition, MaskCondition):
            low, high = condition.range
            if isinstance(value, str) or not low <= value <= high:
                faults.append(f"{name}: expected a number from {low:g} to {high:g}")
    return faults


def _inside(path: str) -> bool:
    """Whether a path is relative, stays below its start and is written with forward slashes."""
    parts = PurePosixPath(path)
    return bool(path) and "\\" not in path and not parts.is_absolute() and ".." not in parts.parts
