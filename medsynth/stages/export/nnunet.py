"""nnU-Net v2's raw layout: imagesTr, labelsTr, dataset.json, and folds in which synthetic scans only ever train."""

from __future__ import annotations

import gzip
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medsynth import __version__
from medsynth.errors import CohortError, DataError, UsageError
from medsynth.imaging.nifti import GZIP_LEVEL, read_nifti, write_nifti
from medsynth.imaging.scan import same_grid
from medsynth.imaging.synthetic.header import DESCRIPTION
from medsynth.stages.export.collect import Dataset, Entry, entries_of, labels_of
from medsynth.stages.files import write_json

NAME = re.compile(r"Dataset\d{3}_[A-Za-z0-9][A-Za-z0-9_-]*")
CHANNEL = {"CT": "CT", "MR": "MRI"}
"""nnU-Net normalises a channel called CT by Hounsfield units, any other by its own mean and spread."""
MOST_FOLDS = 5


def check_name(name: str) -> None:
    """Raise UsageError where nnU-Net would not find a dataset of this name."""
    if not NAME.fullmatch(name):
        raise UsageError(f"--out: expected a folder called DatasetNNN_NAME, such as Dataset501_Lung, found {name}")


def write_nnunet(datasets: Sequence[Dataset], folder: Path, name: str) -> list[str]:
    """Write the layout into `folder`; real test scans go to imagesTs and labelsTs. Returns lines for the datasheet.

    Raises DataError where a case has no mask, CohortError where real scans have no validation split.
    """
    entries = entries_of(datasets)
    bare = sum(entry.mask is None for entry in entries)
    if bare:
        raise DataError(f"expected a mask for every case, found {bare} without; nnU-Net learns from masks alone")
    labels = labels_of(datasets)
    values = {value: number for number, value in enumerate(labels.values(), start=1)}
    held_out = [entry for entry in entries if _held_out(entry)]
    training = [entry for entry in entries if not _held_out(entry)]
    splits = folds(training)
    for chosen, suffix in ((training, "Tr"), (held_out, "Ts")):
        for entry in chosen:
            _write(entry, folder, suffix, values)
    write_json(
        folder / "dataset.json",
        {
            "name": name,
            "description": f"{DESCRIPTION}: every case whose name ends in _synthetic. Written by medsynth {__version__}.",
            "channel_names": {"0": CHANNEL.get(entries[0].case.modality, "scan")},
            "labels": {"background": 0, **{name: values[value] for name, value in labels.items()}},
            "numTraining": len(training),
            "file_ending": ".nii.gz",
        },
    )
    if not splits:
        return [
            "There are no real scans here and therefore no folds: train with fold `all`, and judge on real scans.",
            "nnU-Net's own folds would put synthetic scans where real ones must judge.",
        ]
    write_json(folder / "splits_final.json", splits)
    return [
        f"`splits_final.json` holds {len(splits)} folds. Copy it to `nnUNet_preprocessed/{name}/` after planning.",
        "Validation patients are those of the cohort's own validation split, which no generator was trained on. No",
        "synthetic case is in any validation fold, and no patient is on both sides of one.",
        *(["`imagesTs` and `labelsTs` hold the real test split. Use it once, at the end."] if held_out else []),
    ]


def _held_out(entry: Entry) -> bool:
    return not entry.synthetic and entry.case.split == "test"


def folds(entries: Sequence[Entry]) -> list[dict[str, list[str]]]:
    """nnU-Net's splits: the real validation patients dealt over up to five folds; all else trains in each.

    A generator saw the real training split, and its scans resemble that: were those patients to judge a network that
    learned from such scans, the result would be too good. Empty where there is no real case. Raises CohortError where
    there are real cases and none of them is for validation.
    """
    real = [entry for entry in entries if not entry.synthetic]
    if not real:
        return []
    patients = sorted({entry.case.patient for entry in real if entry.case.split == "validation"})
    if not patients:
        raise CohortError("expected real cases of the split validation, found none; prepare with a validation split")
    count = min(MOST_FOLDS, len(patients))
    found = []
    for number in range(count):
        judging = set(patients[number::count])
        val = [entry.name for entry in real if entry.case.patient in judging]
        train = [entry.name for entry in entries if entry.synthetic or entry.case.patient not in judging]
        found.append({"train": sorted(train), "val": sorted(val)})
    return found


def _write(entry: Entry, folder: Path, suffix: str, values: Mapping[int, int]) -> None:
    for name in (f"images{suffix}", f"labels{suffix}"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    copy_packed(entry.image, folder / f"images{suffix}" / f"{entry.name}_0000.nii.gz")
    target = folder / f"labels{suffix}" / f"{entry.name}.nii.gz"
    if entry.mask is None:
        return
    if all(value == number for value, number in values.items()):
        copy_packed(entry.mask, target)
        return
    mask = read_nifti(entry.mask)
    turned = np.zeros(tuple(mask.shape), np.uint8)
    for value, number in values.items():
        turned[mask.as_tensor().numpy() == value] = number
    write_nifti(same_grid(mask, turned), target, description=f"{DESCRIPTION}; mask" if entry.synthetic else "")


def copy_packed(source: Path, target: Path) -> None:
    """The same NIfTI file as `.nii.gz`; packed where it was not, without name or time."""
    if source.name.endswith(".gz"):
        shutil.copyfile(source, target)
        return
    with source.open("rb") as plain, target.open("wb") as file:  # noqa: SIM117
        with gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed:
            shutil.copyfileobj(plain, packed)
