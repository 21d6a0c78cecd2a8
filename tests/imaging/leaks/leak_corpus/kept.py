"""The kept side: one patient's four scans with everything that an option of the profile lets research keep.

Each expectation says, from source and result alone, whether a value came through as its option promises. The Basic Profile's
own expectations are `carriers.CORE`, looked at by `judge` in every file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from .carriers import CT, ENHANCED_MR, MR
from .corpus import File
from .judge import READ_ERRORS, read
from .secrets import Secrets
from .sheet import Sheet

FIRST_NUMBER = 4001
SCANS = ((CT, date(2017, 4, 5)), (CT, date(2017, 7, 7)), (MR, date(2017, 7, 7)), (ENHANCED_MR, date(2017, 7, 10)))
"""Kind and day of each scan: a first visit, one after 93 days with two scans, and one three days later."""
DAYS = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
PAIRS = Mapping[int, tuple[Dataset, Dataset | None]]


@dataclass(frozen=True)
class Expectation:
    """What must hold under an option of the profile."""

    option: str
    name: str
    holds: Callable[[PAIRS], bool]


def files() -> list[File]:
    """The four scans."""
    made = []
    for number, (kind, day) in enumerate(SCANS, start=FIRST_NUMBER):
        sheet = Sheet(kind, number, Secrets())
        _fill(sheet, day)
        made.append(File(number, kind, f"kept/{sheet.file_name}", (), sheet.dataset, sheet.encoded()))
    return made


def write(folder: Path) -> list[File]:
    """Write them below `folder`."""
    made = files()
    for file in made:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    return made


def _fill(sheet: Sheet, day: date) -> None:
    dataset, text = sheet.dataset, day.strftime("%Y%m%d")
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = "PID-KEPT", "Keeper^Klara", "19600203"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = text
    dataset.StudyTime, dataset.SeriesTime, dataset.AcquisitionTime = "101112", "101212", "101312"
    dataset.AcquisitionDateTime, dataset.ContentTime = f"{text}101312", "101412"
    dataset.PatientSex, dataset.PatientAge, dataset.PatientSize, dataset.PatientWeight = "F", "057Y", 1.68, 61.5
    dataset.DeviceSerialNumber, dataset.StationName = "88431", "CT99"
    dataset.ManufacturerModelName, dataset.SoftwareVersions = "Somaris 7000", "VA20A"
    dataset.InstitutionName, dataset.InstitutionAddress = "St. Keeper Hospital", "1 Kept Road"
    dataset.InstitutionalDepartmentName = "Radiology West"
    dataset.StudyDescription, dataset.SeriesDescription = "CT chest", "axial chest lung"
    if sheet.kind == MR:
        sheet.add(0x00190010, "LO", "SIEMENS MR HEADER")
        sheet.add(0x0019100C, "IS", "1000")
        sheet.add(0x0019100E, "FD", [0.5, -0.5, 0.25])
        sheet.add(0x20010010, "LO", "Philips Imaging DD 001")
        sheet.add(0x20011003, "FL", 1000.0)


def look(out: Path) -> dict[str, dict[str, bool]]:
    """Option -> expectation -> whether it holds for what was written below `out`."""
    results: dict[int, Dataset] = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        dataset, number = read(path.read_bytes())
        if dataset is not None and number is not None and number >= FIRST_NUMBER:
            results[number] = dataset
    pairs = {file.number: (pydicom.dcmread(io.BytesIO(file.data)), results.get(file.number)) for file in files()}
    found: dict[str, dict[str, bool]] = {}
    for expectation in expectations():
        found.setdefault(expectation.option, {})[expectation.name] = _holds(expectation, pairs)
    return found


def _holds(expectation: Expectation, pairs: PAIRS) -> bool:
    try:
        return expectation.holds(pairs)
    except READ_ERRORS:
        return False


def expectations() -> list[Expectation]:
    """All of them."""
    same = _same_values
    made = [
        Expectation("retain_full_dates", keyword, same([keyword]))
        for keyword in (*DAYS, "StudyTime", "AcquisitionTime")
    ]
    made += [
        Expectation("retain_modified_dates", "days between scans", _intervals_kept),
        Expectation("retain_modified_dates", "days of the week", _weekdays_kept),
        Expectation("retain_modified_dates", "no original day", _days_moved),
        Expectation("retain_modified_dates", "date within date and time moves along", _moments_follow),
        Expectation("retain_modified_dates", "times of day", same(["StudyTime", "AcquisitionTime"])),
    ]
    for option, keywords in (
        ("retain_patient_characteristics", ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")),
        ("retain_device_identity", ("DeviceSerialNumber", "StationName", "ManufacturerModelName", "SoftwareVersions")),
        (
            "retain_institution_identity",
            ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
        ),
        ("retain_uids", ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")),
        ("clean_descriptors", ("SeriesDescription", "StudyDescription")),
    ):
        made += [Expectation(option, keyword, same([keyword])) for keyword in keywords]
    made += [
        Expectation("retain_safe_private", name, _private_kept(tag))
        for name, tag in (
            ("Siemens b-value (0019,xx0C)", 0x0019100C),
            ("Siemens gradient direction (0019,xx0E)", 0x0019100E),
            ("Philips b-factor (2001,xx03)", 0x20011003),
        )
    ]
    return made


def _results(pairs: PAIRS) -> list[tuple[Dataset, Dataset]]:
    whole = [(source, result) for source, result in pairs.values() if result is not None]
    if len(whole) < len(pairs):
        raise KeyError("not every scan was written")
    return whole


def _same_values(keywords: Iterable[str]) -> Callable[[PAIRS], bool]:
    chosen = tuple(keywords)
    return lambda pairs: all(
        str(result[keyword].value) == str(source[keyword].value)
        for source, result in _results(pairs)
        for keyword in chosen
    )


def _day(dataset: Dataset, keyword: str) -> date:
    text = str(dataset[keyword].value)
    return date(int(text[:4]), int(text[4:6]), int(text[6:8]))


def _intervals_kept(pairs: PAIRS) -> bool:
    moves = {_day(result, keyword) - _day(source, keyword) for source, result in _results(pairs) for keyword in DAYS}
    return len(moves) == 1


def _weekdays_kept(pairs: PAIRS) -> bool:
    return all(
        _day(result, keyword).weekday() == _day(source, keyword).weekday()
        for source, result in _results(pairs)
        for keyword in DAYS
    )


def _days_moved(pairs: PAIRS) -> bool:
    return all(_day(result, keyword) != _day(source, keyword) for source, result in _results(pairs) for keyword in DAYS)


def _moments_follow(pairs: PAIRS) -> bool:
    return all(str(result.AcquisitionDateTime)[:8] == str(result.AcquisitionDate) for _, result in _results(pairs))


def _private_kept(tag: int) -> Callable[[PAIRS], bool]:
    def holds(pairs: PAIRS) -> bool:
        scans = [(source, result) for source, result in _results(pairs) if tag in source]
        creator = tag & 0xFFFF0000 | 0x10
        return all(
            tag in result and result[tag].value == source[tag].value and result[creator].value == source[creator].value
            for source, result in scans
        )

    return holds
