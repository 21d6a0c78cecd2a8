"""Options of PS3.15: each keeps what it names, intact, and nothing else; every other secret is gone."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import get_args

import pydicom
import pytest
from planted_headers import KEPT, file_bytes, plain, planted
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsynth.config.deidentify import Deidentify, Option
from medsynth.config.load import load_section
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.options import OPTIONS

KINDS = ["CT", "MR", "SC", "ENHANCED"]
KEPT_BY = {
    "retain_full_dates": {
        "StudyDate", "ContentDate", "AcquisitionDateTime", "SeriesDate", "DateOfLastCalibration 1",
        "DateOfLastCalibration 2", "InstanceCreationDate, newer than the option columns", "FrameReferenceDateTime",
    },
    "retain_patient_characteristics": {"SH EthnicGroup"},
    "retain_device_identity": {
        "StationName", "DeviceSerialNumber", "LO ManufacturerModelName", "LO SoftwareVersions", "DeviceUID",
        "serial number of contributing equipment", "UN under a known tag, GantryID", "UN under a known tag, PlateID",
        "AE PerformedStationAETitle", "SH DetectorID, in no module of the image", "UT UniqueDeviceIdentifier",
        "LO DeviceDescription",
    },
    "retain_institution_identity": {
        "InstitutionName", "InstitutionAddress", "institution of contributing equipment", "site code",
        "meaning of a site code", "LO InstitutionalDepartmentName", "LO ClinicalTrialSiteName",
        "ST in contributing equipment",
    },
    "retain_uids": {
        "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "IrradiationEventUID",
        "RelatedGeneralSOPClassUID, not in table E.1-1", "UID in a referenced image", "DeviceUID", "UID in a frame",
        "in a known sequence of VR UN",
    },
}  # fmt: skip
"""The planted places that an option may, and must, leave as they are. Options that are not here leave none."""

NOT_IN = {"UID in a referenced image": {"ENHANCED"}}
"""The multi-frame object keeps references per frame."""

HEADER_OPTIONS = [
    name for name in get_args(Option) if name not in {"clean_pixel_data", "clean_recognizable_visual_features"}
]
PRESETS = ["strict", "longitudinal", "research"]


def deidentifier(*options: str, **settings: object) -> Deidentifier:
    return Deidentifier(SecretKey(bytes(range(32))), Deidentify.model_validate({"options": options, **settings}))


def allowed(options: tuple[str, ...], kind: str, secrets: dict[str, bytes]) -> set[str]:
    named = set().union(*(KEPT_BY.get(option, set()) for option in options))
    return {place for place in named if place in secrets and kind not in NOT_IN.get(place, set())}


def through_file(dataset: Dataset) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(BytesIO(file_bytes(dataset)))


def written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def survivors(secrets: dict[str, bytes], data: bytes) -> set[str]:
    lower = data.lower()
    return {
        place
        for place, secret in secrets.items()
        if any(form in lower for form in (secret.lower(), secret.decode().lower().encode("utf-16-le")))
    }


@pytest.fixture
def masks_captures(tmp_path: Path) -> dict[str, object]:
    """Settings under which a secondary capture goes on: a rule says where its text is."""
    rules = tmp_path / "regions.yaml"
    rules.write_text(
        "rules:\n  - {name: own, source: own, when: {Manufacturer: SIEMENS, Modality: OT}, blank: [[0, 0, 12, 4]]}\n"
    )
    return {"regions": str(rules), "ocr": "off"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", [None, *HEADER_OPTIONS])
def test_of_all_secrets_exactly_those_that_the_option_names_stay(
    option: str | None, kind: str, masks_captures: dict[str, object]
) -> None:
    options = (() if option is None else (option,)) + (("clean_pixel_data",) if kind == "SC" else ())
    dataset, secrets = planted(kind)
    result = deidentifier(*options, **masks_captures).dataset(through_file(dataset))
    assert survivors(secrets, written(result)) == allowed(options, kind, secrets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dates", ["retain_full_dates", "retain_modified_dates"])
def test_all_options_at_once_keep_the_sum_of_what_each_names(
    dates: str, kind: str, masks_captures: dict[str, object]
) -> None:
    options = (*(name for name in HEADER_OPTIONS if not name.endswith("_dates")), dates, "clean_pixel_data")
    dataset, secrets = planted(kind)
    result = deidentifier(*options, **masks_captures).dataset(through_file(dataset))
    assert survivors(secrets, written(result)) == allowed(options, kind, secrets)
    for keyword in KEPT["both"] + KEPT[kind]:
        if keyword in result and keyword not in {"ImageType", "Manufacturer", "PixelData"}:
            assert result[keyword].value == dataset[keyword].value, keyword


@pytest.mark.parametrize("kind", ["CT", "MR", "ENHANCED"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_leak_nothing_that_their_options_do_not_name(preset: str, kind: str) -> None:
    settings = load_section(Deidentify, "deidentify", preset, [])
    dataset, secrets = planted(kind)
    result = Deidentifier(SecretKey(bytes(32)), settings).dataset(through_file(dataset))
    assert survivors(secrets, written(result)) == allowed(settings.options, kind, secrets)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_research_options_work_in_every_encoding(syntax: UID) -> None:
    settings = load_section(Deidentify, "deidentify", "research", [])
    dataset = rich()
    dataset.file_meta.TransferSyntaxUID = syntax
    source = through_file(dataset)
    result = pydicom.dcmread(BytesIO(written(Deidentifier(SecretKey(bytes(32)), settings).dataset(source))))
    assert (result.PatientAge, result.PatientWeight, result.PatientSex) == ("064Y", 81.5, "F")
    assert (result.StationName, result.DeviceSerialNumber) == ("CTAWP7", "66012")
    assert result.SeriesDescription == "Thorax 3.0mm B70f"
    if syntax != ExplicitVRBigEndian:  # pydicom writes private numbers of unknown meaning there
        assert result[0x0019100C].value == 1000
    assert result.file_meta.TransferSyntaxUID == syntax


def rich() -> Dataset:
    """A CT image with what a researcher may ask for."""
    dataset = plain("CT")
    dataset.PatientAge, dataset.PatientWeight, dataset.PatientSize = "064Y", "81.5", "1.74"
    dataset.EthnicGroup, dataset.SmokingStatus, dataset.PregnancyStatus = "Han", "NO", 1
    dataset.StationName, dataset.DeviceSerialNumber, dataset.GantryID = "CTAWP7", "66012", "G-1"
    dataset.ManufacturerModelName, dataset.SoftwareVersions = "SOMATOM Force", ["VA50A", "SP3"]
    dataset.InstitutionName, dataset.InstitutionalDepartmentName = "General Hospital", "Radiology"
    dataset.SeriesDescription, dataset.StudyDescription = "Thorax 3.0mm B70f ORIGINAL", "CT Thorax w/o contrast 4711"
    dataset.SeriesDate, dataset.SeriesTime = "20190405", "101112.250000"
    dataset.AcquisitionDateTime, dataset.TimezoneOffsetFromUTC = "20190405101112.250000+0100", "+0100"
    dataset.ContentDate, dataset.ContentTime = "20190406", "000001"
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0E, "FD", [0.6, 0.0, 0.8])
    block.add_new(0x99, "LO", "not listed")
    return dataset


@pytest.mark.parametrize(
    ("option", "keywords"),
    [
        ("retain_patient_characteristics",
         ["PatientAge", "PatientSex", "PatientSize", "PatientWeight", "EthnicGroup", "SmokingStatus", "PregnancyStatus"]),
        ("retain_device_identity",
         ["StationName", "DeviceSerialNumber", "GantryID", "ManufacturerModelName", "SoftwareVersions", "Manufacturer"]),
        ("retain_institution_identity", ["InstitutionName", "InstitutionalDepartmentName"]),
        ("retain_full_dates",
         ["StudyDate", "StudyTime", "SeriesDate", "SeriesTime", "AcquisitionDateTime", "TimezoneOffsetFromUTC",
          "ContentDate", "ContentTime"]),
        ("retain_uids",
         ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [True, False], ids=["file", "memory"])
def test_what_an_option_names_is_there_and_intact(option: str, keywords: list[str], read: bool) -> None:
    source = through_file(rich()) if read else rich()
    with_option, without = (
        pydicom.dcmread(BytesIO(written(made.dataset(source)))) for made in (deidentifier(option), deidentifier())
    )
    for keyword in keywords:
        assert with_option[keyword].value == source[keyword].value, keyword
        if keyword != "Manufacturer":
            assert not without.get(keyword) or without[keyword].value != source[keyword].value, keyword
    others = [element.keyword for element in with_option if element.keyword not in {*keywords, *MARKERS}]
    assert all(with_option[keyword].value == without[keyword].value for keyword in others if keyword)


MARKERS = {
    "DeidentificationMethod", "DeidentificationMethodCodeSequence", "LongitudinalTemporalInformationModified",
}  # fmt: skip


def test_retained_text_in_another_script_is_kept_in_unicode() -> None:
    dataset = rich()
    dataset.SpecificCharacterSet = ["ISO 2022 IR 6", "ISO 2022 IR 87"]
    dataset.InstitutionName, dataset.InstitutionAddress = "国立病院", "東京\r\n日本"
    earlier = Dataset()
    earlier.Manufacturer, earlier.InstitutionName = "SIEMENS", "大学病院"
    earlier.PurposeOfReferenceCodeSequence = [code("109101", "DCM", "Acquisition Equipment")]
    dataset.ContributingEquipmentSequence = [earlier]
    clean = deidentifier("retain_institution_identity").dataset(through_file(dataset))
    for result in (clean, pydicom.dcmread(BytesIO(written(clean)))):
        assert result.SpecificCharacterSet == "ISO_IR 192"
        assert (result.InstitutionName, result.InstitutionAddress) == ("国立病院", "東京\r\n日本")
        assert result.ContributingEquipmentSequence[0].InstitutionName == "大学病院"


def test_text_that_denies_its_script_is_not_retained() -> None:
    dataset = rich()
    raw = file_bytes(dataset).replace(b"General Hospital", b"G\xe9n\xe9ral Hospital")
    result = deidentifier("retain_institution_identity").dataset(pydicom.dcmread(BytesIO(raw)))
    assert "InstitutionName" not in result
    assert "SpecificCharacterSet" not in result
    assert result.InstitutionalDepartmentName == "Radiology"


@pytest.mark.parametrize(
    ("keyword", "option", "value"),
    [
        ("StationName", "retain_device_identity", b"SEVENTEENLETTERS-"),
        ("SoftwareVersions", "retain_device_identity", b"VA50A\x00\x01\x02X"),
        ("PatientSex", "retain_patient_characteristics", b"SMITH "),
        ("SmokingStatus", "retain_patient_characteristics", b"SMITH "),
        ("PatientWeight", "retain_patient_characteristics", b"SMITH "),
        ("PatientAge", "retain_patient_characteristics", b"SMIT"),
    ],
)
def test_a_retained_value_that_is_not_valid_goes(keyword: str, option: str, value: bytes) -> None:
    dataset = rich()
    tag = dataset[keyword].tag
    vr = dataset[keyword].VR
    element = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    dataset[tag] = element
    result = deidentifier(option).dataset(dataset)
    assert not result.get(keyword)


def test_a_uid_that_is_none_is_replaced_even_where_uids_are_retained() -> None:
    dataset = rich()
    dataset["SeriesInstanceUID"] = pydicom.dataelem.RawDataElement(
        dataset["SeriesInstanceUID"].tag, "UI", 10, b"SMITH^ANNA", 0, False, True
    )
    result = deidentifier("retain_uids").dataset(dataset)
    assert result.SeriesInstanceUID.startswith("2.25.")
    assert result.StudyInstanceUID == dataset.StudyInstanceUID


@pytest.mark.parametrize(
    ("age", "kept"),
    [("064Y", "064Y"), ("089Y", "089Y"), ("090Y", "090Y"), ("097Y", "090Y"), ("104Y", "090Y"), ("003D", "003D"),
     ("018M", "018M"), ("6Y", None), ("064", None), ("ABCD", None), ("090y", None)],
)  # fmt: skip
def test_ages_above_89_become_one_group(age: str, kept: str | None) -> None:
    dataset = rich()
    dataset["PatientAge"] = pydicom.dataelem.RawDataElement(
        dataset["PatientAge"].tag, "AS", len(age), age.encode(), 0, False, True
    )
    assert deidentifier("retain_patient_characteristics").dataset(dataset).get("PatientAge") == kept


def test_references_inside_retained_sequences_follow_the_uids() -> None:
    dataset = rich()
    reference, step = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
        dataset.SOPClassUID,
        "1.2.826.0.1.3680043.99.5",
    )
    reference.ImageComments = "not kept"
    step.ReferencedSOPClassUID, step.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.3", "1.2.826.0.1.3680043.99.6"
    dataset.ReferencedImageSequence, dataset.ReferencedPerformedProcedureStepSequence = [reference], [step]
    dataset.ReferencedPatientSequence = [step]
    result = deidentifier("retain_uids").dataset(through_file(dataset))
    assert result.ReferencedImageSequence[0].ReferencedSOPInstanceUID == "1.2.826.0.1.3680043.99.5"
    assert [element.keyword for element in result.ReferencedImageSequence[0]] == [
        "ReferencedSOPClassUID",
        "ReferencedSOPInstanceUID",
    ]
    assert result.ReferencedPerformedProcedureStepSequence[0].ReferencedSOPInstanceUID == "1.2.826.0.1.3680043.99.6"
    assert "ReferencedPatientSequence" not in result  # X also under this option


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def test_every_option_has_a_code_and_a_name_that_fits() -> None:
    assert set(OPTIONS) == set(get_args(Option))
    assert len({option.code for option in OPTIONS.values()}) == len(OPTIONS) == 12
    assert {option.code for option in OPTIONS.values()} == {str(number) for number in range(113101, 113113)}
    assert all(len(option.name) <= 64 for option in OPTIONS.values())


@pytest.mark.parametrize("option", HEADER_OPTIONS)
def test_the_search_of_the_result_is_told_what_was_kept_on_purpose(option: str) -> None:
    dataset, secrets = planted("CT")
    source = through_file(dataset)
    made = deidentifier(option, ocr="off")
    kept = "\n".join(made.retained(source, made.dataset(source)))
    expected = {secrets[place].decode().lower() for place in allowed((option,), "CT", secrets)}
    assert all(text in kept for text in expected)
    gone = {secret.decode().lower() for place, secret in secrets.items()} - expected
    assert not [text for text in gone if text in kept]


def test_without_options_nothing_is_kept_on_purpose() -> None:
    source = through_file(rich())
    made = deidentifier()
    assert made.retained(source, made.dataset(source)) == frozenset()


def test_profile_says_what_was_asked_for_and_nothing_secret() -> None:
    made = deidentifier("retain_safe_private", "retain_uids")
    profile = made.profile
    assert profile["options"] == ["retain_safe_private", "retain_uids"]
    assert profile["edition"] == "PS3.15 2026c"
    assert "E.3.10-1" in profile["safe_private"]
    assert profile["key"] == made.key.fingerprint
    assert bytes(range(32)).hex() not in repr(profile)
    assert deidentifier().profile["safe_private"] is None
