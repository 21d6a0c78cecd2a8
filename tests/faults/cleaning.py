"""Faults that `medsynth deidentify` meets."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from .fault import NOTHING, Build, Fault, Left, unchanged, written
from .scans import CAPTURE, both, changed, document, edited, image, save, series

CLEAN = "medsynth deidentify scans --out clean --key-file secret/key --workers 1"
ROOT = "1.2.840.10008.5.1.4.1.1"


def faults() -> Iterator[Fault]:
    """All of them."""
    yield from _no_images()
    yield from _other_objects()
    yield from _pixels()
    yield from _headers()
    yield from _places()
    yield from _keys()
    yield from _settings()
    yield from _broken_off()


def good(root: Path) -> None:
    """A folder `scans` with a regular series."""
    series(root / "scans")


def _no_images() -> Iterator[Fault]:
    def folder(root: Path) -> None:
        (root / "scans").mkdir()

    def text(root: Path) -> None:
        (root / "scans").mkdir()
        (root / "scans" / "ZQFILE.dcm").write_text("Zqfamily, this is text")

    def zipped(root: Path) -> None:
        (root / "scans").mkdir()
        with zipfile.ZipFile(root / "scans" / "ZQFILE.dcm", "w") as file:
            file.writestr("ZQFILE.txt", "Zqfamily")

    def cut_pixels(root: Path) -> None:
        path = series(root / "scans")[2]
        path.write_bytes(path.read_bytes()[:-50])

    def cut_header(root: Path) -> None:
        path = series(root / "scans")[2]
        path.write_bytes(path.read_bytes()[:400])

    def no_pixels(dataset: Dataset, place: int) -> None:
        del dataset.PixelData

    yield Fault("No such folder", CLEAN, lambda root: None, 2, "expected a folder to de-identify, found none", NOTHING)
    yield Fault("Empty folder", CLEAN, folder, 3, "found none to write among 0: the folder holds no file", NOTHING)
    yield Fault(
        "A text file named .dcm, alone", CLEAN, text, 3, "found none to write among 1: … no DICOM file", NOTHING
    )
    yield Fault(
        "A zip file named .dcm, alone", CLEAN, zipped, 3, "found none to write among 1: … no DICOM file", NOTHING
    )
    ends = "1 of 6 files were left out as damaged, …: … ends before its pixels do"
    yield Fault("One file ends within its pixels", CLEAN, cut_pixels, 3, ends, written(5))
    yield Fault("One file ends within its header", CLEAN, cut_header, 3, ends, written(5))
    yield Fault("Images without pixel data", CLEAN, edited(no_pixels), 3, "ends before its pixels do", NOTHING)


def _other_objects() -> Iterator[Fault]:
    refused = "expected a CT or MR image, found …; leave it out"
    for name, sop_class in (
        ("Structured report", f"{ROOT}.88.11"),
        ("Key object selection", f"{ROOT}.88.59"),
        ("Presentation state", f"{ROOT}.11.1"),
        ("PDF in DICOM", f"{ROOT}.104.1"),
        ("Radiotherapy structures", f"{ROOT}.481.3"),
        ("Raw data", f"{ROOT}.66"),
    ):
        yield Fault(name, CLEAN, document(sop_class), 4, refused, NOTHING)
    yield Fault("Ultrasound image", CLEAN, changed(1, SOPClassUID=f"{ROOT}.6.1"), 4, refused, NOTHING)
    yield Fault("Unknown SOP class", CLEAN, changed(1, SOPClassUID="1.2.826.0.1.3680043.97.9"), 4, refused, NOTHING)
    yield Fault(
        "No SOP class at all",
        CLEAN,
        _without_class,
        3,
        "expected a SOP class (0008,0016) in the header, found none",
        NOTHING,
    )
    yield Fault(
        "A DICOMDIR alone", CLEAN, document("1.2.840.10008.1.3.10"), 3, "a DICOMDIR, which lists other files", NOTHING
    )
    yield Fault("A report beside a series", CLEAN, both(good, document(f"{ROOT}.88.11")), 4, refused, written(6))


def _without_class(root: Path) -> None:
    """The SOP class is emptied in the bytes, in the dataset and in the file meta."""
    path = series(root / "scans", 1)[0]
    uid = b"1.2.840.10008.5.1.4.1.1.2\0"
    path.write_bytes(path.read_bytes().replace(uid, b"\0" * len(uid)))


def _pixels() -> Iterator[Fault]:
    def colour(dataset: Dataset, place: int) -> None:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = np.zeros(dataset.Rows * dataset.Columns * 3, np.uint8).tobytes()

    def overlay(dataset: Dataset, place: int) -> None:
        dataset.add_new(0x60000010, "US", dataset.Rows)
        dataset.add_new(0x60000011, "US", dataset.Columns)
        dataset.add_new(0x60000100, "US", 16)
        dataset.add_new(0x60000102, "US", 15)

    def compressed_overlay(root: Path) -> None:
        dataset = image()
        dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51"])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        overlay(dataset, 0)
        save(dataset, root / "scans" / "ZQFILE.dcm", "1.2.840.10008.1.2.4.90")

    def private_syntax(root: Path) -> None:
        path = series(root / "scans", 1)[0]
        uid = str(ExplicitVRLittleEndian).encode() + b"\0"
        path.write_bytes(path.read_bytes().replace(uid, b"1.2.826.0.1.97.5.1.1\0"[: len(uid)], 1))

    def head(dataset: Dataset, place: int) -> None:
        dataset.BodyPartExamined, dataset.Rows, dataset.Columns = "HEAD", 64, 64
        dataset.PixelSpacing = [4, 4]
        dataset.PixelData = np.full(64 * 64, 1000, "<u2").tobytes()

    blind = f"{CLEAN} --set ocr=off"
    yield Fault(
        "Burned-in annotation YES",
        CLEAN,
        changed(1, BurnedInAnnotation="YES"),
        4,
        "the header says BurnedInAnnotation YES",
        NOTHING,
    )
    yield Fault(
        *("Screen capture by its image type", blind),
        *(
            changed(1, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
            4,
            "found a suspicion of it (a screen capture, dose sheet or report)",
            NOTHING,
        ),
    )
    yield Fault(
        "Secondary capture, where nothing can look for text",
        blind,
        changed(1, SOPClassUID=CAPTURE),
        4,
        "found a suspicion of it (a secondary capture)",
        NOTHING,
    )
    yield Fault(
        "Colour image",
        blind,
        edited(colour, 1),
        4,
        "found a suspicion of it (colours in place of grey values)",
        NOTHING,
    )
    yield Fault(
        "A head, where a face may show",
        CLEAN,
        edited(head, 20),
        4,
        "expected an image that shows no face, found a head; set face_command …, or accept_faces",
        NOTHING,
    )
    yield Fault(
        "Overlay inside compressed samples",
        CLEAN,
        compressed_overlay,
        4,
        "found an overlay inside compressed ones",
        NOTHING,
    )
    yield Fault("Overlay inside plain samples", CLEAN, edited(overlay), 0, "written: 6", written(6))
    yield Fault(
        "Private transfer syntax", CLEAN, private_syntax, 3, "expected a transfer syntax of the DICOM standard", NOTHING
    )


def _headers() -> Iterator[Fault]:
    def two_people(dataset: Dataset, place: int) -> None:
        if place > 2:
            dataset.PatientID, dataset.PatientName = "ZQOTHER88", "Zqother^Eve"

    def shared_id(dataset: Dataset, place: int) -> None:
        if place > 2:
            dataset.PatientName, dataset.SeriesInstanceUID = "Zqother^Eve", "1.2.826.0.1.3680043.97.8"

    def nobody(dataset: Dataset, place: int) -> None:
        for keyword in ("PatientID", "PatientName", "PatientBirthDate"):
            setattr(dataset, keyword, "")

    def without_uid(root: Path) -> None:
        path = series(root / "scans", 1)[0]
        path.write_bytes(
            re.sub(rb"1\.2\.826\.0\.1\.3680043\.97[0-9.]*|ZQPATIENT77|Zqfamily.Zqgiven", _zeros, path.read_bytes())
        )

    def lying_charset(root: Path) -> None:
        for path in series(root / "scans", edit=_with_charset):
            path.write_bytes(path.read_bytes().replace(b"Zqfamily^Zqgiven", b"Zqfamily^M\xfcller "))

    def copies(root: Path) -> None:
        paths = series(root / "scans")
        (root / "scans" / "ZQFILE_copy.dcm").write_bytes(paths[0].read_bytes())

    def clash(root: Path) -> None:
        series(root / "scans")
        dataset = image(0)
        dataset.InstanceNumber = 99
        save(dataset, root / "scans" / "ZQFILE_other.dcm")

    yield Fault("Two patients in one series", CLEAN, edited(two_people), 0, "written: 6", written(6))
    yield Fault("One PatientID shared by two people", CLEAN, edited(shared_id), 0, "written: 6", written(6))
    yield Fault("Empty PatientID, name and birth date", CLEAN, edited(nobody), 0, "written: 6", written(6))
    yield Fault(
        "No patient ID and no UID at all",
        CLEAN,
        without_uid,
        3,
        "expected a patient ID or any UID in the header, found none",
        NOTHING,
    )
    yield Fault("A character set that lies", CLEAN, lying_charset, 0, "written: 6", written(6))
    yield Fault("Invalid dates", CLEAN, edited(_invalid_dates), 0, "written: 6", written(6))
    yield Fault(
        *("Invalid dates that should be moved", f"{CLEAN} --profile longitudinal"),
        *(edited(_invalid_dates), 0, "written: 6", written(6)),
    )
    yield Fault("The same file twice", CLEAN, copies, 0, "same content as an earlier file", written(6))
    yield Fault("Two files with one SOP instance UID", CLEAN, clash, 3, "same SOP Instance UID", written(6))


def _zeros(found: re.Match[bytes]) -> bytes:
    return b"\0" * len(found[0])


def _with_charset(dataset: Dataset, place: int) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"


def _invalid_dates(dataset: Dataset, place: int) -> None:
    for tag in (0x00080020, 0x00080021, 0x00080022, 0x00100030):
        dataset[tag] = pydicom.DataElement(tag, "DA", "2019071Z", validation_mode=pydicom.config.IGNORE)


def _places() -> Iterator[Fault]:
    def foreign(root: Path) -> None:
        good(root)
        (root / "clean").mkdir()
        (root / "clean" / "thesis.txt").write_text("precious")

    def file_there(root: Path) -> None:
        good(root)
        (root / "clean").write_text("precious")

    inside = CLEAN.replace("--out clean", "--out scans/clean")
    around = "medsynth deidentify clean/scans --out clean --key-file secret/key --workers 1"
    yield Fault("Output inside the input", inside, good, 2, "apart from the input", written(0, "scans/clean"))
    yield Fault(
        *("Input inside the output", around, _moved),
        *(2, "apart from the input", written(6)),
    )
    precious = unchanged("clean/thesis.txt", "precious")
    yield Fault("Output folder that holds other things", CLEAN, foreign, 2, "found other things", precious)
    yield Fault(
        "Output that is a file",
        CLEAN,
        file_there,
        2,
        "expected an empty or missing output folder",
        unchanged("clean", "precious"),
    )
    yield Fault("Disk full", CLEAN, good, 5, "found it full or failing", NOTHING, small_disk=True)


def _moved(root: Path) -> None:
    series(root / "clean" / "scans")


def _keys() -> Iterator[Fault]:
    def with_key(text: str = "ab" * 32 + "\n", mode: int = 0o600, folder_mode: int = 0o700) -> Build:
        def build(root: Path) -> None:
            good(root)
            write_key(root / "secret" / "key", text, mode)
            (root / "secret").chmod(folder_mode)

        return build

    def begun_with_another(root: Path) -> None:
        good(root)
        write_key(root / "secret" / "key")
        call(root, CLEAN)
        write_key(root / "secret" / "key", "cd" * 32 + "\n")

    yield Fault(
        "Key that others can read",
        CLEAN,
        with_key(mode=0o644),
        4,
        "open to its owner only (0600), found 0644; run: chmod 600 secret/key",
        NOTHING,
    )
    yield Fault(
        "Key in a folder that others can write to",
        CLEAN,
        with_key(folder_mode=0o777),
        4,
        "writable by its owner only (0700), found 0777; run: chmod 700 secret",
        NOTHING,
    )
    yield Fault("A key file that holds no key", CLEAN, with_key("Zqtext\n"), 4, "64 hexadecimal digits", NOTHING)
    yield Fault("Going on with another key", CLEAN, begun_with_another, 2, "with the same key", written(6))


def write_key(path: Path, text: str = "ab" * 32 + "\n", mode: int = 0o600) -> None:
    """A secret key as the program would have made it."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text, encoding="ascii")
    path.chmod(mode)


