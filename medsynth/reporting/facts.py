"""What a report says besides evidence and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Line = list[tuple[float, float]]
LEVEL = "loss at "
"""Starts the name of a validation figure that is the loss at some noise levels."""
_ROW = ("split", "patients", "scans")
_SPLITS = {"train": "training"}


@dataclass(frozen=True)
class Facts:
    """Where evidence and pictures come from. No value may hold an identifier or a path of the machine.

    cohort: one row per split and one for the synthetic set: `split`, `patients`, `scans`, and per condition what the
    row has of it.  findings: sentences on what was left out of the cohort and why.  history: stage -> records of its
    training loop as JSON.  gates: results as JSON.  model: provenance of the model folder.  settings, sampling: of the
    evaluation and of the generator.  config: the whole resolved pipeline as YAML, if it shall be shown.  written: a
    date, left out unless given, so that the same facts give the same file.
    """

    title: str
    cohort: Sequence[Mapping[str, Any]]
    findings: Sequence[str] = ()
    history: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    gates: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    written: str = ""

    @property
    def conditions(self) -> list[str]:
        """Columns of the cohort's table beyond split, patients and scans."""
        return list(dict.fromkeys(key for row in self.cohort for key in row if key not in _ROW))

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The cohort's table: name of the row, then its cells."""
        out = []
        for row in self.cohort:
            patients = str(row["patients"]) if row.get("patients") else "none"
            cells = [patients, str(row["scans"]), *(str(row.get(name, "")) for name in self.conditions)]
            out.append((_SPLITS.get(row["split"], row["split"]), cells))
        return out

    @property
    def provenance(self) -> list[tuple[str, str]]:
        """Origin of the model and how it was sampled, nested keys joined."""
        model = {key: value for key, value in self.model.items() if key not in ("settings", "profile")}
        return [*_flat(model), *(("sampling: " + key, value) for key, value in _flat(self.sampling))]

    @property
    def listing(self) -> str:
        """Settings as YAML: the whole pipeline where it was given, else what the stages passed on."""
        if self.config:
            return self.config
        known = {
            **dict(self.model.get("settings", {})),
            **({"evaluate": dict(self.settings)} if self.settings else {}),
            **({"sampling": dict(self.sampling)} if self.sampling else {}),
        }
        return yaml.safe_dump(known, sort_keys=False, allow_unicode=True) if known else ""

    @property
    def warnings(self) -> list[str]:
        """Warnings that stood at the end of training, stage by stage."""
        ends = [records[-1] for records in self.history.values() if records]
        return [warning for end in ends for warning in end.get("warnings", [])]

    @property
    def unanswered(self) -> list[str] | None:
        """What the looks at samples during training could not tell with so few patients; None where there were none."""
        looks = [line for records in self.history.values() for line in records if line.get("watch")]
        return list(looks[-1].get("unanswered", [])) if looks else None

    @property
    def kept(self) -> list[tuple[str, int]]:
        """Stage and step of the weights that were kept."""
        return [
            (stage, line["step"]) for stage, records in self.history.items() for line in records if line.get("kept")
        ]

    def losses(self) -> list[tuple[str, dict[str, Line]]]:
        """Title -> lines (optimiser step, value), one chart each: what is minimised, its terms, further figures."""
        charts: list[tuple[str, dict[str, Line]]] = []
        for stage, records in self.history.items():
            training = _lines(records, "losses")
            validation = _lines(records, "validation")
            main = {"training": training.pop("loss", []), "validation": validation.pop("loss", [])}
            charts.append((f"{stage}: loss", {name: line for name, line in main.items() if line}))
            charts.append((f"{stage}: terms of the training loss", training))
            levels = {name: validation.pop(name) for name in list(validation) if name.startswith(LEVEL)}
            levels = {name.removeprefix(LEVEL).removesuffix(" degrees"): line for name, line in levels.items()}
            charts.append((f"{stage}: validation loss by noise angle in degrees", levels))
            charts += [(f"{stage}: {name} on the validation split", {name: line}) for name, line in validation.items()]
            charts += [(f"{stage}: {title}", lines) for title, lines in _looks(records)]
            charts.append((f"{stage}: share of the time that went by waiting for data", _waiting(records)))
        return [(title, lines) for title, lines in charts if lines]


_LOOKS = {
    "loss with every condition given": {"training_loss": "training", "validation_loss": "validation"},
    "likeness among samples (MS-SSIM)": {"ms_ssim": "samples", "ms_ssim_real": "real scans"},
    "distance to the nearest training latent": {"nearest": "samples", "nearest_real": "validation scans"},
}
"""Charts of the looks at a training run: what each line shows is named as the record names it."""


def _looks(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Line]]]:
    found = _lines(records, "watch")
    return [
        (title, {label: found[name] for name, label in names.items() if name in found})
        for title, names in _LOOKS.items()
    ]


def _waiting(records: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    line = [(float(record["step"]), float(record["waiting"])) for record in records if "waiting" in record]
    return {"waiting": line} if line else {}


def _lines(records: Sequence[Mapping[str, Any]], part: str) -> dict[str, Line]:
    out: dict[str, Line] = {}
    for record in records:
        for name, value in (record.get(part) or {}).items():
            if math.isfinite(value):
                out.setdefault(name, []).append((record["step"], value))
    return out


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            out += _flat(value, f"{name}: ")
        elif isinstance(value, list | tuple):
            out.append((name, ", ".join(str(item) for item in value)))
        elif value is not None:
            out.append((name, str(value)))
    return out
