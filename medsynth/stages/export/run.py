"""An export, from the question to the folder: there as a whole, or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from medsynth.errors import StorageError, UsageError, says_storage_failed
from medsynth.stages.export.bids import write_bids
from medsynth.stages.export.collect import collect, entries_of
from medsynth.stages.export.croissant import write_croissant
from medsynth.stages.export.datasheet import datasheet
from medsynth.stages.export.nnunet import check_name, write_nnunet
from medsynth.stages.files import write_text

Layout = Literal["nnunet", "bids", "croissant"]
WRITERS = {"nnunet": write_nnunet, "bids": write_bids, "croissant": write_croissant}


def export(dataset: Path, layout: Layout, out: Path, *, real: Path | None = None) -> dict[str, Any]:
    """Copy a dataset into another layout. `real`: a prepared cohort to train on together with the synthetic scans.

    Raises UsageError where `out` exists or cannot be made, DataError or CohortError for a dataset that does not fit the
    layout, StorageError where the disk is full.
    """
    if out.exists():
        raise UsageError(f"{out}: expected a new folder, found one that exists; choose another, nothing is overwritten")
    if layout == "nnunet":
        check_name(out.name)
    datasets = collect(dataset, real)
    partial = out.with_name(f".{out.name}.export")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir(parents=True)
        notes = WRITERS[layout](datasets, partial, out.name)
        write_text(partial / "README.md", datasheet(datasets, layout, notes))
        partial.rename(out)
    except OSError as error:
        if says_storage_failed(error):
            raise StorageError(
                "expected room on the disk for the export, found it full or failing; free some and run it again"
            ) from None
        raise UsageError(
            f"{out}: expected a folder that can be made, found: {error.strerror}; choose another"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    entries = entries_of(datasets)
    return {
        "out": str(out),
        "layout": layout,
        "synthetic": sum(entry.synthetic for entry in entries),
        "real": sum(not entry.synthetic for entry in entries),
    }
