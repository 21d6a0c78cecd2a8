"""Croissant metadata (MLCommons, version 1.0): every file with its sha256, and the manifest as a table of records."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsynth.cohort.manifest import FILE_NAME
from medsynth.digests import file_sha256
from medsynth.imaging.synthetic.header import DESCRIPTION
from medsynth.stages.export.collect import Dataset
from medsynth.stages.files import write_json

CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The vocabulary as the specification gives it; in the file itself, so that nothing is fetched to read it."""
FORMATS = {".csv": "text/csv", ".gz": "application/gzip", ".nii": "application/octet-stream"}
SAID = {
    "synthetic": f"{DESCRIPTION}: everything in the folder synthetic.",
    "real": "The folder real holds scans of patients under pseudonyms.",
}
NUMBERS = ("intensity_low", "intensity_high")


def write_croissant(datasets: Sequence[Dataset], folder: Path, name: str) -> list[str]:
    """Copy the datasets into `synthetic/` and `real/` of `folder` and describe them. Returns lines for the datasheet."""
    files: list[dict[str, Any]] = []
    records = []
    said = []
    for dataset in datasets:
        origin = "synthetic" if dataset.synthetic else "real"
        said.append(SAID[origin])
        numbers = {
            key for entry in dataset.entries for key, value in entry.case.conditions.items() if isinstance(value, float)
        }
        files += [_file(folder, path) for path in _copied(dataset, folder / origin)]
        records.append(_records(origin, folder / origin / FILE_NAME, {*numbers, *NUMBERS}))
    write_json(
        folder / "metadata.json",
        {
            "@context": CONTEXT,
            "@type": "sc:Dataset",
            "name": name,
            "description": " ".join(said),
            "conformsTo": "http://mlcommons.org/croissant/1.0",
            "distribution": files,
            "recordSet": records,
        },
    )
    return [
        "`metadata.json` is Croissant 1.0: every file with its sha256, and each manifest as a record set. Licence, address,",
        "creator and date of publication are for whoever publishes to add.",
    ]


def _copied(dataset: Dataset, target: Path) -> list[Path]:
    """The manifest and what it lists, under the names that it gives them."""
    names = [FILE_NAME]
    for entry in dataset.entries:
        names += [entry.case.image, *([entry.case.mask] if entry.case.mask else [])]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(dataset.folder / name, target / name)
    return [target / name for name in names]


def _file(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": FORMATS[path.suffix],
        "sha256": file_sha256(path),
    }


def _records(origin: str, manifest: Path, numbers: set[str]) -> dict[str, Any]:
    with manifest.open(encoding="utf-8") as stream:
        columns = stream.readline().strip().split(",")
    return {
        "@type": "cr:RecordSet",
        "@id": f"{origin}_cases",
        "name": f"{origin}_cases",
        "description": f"One row per {origin} scan.",
        "key": {"@id": f"{origin}_cases/case"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{origin}_cases/{column}",
                "name": column,
                "dataType": "sc:Float" if column in numbers else "sc:Text",
                "source": {"fileObject": {"@id": f"{origin}/{FILE_NAME}"}, "extract": {"column": column}},
            }
            for column in columns
        ],
    }
