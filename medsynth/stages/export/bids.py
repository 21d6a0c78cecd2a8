"""A BIDS derivative: one subject per patient or synthetic case, a sidecar with its conditions beside every scan."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsynth import __version__
from medsynth.errors import DataError
from medsynth.imaging.synthetic.header import DESCRIPTION
from medsynth.stages.export.collect import Dataset, Entry, entries_of, labels_of
from medsynth.stages.export.nnunet import copy_packed
from medsynth.stages.files import write_json, write_text

BIDS_VERSION = "1.10.0"
PLACE = {"CT": ("ct", "ct"), "MR": ("anat", "MR")}
"""Modality -> (folder, suffix). BIDS knows no CT yet, and no suffix for MR of unknown contrast; `.bidsignore` names both."""
UNKNOWN = "n/a"


def write_bids(datasets: Sequence[Dataset], folder: Path, name: str) -> list[str]:
    """Write the layout into `folder`. Returns lines for the datasheet. Raises DataError for another modality."""
    entries = entries_of(datasets)
    if unknown := {entry.case.modality for entry in entries} - set(PLACE):
        raise DataError(f"expected scans of {' or '.join(PLACE)}, found {min(unknown) or 'none stated'}; use croissant")
    subjects: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        subjects[subject(entry)].append(entry)
    for label, scans in subjects.items():
        for number, entry in enumerate(scans, start=1):
            _write(entry, folder, label, f"_run-{number}" if len(scans) > 1 else "")
    labels = labels_of(datasets)
    if labels:
        rows = [["index", "name"], ["0", "background"], *([str(value), text] for text, value in labels.items())]
        for desc in {_desc(entry) for entry in entries if entry.mask is not None}:
            write_text(folder / f"desc-{desc}_dseg.tsv", _table(rows))
    write_json(
        folder / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {"Name": "medsynth", "Version": __version__, "Description": "Synthetic and prepared scans"}
            ],
        },
    )
    write_text(folder / "participants.tsv", _participants(subjects))
    write_json(
        folder / "participants.json",
        {
            "origin": {
                "Description": "Whether the scans were taken of a patient or generated",
                "Levels": {"real": "a patient, under a pseudonym", "synthetic": DESCRIPTION},
            },
            "split": {"Description": "Part of the cohort; synthetic scans are for training alone"},
        },
    )
    write_text(folder / ".bidsignore", "".join(f"{line}\n" for line in ("*_ct.*", "**/ct/", "*_MR.*")))
    return [
        "Subjects whose label begins with `synthetic` are nobody; `Synthetic` in each sidecar and `origin` in",
        "`participants.tsv` say the same. Conditions are in the sidecars.",
    ]


def subject(entry: Entry) -> str:
    """The subject's label, which BIDS wants of letters and digits alone."""
    name = re.sub(r"[^A-Za-z0-9]", "", entry.case.case if entry.synthetic else entry.case.patient)
    return f"synthetic{name}" if entry.synthetic else name


def _desc(entry: Entry) -> str:
    return "synthetic" if entry.synthetic else "prepared"


def _write(entry: Entry, folder: Path, label: str, run: str) -> None:
    kind, suffix = PLACE[entry.case.modality]
    place = folder / f"sub-{label}" / kind
    place.mkdir(parents=True, exist_ok=True)
    stem = f"sub-{label}{run}_desc-{_desc(entry)}"
    copy_packed(entry.image, place / f"{stem}_{suffix}.nii.gz")
    write_json(place / f"{stem}_{suffix}.json", _sidecar(entry))
    if entry.mask is not None:
        copy_packed(entry.mask, place / f"{stem}_dseg.nii.gz")


def _sidecar(entry: Entry) -> dict[str, Any]:
    said: dict[str, Any] = {
        "Synthetic": entry.synthetic,
        "Modality": entry.case.modality,
        "Split": entry.case.split,
        "Conditions": {name: value for name, value in entry.case.conditions.items() if value is not None},
    }
    if entry.synthetic:
        said |= {"Description": DESCRIPTION, "Generation": dict(entry.case.generation)}
    return said


def _participants(subjects: dict[str, list[Entry]]) -> str:
    rows = [["participant_id", "origin", "split"]]
    rows += [[f"sub-{name}", scans[0].case.origin, scans[0].case.split or UNKNOWN] for name, scans in subjects.items()]
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(rows)
    return text.getvalue()
