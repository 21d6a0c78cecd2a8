"""De-identification beside pydicom reading and writing the same files unchanged: time, memory, and what a second core gives.

    python -m benchmarks.imaging                 # 2000 synthetic CT slices of 512 x 512, about 3 GB of scratch space
    python -m benchmarks.imaging --files 300 --rounds 2

Each measurement has a process of its own, held to one core (two for two workers), in turn within a round: what else the
machine does meets all of them alike. Ratios are taken within a round; the median over rounds counts. Time begins when the
modules are imported and covers all that the work needs, audit and report included. CPU time is that of the process and its
workers. pydicom gets the same files: `dcmread` and `save_as`, which decodes nothing either.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

SIDE = 512
SLICES = 200
"""In each series."""
RESULTS = Path(__file__).parent / "results"


def make_series(folder: Path, count: int) -> None:
    """Synthetic CT series with the header of a usual scanner: names, dates, descriptions, a code, private attributes."""
    import numpy as np
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    generator = np.random.default_rng(0)
    for number in range(count):
        series, place = divmod(number, SLICES)
        root = f"1.2.826.0.1.3680043.99.{series + 1}"
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{root}.3.{place + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{root}.1", f"{root}.2"
        dataset.FrameOfReferenceUID = f"{root}.4"
        dataset.PatientName, dataset.PatientID = f"Planted{series}^Patricia", f"PLANT-{series:05d}-ID"
        dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19610203", "F", "058Y"
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            setattr(dataset, keyword, "20190405")
        dataset.StudyTime, dataset.ContentTime = "101112.131", f"1012{place % 60:02d}.250"
        dataset.AccessionNumber, dataset.StudyID = f"ACC{series:07d}", f"S{series}"
        dataset.InstitutionName, dataset.InstitutionAddress = "Planted Hospital", "Plantedstrasse 12, 12345 Plantstadt"
        dataset.ReferringPhysicianName, dataset.OperatorsName = "Refplanted^Doc", "Opplanted^Tech"
        dataset.StudyDescription, dataset.SeriesDescription = "CT Thorax for Refplanted", "Thorax 1.0 B40f"
        dataset.ProtocolName, dataset.StationName, dataset.DeviceSerialNumber = "ThoraxRoutine", "CTPLANT1", "667788"
        dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "CT", "SIEMENS", "Sensation 64"
        dataset.ImageType, dataset.BodyPartExamined = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"], "CHEST"
        dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.InstanceNumber = 4, 1, place + 1
        dataset.KVP, dataset.XRayTubeCurrent, dataset.ConvolutionKernel = "120", 210, "B40f"
        dataset.ImagePositionPatient = [-180.5, -180.25, 60.125 + place]
        dataset.ImageOrientationPatient, dataset.PatientPosition = [1, 0, 0, 0, 1, 0], "HFS"
        dataset.PixelSpacing, dataset.SliceThickness, dataset.SliceLocation = [0.7, 0.7], 1, 60.125 + place
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", "Thoracic structure"
        dataset.AnatomicRegionSequence = [code]
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "OB", f"planted header {series} {place}".encode().ljust(4096, b"\0"))
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = -1024, 1, "HU"
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows = dataset.Columns = SIDE
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        stored = np.clip(generator.normal(1000, 200, (SIDE, SIDE)), 0, 4095).astype("<u2")
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"series{series:03d}" / f"{place:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def unchanged(source: Path, out: Path, workers: int) -> Callable[[], None]:
    """pydicom reads each file and writes it again."""
    import pydicom

    files = sorted(path for path in source.rglob("*") if path.is_file())
    out.mkdir()

    def work() -> None:
        for number, path in enumerate(files):
            pydicom.dcmread(path).save_as(out / f"{number}.dcm")

    return work


def deidentified(source: Path, out: Path, workers: int) -> Callable[[], None]:
    """What `medsynth deidentify` does, Basic Profile."""
    from medsynth.config.deidentify import Deidentify
    from medsynth.imaging.deidentify import SecretKey
    from medsynth.imaging.deidentify.folder import deidentify_folder

    key = SecretKey.load_or_create(out.parent / "secrets" / "key")
    return lambda: deidentify_folder(source, out, key, Deidentify(ocr="off"), workers=workers).raise_if_incomplete()


WAYS = {"pydicom": unchanged, "medsynth": deidentified}


def measure(way: str, source: str, out: str, workers: int) -> dict[str, float]:
    """Seconds on the clock and of the processors, and the largest memory of one process in MiB; in a process of its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:workers])
    work = WAYS[way](Path(source), Path(out), workers)
    os.sync()
    begin, before = time.perf_counter(), _cpu_seconds()
    work()
    wall, cpu = time.perf_counter() - begin, _cpu_seconds() - before
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"wall_s": wall, "cpu_s": cpu, "peak_mib": max(peaks) / 2**10}


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _alone(way: str, source: Path, scratch: Path, workers: int) -> dict[str, float]:
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # its processes may have children
        found = pool.submit(measure, way, str(source), str(out), workers).result()
    shutil.rmtree(out)
    return found


def compare(source: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Medians over rounds of one measurement each: pydicom, medsynth, medsynth with two workers."""
    cases = {"pydicom": ("pydicom", 1), "medsynth": ("medsynth", 1), "medsynth, 2 workers": ("medsynth", 2)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (way, workers) in cases.items():
            found[name].append(_alone(way, source, scratch, workers))
    one, two, base = found["medsynth"], found["medsynth, 2 workers"], found["pydicom"]
    return {
        "rows": {
            name: {field: statistics.median(each[field] for each in runs) for field in ("wall_s", "cpu_s", "peak_mib")}
            for name, runs in found.items()
        },
        "cpu_ratio": _median_ratio(one, base, "cpu_s"),
        "wall_ratio": _median_ratio(one, base, "wall_s"),
        "speedup_2_workers": _median_ratio(one, two, "wall_s"),
    }


def _median_ratio(over: list[dict[str, float]], under: list[dict[str, float]], field: str) -> float:
    return statistics.median(a[field] / b[field] for a, b in zip(over, under, strict=True))


def table(record: dict[str, Any]) -> str:
    """The record as lines of text."""
    lines = [f"{record['files']} files", f"{'':<22}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}"]
    for name, row in record["compared"]["rows"].items():
        lines.append(f"{name:<22}{row['wall_s']:>9.2f}{row['cpu_s']:>9.2f}{row['peak_mib']:>10.0f}")
    compared = record["compared"]
    lines.append(f"medsynth over pydicom: CPU {compared['cpu_ratio']:.2f}, wall {compared['wall_ratio']:.2f}")
    lines.append(f"two workers over one: {compared['speedup_2_workers']:.2f} times as fast")
    lines.append(
        "peak of medsynth: " + ", ".join(f"{mib:.0f} MiB at {count} files" for count, mib in record["memory"].items())
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="instances to de-identify")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for temporary files")
    parser.add_argument("--out", type=Path, default=RESULTS / "imaging-deidentify.json")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        quarter = max(1, options.files // 4)
        make_series(scratch / "all", options.files)
        make_series(scratch / "quarter", quarter)
        memory = {
            str(count): _alone("medsynth", scratch / folder, scratch, 1)["peak_mib"]
            for count, folder in ((quarter, "quarter"), (options.files, "all"))
        }
        record = {
            "files": options.files,
            "pixels": f"{SIDE} x {SIDE}, 16 bit, native",
            "rounds": options.rounds,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "pydicom": _version("pydicom"),
            "load_before": os.getloadavg()[0],
            "compared": compare(scratch / "all", scratch, options.rounds),
            "memory": memory,
        }
    print(table(record))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
