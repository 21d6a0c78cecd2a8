"""A small cohort as a hospital would hand it over, with names all over it, and what must never be seen of it."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pydicom

from medsynth.cohort.phantom import write_phantom_cohort
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.nifti import write_nifti
from medsynth.imaging.read import read_scan

PATIENTS = 8
DICOM_ROWS = range(4)
"""Rows whose scan is a DICOM folder; the others are NIfTI files."""
SURNAME, FORENAME = "KOWALCZYK", "JADWIGA"

LITTLE_EVIDENCE = """\
evaluate:
  benefit: {steps: 2, batch_size: 4, seeds: 1, ratios: [1.0]}
  bootstrap: 100
  pictures: 2
tracking: {system_metrics: false}
compute: {device: cpu, threads: 1}
"""
"""The end of a pipeline whose evidence takes seconds."""

PIPELINE = (
    """\
name: tiny
cohort: {kind: csv, csv: cohort.csv}
conditions:
  diagnosis: {kind: category, values: [benign, malignant]}
  diameter_mm: {kind: number, range: [1, 40], unit: mm}
  nodule: {kind: mask, labels: {nodule: 1}, dropout: 0.2}
prepare:
  spacing_mm: [3, 3, 3]
  box: [16, 16, 16]
  split: {train: 0.5, validation: 0.25, test: 0.25, stratify: diagnosis}
autoencoder:
  network: {downsampling: 2, latent_channels: 2, width: 8, blocks: 1}
  training: {steps: 2, batch_size: 2, warmup_steps: 1, validate_every: 2, log_every: 2}
denoiser:
  network: {widths: [16], blocks: 1, head_channels: 8, mask_channels: 4}
  training: {steps: 2, batch_size: 2, warmup_steps: 1, validate_every: 2, log_every: 2}
generate: {count: 4, sampling: {sampler: flow_euler, evaluations: 2}}
"""
    + LITTLE_EVIDENCE
)


@dataclass(frozen=True)
class Ward:
    """The folder with the table, the scans and a pipeline for them. Rows are counted from 0."""

    folder: Path

    @property
    def pipeline(self) -> Path:
        return self.folder / "pipeline.yaml"

    @property
    def table(self) -> Path:
        return self.folder / "cohort.csv"

    def rows(self) -> list[dict[str, str]]:
        with self.table.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def write(self, rows: list[dict[str, str]]) -> None:
        with self.table.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def change(self, row: int, **cells: str) -> None:
        """Other cells in one row; a column that was not there is added to all."""
        rows = self.rows()
        for each in rows:
            for column in cells:
                each.setdefault(column, "")
        rows[row].update(cells)
        self.write(rows)

    def keep(self, count: int) -> None:
        self.write(self.rows()[:count])

    def image(self, row: int) -> Path:
        return self.folder / self.rows()[row]["image"]

    def mask(self, row: int) -> Path:
        return self.folder / self.rows()[row]["mask"]

    def identities(self) -> set[str]:
        """Whatever names a patient here: in headers, in names of files and in the table."""
        found = {SURNAME, FORENAME} | {row["patient"] for row in self.rows()}
        for path in self.folder.rglob("*.dcm"):
            with path.open("rb") as stream:
                if stream.read(132)[128:] != b"DICM":
                    continue
            header = pydicom.dcmread(path, stop_before_pixels=True, force=False)
            found |= {str(header.PatientID), str(header.AccessionNumber), str(header.StudyInstanceUID)}
            found |= {part for part in re.split(r"[\^= ]", str(header.PatientName)) if len(part) > 4}
        return {name.lower() for name in found if name}


def write_ward(folder: Path) -> Ward:
    """Eight phantom patients as DICOM folders and NIfTI files that are called after them."""
    source = folder / "source"
    write_phantom_cohort(source, PATIENTS, seed=11)
    deidentifier = Deidentifier(SecretKey.load_or_create(folder / "secrets" / "key"))
    with (source / "cohort.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    ward = Ward(folder / "ward")
    ward.folder.mkdir()
    for number, row in enumerate(rows):
        name = f"{SURNAME}_{FORENAME}_{number}"
        if number in DICOM_ROWS:
            (source / row["image"]).rename(ward.folder / name)
            row["image"] = name
        else:
            scan = read_scan(source / row["image"], deidentifier=deidentifier)
            write_nifti(scan, ward.folder / f"{name}.nii.gz")
            row["image"] = f"{name}.nii.gz"
        (source / row["mask"]).rename(ward.folder / f"{name}_mask.nii.gz")
        row["mask"] = f"{name}_mask.nii.gz"
        row["patient"] = f"{SURNAME}-{row['patient']}"
    shutil.rmtree(source)
    ward.write(rows)
    ward.pipeline.write_text(PIPELINE, encoding="utf-8")
    return ward


def leaks(names: set[str], *texts: str, folder: Path | None = None) -> list[str]:
    """Where one of `names` stands: `text`, or files (by name or content) below `folder`, keys apart."""
    found = ["text" for text in texts for name in names if name in text.lower()]
    needles = [name.encode() for name in names]
    for path in sorted(folder.rglob("*")) if folder is not None and folder.is_dir() else []:
        inside = path.relative_to(folder).as_posix().lower() if folder is not None else ""
        data = path.read_bytes().lower() if path.is_file() and "secrets" not in path.parts else b""
        if any(needle in data or needle in inside.encode() for needle in needles):
            found.append(inside)
    return found