def _settings() -> Iterator[Fault]:
    def regions(text: str) -> Build:
        def build(root: Path) -> None:
            good(root)
            (root / "regions.yaml").write_text(text)

        return build

    yield Fault(
        "Unknown preset",
        f"{CLEAN} --profile careless",
        good,
        2,
        "expected a settings file, or one of longitudinal, research, strict",
        NOTHING,
    )
    yield Fault(
        "Unknown option of the profile",
        f"{CLEAN} --set options=[retain_all]",
        good,
        2,
        "options.0: expected one of …retain_uids…",
        NOTHING,
    )
    yield Fault(
        "Unknown setting",
        f"{CLEAN} --set colour=red",
        good,
        2,
        "colour: unknown key; expected one of options, …",
        NOTHING,
    )
    both_dates = f"{CLEAN} --set options=[retain_full_dates,retain_modified_dates]"
    yield Fault(
        "Two options that contradict each other",
        both_dates,
        good,
        2,
        "expected one of retain_full_dates and retain_modified_dates, found both",
        NOTHING,
    )
    faces = f"{CLEAN} --set options=[clean_recognizable_visual_features]"
    yield Fault(
        "Faces to be removed, by nothing", faces, good, 2, "face_command: expected it together with the option", NOTHING
    )
    named = f"{CLEAN} --set regions=regions.yaml"
    yield Fault("Regions file that is not there", named, good, 2, "regions", NOTHING)
    yield Fault(
        "Regions file that is no list of rules", named, regions("rules: {a: 1}\n"), 2, "rules: expected", NOTHING
    )
    wrong = "rules:\n  - {name: a, source: b, when: {Manufacturer: X}, blank: [[0, 0, -5, 2]]}\n"
    yield Fault(
        "Regions file with a region outside any image",
        named,
        regions(wrong),
        2,
        "blank.0.2: expected greater than or equal to 0",
        NOTHING,
    )


def _broken_off() -> Iterator[Fault]:
    def same_as_uninterrupted(root: Path) -> str:
        whole = {path.relative_to(root / "whole") for path in (root / "whole").rglob("*.dcm")}
        found = {path.relative_to(root / "clean") for path in (root / "clean").rglob("*.dcm")}
        return (
            "" if whole == found and len(found) == 40 else f"{len(found)} files, {len(whole & found)} of them the same"
        )

    def killed(root: Path) -> None:
        """Killed outright once the first results are there; an uninterrupted run beside it."""
        series(root / "scans", 40)
        write_key(root / "secret" / "key")
        call(root, CLEAN.replace("--out clean", "--out whole"))
        child = subprocess.Popen(
            [sys.executable, "-m", *CLEAN.split()], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while not any((root / "clean").rglob("*.dcm")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.kill()
        child.wait()

    left = Left("40 files, the same names and UIDs as without the kill", same_as_uninterrupted)
    yield Fault("Killed outright, then the same command again", CLEAN, killed, 0, "written: 40", left)


def call(root: Path, command: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run([sys.executable, "-m", *command.split()], cwd=root, check=True, capture_output=True)
