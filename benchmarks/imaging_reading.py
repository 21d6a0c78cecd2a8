"""`medsynth index` against a bare header read by pydicom, and reading a series against pydicom decoding its slices.

    python -m benchmarks.imaging_reading                 # 20 000 files for the index, 200 slices of 512 x 512
    python -m benchmarks.imaging_reading --files 2000

Both sides read the same files, in turn and several times, in one process; the best of each counts. The clock counts the
process's own seconds over all threads, which other work on the machine does not stretch, and for the series the wall's too.
Memory of the index is the growth of the peak, once for a tenth of the files and once for all, each in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness

ROUNDS = 5
FILES_PER_SERIES = 100


def write_files(folder: Path, count: int, side: int) -> None:
    """CT slices with headers as long as scanners write them: about ninety elements, nested sequences, private ones."""
    import numpy as np
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sequence import Sequence
    from pydicom.uid import ExplicitVRLittleEndian

    rng = np.random.default_rng(1)
    disc = 900 * (np.hypot(*np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]) < 0.8)
    pixels = [(disc + rng.normal(100, 20, (side, side))).clip(0).astype(np.uint16).tobytes() for _ in range(8)]
    for number in range(count):
        series, k = divmod(number, FILES_PER_SERIES if count > FILES_PER_SERIES * 2 else count)
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{series}.{k + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.4.{series}", f"1.2.5.{series}"
        dataset.FrameOfReferenceUID = f"1.2.6.{series}"
        dataset.PatientID, dataset.PatientName = f"INVENTED-{series}", "Nobody^Nora"
        dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20200229"
        dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = f"1011{k % 60:02}"
        dataset.SeriesDescription, dataset.ProtocolName = "Abdomen 1.5 axial", "Abdomen"
        dataset.Manufacturer, dataset.ManufacturerModelName = "Invented", "Scanner 1"
        dataset.BodyPartExamined, dataset.PatientPosition = "ABDOMEN", "HFS"
        dataset.KVP, dataset.XRayTubeCurrent, dataset.ExposureTime = "120", 200 + k, 500
        dataset.SliceThickness, dataset.SpacingBetweenSlices = "1.5", "1.5"
        dataset.InstanceNumber, dataset.SeriesNumber, dataset.AcquisitionNumber = k + 1, 2, 1
        dataset.ImagePositionPatient = [-180.0, -170.0, 1.5 * k]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.7, 0.7]
        dataset.Rows = dataset.Columns = side
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, f"1.2.7.{series}.{k}"
        dataset.ReferencedImageSequence = Sequence([item, item])
        dataset.add_new(0x00090010, "LO", "INVENTED")
        for element in range(40):
            dataset.add_new(0x00091000 + element, "LO", f"private value {element} of slice {k}")
        dataset.PixelData = pixels[number % len(pixels)]
        dataset["PixelData"].VR = "OW"
        path = folder / f"{series:04}" / f"{k:04}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def in_turn(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """The best seconds of each, of the process and of the wall; they take turns, so that all meet the same machine."""
    best: dict[str, dict[str, float]] = {name: {"cpu": float("inf"), "wall": float("inf")} for name in works}
    for _ in range(rounds):
        for name, run in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            best[name]["cpu"] = min(best[name]["cpu"], time.process_time() - cpu)
            best[name]["wall"] = min(best[name]["wall"], time.perf_counter() - wall)
    return best


def index_times(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the index and of pydicom reading the same headers."""
    import pydicom

    from medsynth.imaging.index import index_folder

    paths = sorted(folder.rglob("*.dcm"))

    def bare() -> None:
        for path in paths:
            pydicom.dcmread(path, stop_before_pixels=True)

    return in_turn({"pydicom": bare, "medsynth": lambda: index_folder(folder)}, rounds)


def index_memory(folder: Path, series: int) -> dict[str, Any]:
    """Growth of the peak of memory, in MiB, while the first `series` series are indexed."""
    from medsynth.imaging.dicom import find_series

    chosen = sorted(folder.iterdir())[:series]
    find_series(chosen[0])
    before = harness.peak_mib("cpu")
    found = [find_series(one) for one in chosen]
    return {"peak_mib": harness.peak_mib("cpu") - before, "series": sum(len(one.series) for one in found)}


def series_times(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of reading a series, of reading it by its folder (headers twice), and of pydicom decoding its slices."""
    import pydicom
    import torch

    from medsynth.imaging.deidentify import Deidentifier, SecretKey
    from medsynth.imaging.dicom import find_series, read_series
    from medsynth.imaging.read import read_scan

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        deidentifier = Deidentifier(SecretKey.load_or_create(Path(name) / "key"))
    paths = sorted(folder.rglob("*.dcm"))
    (series,) = find_series(folder).series

    def bare() -> None:
        for path in paths:
            _ = pydicom.dcmread(path).pixel_array

    def stacked() -> None:
        import numpy as np

        np.ascontiguousarray(np.stack([pydicom.dcmread(path).pixel_array for path in paths]).transpose(2, 1, 0))

    works = {
        "pydicom": bare,
        "pydicom, stacked": stacked,
        "read_series": lambda: read_series(series, deidentifier),
        "read_scan": lambda: read_scan(folder, deidentifier=deidentifier),
    }
    return in_turn(works, rounds)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000, help="files for the index, 64 x 64 pixels each")
    parser.add_argument("--slices", type=int, default=200, help="slices of 512 x 512 of the series")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        many, one = Path(name) / "many", Path(name) / "one"
        write_files(many, options.files, 64)
        write_files(one, options.slices, 512)
        index = harness.alone(index_times, many, max(2, options.rounds // 2))
        series = max(1, options.files // FILES_PER_SERIES)
        memory = [harness.alone(index_memory, many, count)["peak_mib"] for count in (max(1, series // 10), series)]
        reading = harness.alone(series_times, one, options.rounds)
    lines = [f"{'':<20}{'CPU s':>10}{'wall s':>10}{'ratio':>8}"]
    for times in (index, reading):
        base = times["pydicom"]["cpu"]
        lines += [
            f"{key:<20}{value['cpu']:>10.3f}{value['wall']:>10.3f}{harness.over(value['cpu'], base):>8}"
            for key, value in times.items()
        ]
    lines.append(f"memory of the index: {memory[0]:.0f} MiB for a tenth of the files, {memory[1]:.0f} MiB for all")
    sys.stdout.write("\n".join(lines) + "\n")
    record = {
        "machine": harness.machine("cpu"),
        "files": options.files,
        "slices": options.slices,
        "index": index,
        "index_ratio": index["medsynth"]["cpu"] / index["pydicom"]["cpu"],
        "index_memory_mib": memory,
        "series": reading,
        "series_ratio": reading["read_series"]["cpu"] / reading["pydicom"]["cpu"],
        "series_ratio_wall": reading["read_series"]["wall"] / reading["pydicom"]["wall"],
    }
    harness.write("imaging-reading", record, options.out)


if __name__ == "__main__":
    main()
