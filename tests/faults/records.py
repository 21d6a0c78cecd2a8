"""Faults that the other verbs meet: the table of cases, the way back from a pseudonym, forgetting, and the PACS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np

from .cleaning import CLEAN, call, good, write_key
from .fault import NOTHING, Build, Fault, Left, absent
from .scans import volume

PIPELINE = """\
name: tiny
cohort: {kind: csv, csv: cohort.csv}
conditions:
  diagnosis: {kind: category, values: [benign, malignant]}
prepare:
  spacing_mm: [3, 3, 3]
  box: [16, 16, 16]
"""
PREPARE = "medsynth prepare pipeline.yaml --workspace work"
HEADER = "patient,image,modality,diagnosis\n"


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from _table_of_cases()
    yield from _samplers()
    yield from _way_back()
    yield from _forgetting()
    yield from _pacs()


def _cohort(text: str) -> Build:
    def build(root: Path) -> None:
        (root / "pipeline.yaml").write_text(PIPELINE)
        (root / "cohort.csv").write_text(text)

    return build


def _table_of_cases() -> Iterator[Fault]:
    nothing = absent("work/prepare")
    scan = "Zqfamily,ZQFILE.nii.gz,CT,benign\n"
    yield Fault(
        "No table of cases",
        PREPARE,
        lambda root: _pipeline(root),
        3,
        "expected a CSV file, found nothing there",
        nothing,
    )
    yield Fault(
        "A table without the column `patient`",
        PREPARE,
        _cohort("image,diagnosis\n"),
        3,
        "column patient is missing",
        nothing,
    )
    yield Fault("A table without rows", PREPARE, _cohort(HEADER), 3, "expected a row for each scan", nothing)
    yield Fault(
        *("A table with an unknown category", PREPARE, _cohort(f"{HEADER}Zqfamily,ZQFILE.nii.gz,CT,zqtext\n")),
        *(3, "diagnosis: expected benign or malignant, found another word", nothing),
    )
    yield Fault(
        "A table that names no file", PREPARE, _cohort(f"{HEADER}{scan}"), 3, "image: no such file or folder", nothing
    )
    left_out = Left("every case left out", _none_prepared)
    for name, spoil, says in (
        ("NIfTI with NaN voxels, to prepare", _with_nan, "NaN"),
        ("NIfTI of nothing but a header, to prepare", _header_alone, "found a file too short for them"),
    ):
        yield Fault(name, PREPARE, _two_scans(spoil), 3, says, left_out)
    yield Fault(
        "An unknown pipeline",
        "medsynth prepare lungs",
        lambda root: None,
        2,
        "expected a pipeline file, …or one of demo",
        absent("runs"),
    )


def _two_scans(spoil: Callable[[Path], None]) -> Build:
    def build(root: Path) -> None:
        _cohort(f"{HEADER}Zqfamily,ZQFILE1.nii,CT,benign\nZqother,ZQFILE2.nii,CT,malignant\n")(root)
        for number in (1, 2):
            path = root / f"ZQFILE{number}.nii"
            nibabel.save(volume(), path)
            spoil(path)

    return build


def _with_nan(path: Path) -> None:
    voxels = np.zeros((6, 7, 8), np.float32)
    voxels[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, volume().affine), path)


def _header_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:352])


def _none_prepared(root: Path) -> str:
    found = list((root / "work").rglob("*.nii.gz"))
    return f"{len(found)} cases" if found else ""


def _pipeline(root: Path) -> None:
    (root / "pipeline.yaml").write_text(PIPELINE)


def _samplers() -> Iterator[Fault]:
    command, nothing = "medsynth samplers --model model --real work --out table", absent("table")
    yield Fault("Samplers of no model", command, lambda root: None, 3, "model", nothing)
    yield Fault(
        "Samplers at no whole number of evaluations",
        f"{command} --evaluations 8,many",
        lambda root: None,
        2,
        "expected whole numbers joined by commas",
        nothing,
    )
    yield Fault(
        "Samplers of a registry that is not named",
        "medsynth samplers --model models:/lungs@champion --real work --out table",
        lambda root: None,
        2,
        "expected the registry that holds it, found none",
        nothing,
    )


def _way_back() -> Iterator[Fault]:
    def linked(root: Path) -> None:
        good(root)
        call(root, f"{CLEAN} --linking-table secret/table")

    def other_key(root: Path) -> None:
        linked(root)
        write_key(root / "other" / "key", "cd" * 32 + "\n")

    back = "medsynth reidentify P0123456789AB --linking-table secret/table"
    nothing = absent("linking.csv")
    yield Fault(
        "Way back with the wrong key",
        f"{back} --key-file other/key",
        other_key,
        4,
        "expected the key that the linking table was made with",
        nothing,
    )
    yield Fault("Way back without a key", back, linked, 2, "expected --key-file", nothing)
    yield Fault(
        "Way back with a key that is not there", f"{back} --key-file none/key", linked, 2, "no such file", nothing
    )
    yield Fault(
        "Way back without a table",
        back.split(" --")[0] + " --key-file secret/key",
        linked,
        2,
        "without a table there is no way back",
        nothing,
    )
    yield Fault(
        "Way back of an unknown pseudonym",
        f"{back} --key-file secret/key",
        linked,
        3,
        "found 1 of 1 that are not in it",
        nothing,
    )


def _forgetting() -> Iterator[Fault]:
    def empty(root: Path) -> None:
        (root / "work").mkdir()

    nothing = absent("work/forgotten.json")
    forget = "medsynth forget --workspace work"
    yield Fault("Forget a patient without saying whom", f"{forget} --yes", empty, 2, "found both or neither", nothing)
    yield Fault("Forget where nobody can be asked", f"{forget} --patient X", empty, 2, "expected --yes", nothing)
    yield Fault(
        "Forget in a folder that is no workspace",
        f"{forget} --patient X --yes",
        empty,
        2,
        "expected a workspace",
        nothing,
    )


def _pacs() -> Iterator[Fault]:
    def settings(text: str) -> Build:
        def build(root: Path) -> None:
            good(root)
            (root / "pacs.yaml").write_text(text)

        return build

    web = "connection: {kind: dicomweb, url: 'http://127.0.0.1:9/dicom-web'}\n"
    push = "medsynth push scans --to pacs.yaml"
    yield Fault(
        "Real scans on their way to a PACS",
        push,
        settings(web),
        4,
        "expected only files marked as synthetic …; nothing was sent",
        absent("clean"),
    )
    yield Fault(
        "Settings of a PACS that are not there", push, good, 2, "pacs.yaml: expected a settings file", absent("clean")
    )
    inline = web.replace("127", "zqgiven:zqtext@127", 1)
    closed = "medsynth pull --from pacs.yaml --study 1.2.3 --out clean --key-file secret/key --set attempts=1"
    yield Fault("A PACS that does not answer", closed, settings(web), 2, "found no answer", NOTHING)
    yield Fault(
        "A password within the address of a PACS",
        push,
        settings(inline),
        2,
        "expected an address without a user or password in it",
        absent("clean"),
    )
