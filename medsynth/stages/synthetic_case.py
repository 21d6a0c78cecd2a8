"""The files of one synthetic scan: NIfTI, a DICOM study, or both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsynth.config.generate import ScanFormat
from medsynth.digests import file_sha256
from medsynth.imaging.nifti import write_nifti
from medsynth.imaging.scan import Scan
from medsynth.imaging.synthetic.header import DESCRIPTION, Origin
from medsynth.imaging.synthetic.study import IMAGE_FOLDER, MASK_FOLDER, write_study

DICOM_FOLDER = "dicom"


def dicom_study(case: str) -> str:
    """Where a case's DICOM study is in its dataset."""
    return f"{DICOM_FOLDER}/{case}_synthetic"


def write_case(
    folder: Path,
    scan: Scan,
    mask: Scan | None,
    origin: Origin,
    *,
    form: ScanFormat,
    labels: Mapping[str, int],
    limits: tuple[float, float],
) -> dict[str, Any]:
    """Write the scan and its mask. Returns the manifest's `image`, `mask`, `sha256` and `mask_sha256`.

    They name the NIfTI files where there are some, else the folder of the series and the segmentation.
    """
    case = origin.case
    image, mask_name = f"{dicom_study(case)}/{IMAGE_FOLDER}", ""
    if mask is not None:
        mask_name = f"{dicom_study(case)}/{MASK_FOLDER}/{case}_synthetic_mask.dcm"
    if form != "nifti":
        (folder / DICOM_FOLDER).mkdir(exist_ok=True)
        write_study(scan, folder / dicom_study(case), origin, mask=mask, labels=labels, window=limits)
    if form != "dicom":
        image = f"images/{case}_synthetic.nii.gz"
        write_nifti(scan, folder / image, description=DESCRIPTION)
        if mask is not None:
            mask_name = f"masks/{case}_synthetic_mask.nii.gz"
            write_nifti(mask, folder / mask_name, description=f"{DESCRIPTION}; mask")
    return {
        "image": image,
        "mask": mask_name,
        "sha256": series_sha256(folder / image) if form == "dicom" else file_sha256(folder / image),
        "mask_sha256": file_sha256(folder / mask_name) if mask_name else "",
    }


def series_sha256(folder: Path) -> str:
    """One sha256 for the files of a series: of their names and their own digests, in the order of the names."""
    lines = [f"{path.name} {file_sha256(path)}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
