"""Retain Longitudinal: dates move by whole weeks and keep their distances, or stay; what is no date is never made one."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from io import BytesIO

import pydicom
import pytest
from planted_headers import file_bytes, plain
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.imaging.deidentify import Deidentifier, SecretKey, dates

DAYS = ["20190405", "20190412", "20200229", "20231231"]


def deidentifier(*options: str, key: int = 7) -> Deidentifier:
    return Deidentifier(SecretKey(bytes([key]) * 32), Deidentify.model_validate({"options": options, "ocr": "off"}))


def visit(day: str, patient: str = "PID-1") -> Dataset:
    dataset = plain("CT")
    dataset.PatientID = patient
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = day
    dataset.AcquisitionDateTime = f"{day}235959.123456+0130"
    dataset.AcquisitionTime = "235959.123456"
    dataset.InstanceCreationDate = day
    dataset.DateOfLastCalibration, dataset.TimeOfLastCalibration = [day, DAYS[0]], ["0701", "070203"]
    return pydicom.dcmread(BytesIO(file_bytes(dataset)))


def with_value(dataset: Dataset, keyword: str, value: bytes) -> Dataset:
    tag = pydicom.tag.Tag(keyword)
    vr = pydicom.datadict.dictionary_VR(tag)
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return dataset


def day_of(text: str) -> date:
    return datetime.strptime(text, "%Y%m%d").date()


def test_modified_dates_keep_intervals_and_weekdays_and_are_never_the_true_ones() -> None:
    made = deidentifier("retain_modified_dates")
    results = [made.dataset(visit(day)) for day in DAYS]
    shifts = {day_of(result.StudyDate) - day_of(day) for result, day in zip(results, DAYS, strict=True)}
    assert len(shifts) == 1
    shift = shifts.pop()
    assert shift != timedelta(0)
    assert shift.days % 7 == 0
    for result, day in zip(results, DAYS, strict=True):
        moved = result.StudyDate
        assert day_of(moved).weekday() == day_of(day).weekday()
        assert result.SeriesDate == result.ContentDate == result.InstanceCreationDate == moved
        assert result.AcquisitionDateTime == f"{moved}235959.123456+0130"
        assert list(result.DateOfLastCalibration) == [moved, results[0].StudyDate]
        assert list(result.TimeOfLastCalibration) == ["0701", "070203"]
        assert (result.AcquisitionTime, result.StudyTime) == ("235959.123456", "0101")
        assert not result.PatientBirthDate
        assert result.LongitudinalTemporalInformationModified == "MODIFIED"


def test_a_patient_has_one_shift_in_every_file_and_run_and_others_another() -> None:
    first, again = deidentifier("retain_modified_dates"), deidentifier("retain_modified_dates")
    assert first.dataset(visit(DAYS[0])).StudyDate == again.dataset(visit(DAYS[0])).StudyDate
    days = {first.dataset(visit(DAYS[0], patient=f"PID-{number}")).StudyDate for number in range(40)}
    assert len(days) > 30
    assert DAYS[0] not in days
    assert deidentifier("retain_modified_dates", key=8).dataset(visit(DAYS[0])).StudyDate != (
        first.dataset(visit(DAYS[0])).StudyDate
    )


def test_dates_three_sequences_deep_move_with_the_rest() -> None:
    dataset = plain("MR")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.NumberOfFrames, dataset.StudyDate = 1, "20190405"
    content, frame = Dataset(), Dataset()
    content.FrameAcquisitionDateTime, content.FrameReferenceDateTime = "20190406010203", "20190405"
    frame.FrameContentSequence = [content]
    dataset.PerFrameFunctionalGroupsSequence = [frame]
    result = deidentifier("retain_modified_dates").dataset(pydicom.dcmread(BytesIO(file_bytes(dataset))))
    inner = result.PerFrameFunctionalGroupsSequence[0].FrameContentSequence[0]
    assert inner.FrameReferenceDateTime == result.StudyDate
    assert day_of(inner.FrameAcquisitionDateTime[:8]) - day_of(result.StudyDate) == timedelta(days=1)
    assert inner.FrameAcquisitionDateTime[8:] == "010203"


def test_full_dates_stay_to_the_letter() -> None:
    result = deidentifier("retain_full_dates").dataset(visit(DAYS[2]))
    assert result.StudyDate == result.SeriesDate == DAYS[2]
    assert result.AcquisitionDateTime == f"{DAYS[2]}235959.123456+0130"
    assert not result.PatientBirthDate
    assert result.LongitudinalTemporalInformationModified == "UNMODIFIED"


@pytest.mark.parametrize("option", ["retain_full_dates", "retain_modified_dates"])
@pytest.mark.parametrize(
    "value",
    [b"20190230", b"2019", b"00010101", b"99991231", b"ANNA1961", b"03/02/61", b"1961-2-3", b"20190405-20190501"],
)
def test_what_is_no_date_goes_and_no_date_is_invented(option: str, value: bytes) -> None:
    dataset = with_value(with_value(visit(DAYS[0]), "StudyDate", value), "SeriesDate", value)
    result = deidentifier(option).dataset(dataset)
    assert result["StudyDate"].value in (None, "")  # type 2: there, empty
    assert "SeriesDate" not in result  # type 3


@pytest.mark.parametrize(
    ("option", "value", "kept"),
    [
        ("retain_full_dates", b"2019", True),
        ("retain_full_dates", b"20190405101112.1234567", False),
        ("retain_full_dates", b"20190405 ANNA", False),
        ("retain_full_dates", b"20190405101112+9900", False),
        ("retain_modified_dates", b"2019", False),  # whole weeks cannot be added to a year
        ("retain_modified_dates", b"201904", False),
        ("retain_modified_dates", b"20190405", True),
        ("retain_modified_dates", b"20190405-0500", True),
    ],
)
def test_datetimes_stay_or_move_only_if_that_can_be_done_truly(option: str, value: bytes, kept: bool) -> None:
    result = deidentifier(option).dataset(with_value(visit(DAYS[0]), "AcquisitionDateTime", value))
    assert ("AcquisitionDateTime" in result) == kept


def test_dates_of_the_oldest_form_are_understood() -> None:
    result = deidentifier("retain_modified_dates").dataset(with_value(visit(DAYS[0]), "StudyDate", b"2019.04.05"))
    assert result.StudyDate == result.SeriesDate


@pytest.mark.parametrize("value", [b"2460", b"12:30", b"ANNA", b"101112.1234567"])
def test_what_is_no_time_goes(value: bytes) -> None:
    result = deidentifier("retain_modified_dates").dataset(with_value(visit(DAYS[0]), "AcquisitionTime", value))
    assert "AcquisitionTime" not in result


@pytest.mark.parametrize(
    ("option", "earlier", "said", "claims"),
    [
        ("retain_full_dates", "REMOVED", "REMOVED", False),
        ("retain_full_dates", "MODIFIED", "MODIFIED", False),
        ("retain_full_dates", "UNMODIFIED", "UNMODIFIED", True),
        ("retain_full_dates", "ZQNOTE", "UNMODIFIED", True),
        ("retain_modified_dates", "REMOVED", "REMOVED", False),
        ("retain_modified_dates", "UNMODIFIED", "MODIFIED", True),
        (None, "UNMODIFIED", "REMOVED", False),
    ],
)
def test_dates_that_were_lost_earlier_are_not_said_to_be_true(
    option: str | None, earlier: str, said: str, claims: bool
) -> None:
    dataset = visit(DAYS[0])
    dataset.LongitudinalTemporalInformationModified = earlier
    result = deidentifier(*(() if option is None else (option,))).dataset(dataset)
    assert result.LongitudinalTemporalInformationModified == said
    codes = {item.CodeValue for item in result.DeidentificationMethodCodeSequence}
    assert bool(codes & {"113106", "113107"}) == claims


@pytest.mark.parametrize("day", ["18500101", "19991231", "20000229", "21991231"])
def test_a_shift_can_be_undone_by_its_opposite(day: str) -> None:
    moved = dates.moved_date(day, 7 * 519)
    assert moved is not None
    back = day_of(moved) - timedelta(days=7 * 519)
    assert back == day_of(day)
    assert dates.moved_datetime(day + "1200", 7 * 519) == moved + "1200"
