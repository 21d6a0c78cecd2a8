"""Clean Descriptors, Clean Structured Content, Retain Safe Private and the markers that say what was done."""

from __future__ import annotations

import re
from io import BytesIO

import pydicom
import pytest
from planted_headers import file_bytes, plain
from pydicom._private_dict import private_dictionaries
from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.options import NUMBERS
from medsynth.imaging.deidentify.safe_private import load_safe_private
from medsynth.imaging.deidentify.table import load_table


def deidentifier(*options: str) -> Deidentifier:
    return Deidentifier(SecretKey(bytes(32)), Deidentify.model_validate({"options": options, "ocr": "off"}))


def read(dataset: Dataset) -> Dataset:
    return pydicom.dcmread(BytesIO(file_bytes(dataset)))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("CT Abdomen/Pelvis w contrast", "CT Abdomen/Pelvis w contrast"),
        ("t1_mprage_sag_p2_iso", "t1_mprage_sag_p2_iso"),
        ("AX T2 FLAIR FS 3.0mm", "AX T2 FLAIR FS 3.0mm"),
        ("Thorax 5MM B70f LUNG", "Thorax 5MM B70f LUNG"),
        ("ep2d_diff_b1000_ADC", "ep2d_diff_b1000_ADC"),
        ("SWI T2* axial, 1.5T", "SWI T2* axial, 1.5T"),
        ("CHEST W/O CONTRAST", "CHEST without CONTRAST"),
        ("Head for Anna Meier, room 12", "Head for"),
        ("MRN 4711042 knee 19610203", "knee"),
        ("knee 03.02.1961 left", "knee left"),
        ("HIP 1961-02-03", "HIP"),
        ("(555) 123-4567 spine", "spine"),
        ("a.meier@example.org liver", "liver"),
        ("brain https://pacs.local/1234", "brain"),
        ("Zvyagintseva", ""),
        ("12345", ""),
        ("Ünal Schädel Kopf", "Kopf"),
        ("ORIGINAL head", "head"),
        ("head^ANNA", "head"),
    ],
)
def test_free_text_keeps_words_of_radiology_alone(text: str, left: str) -> None:
    dataset = plain("CT")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.StudyDescription = dataset.ImageComments = text
    result = read(deidentifier("clean_descriptors").dataset(read(dataset)))
    assert result.get("StudyDescription", "") == left
    assert result.get("ImageComments", "") == left


def test_a_listed_word_that_is_somebodys_name_goes() -> None:
    dataset = plain("CT")
    dataset.PatientName = "Foot^Anna"
    dataset.StudyDescription = "Head and foot"
    physician = Dataset()
    physician.PersonIdentificationCodeSequence = []
    dataset.ReferringPhysicianName = "Brain^Walter"
    dataset.SeriesDescription = "BRAIN axial"
    nested = Dataset()
    nested.add_new(0x00401010, "PN", "Liver^Eva")
    dataset.RequestAttributesSequence = [nested]
    dataset.ProtocolName = "Liver"
    for source in (dataset, read(dataset)):
        result = deidentifier("clean_descriptors").dataset(source)
        assert result.StudyDescription == "Head and"
        assert result.SeriesDescription == "axial"
        assert "ProtocolName" not in result


def test_names_are_found_without_declared_representations_too() -> None:
    dataset = plain("CT")
    dataset.PatientName, dataset.StudyDescription = "Foot^Anna", "Head and foot"
    nested = Dataset()
    nested.add_new(0x00081070, "PN", "Liver^Eva")
    dataset.add_new(0x00400275, "SQ", [nested])
    dataset.SeriesDescription = "Liver axial"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
    result = deidentifier("clean_descriptors").dataset(read(dataset))
    assert (result.StudyDescription, result.SeriesDescription) == ("Head and", "axial")


def test_cleaned_descriptions_inside_sequences_follow_and_types_hold() -> None:
    dataset = plain("CT")
    dataset.ContrastBolusAgent = "Meier's own mixture"  # type 2
    request = Dataset()
    request.ScheduledProcedureStepDescription, request.RequestedProcedureID = "CT neck, Meier", "R-4711"
    request.ReasonForTheRequestedProcedure = "follow up of tumour in Mrs Meier"
    dataset.RequestAttributesSequence = [request]
    result = deidentifier("clean_descriptors").dataset(read(dataset))
    assert result["ContrastBolusAgent"].value in (None, "")
    item = result.RequestAttributesSequence[0]
    assert item.ScheduledProcedureStepDescription == "CT neck"
    assert item.ReasonForTheRequestedProcedure == "follow up of tumour in"
    assert "RequestedProcedureID" not in item


def test_no_dictionary_word_is_a_bare_number_and_no_technical_form_takes_one() -> None:
    dictionary = load_table().dictionary
    assert len(dictionary.words) > 1000
    assert not [word for word in dictionary.words if not re.search(r"[a-z]", word)]
    for number in ("1", "12", "1961", "19610203", "4711042", "03.02.1961", "3.5", "12-34"):
        assert dictionary.technical.fullmatch(number) is None
    for surname in ("meier", "smith", "white", "anke", "marconi", "varian", "gray"):
        assert surname not in dictionary.words


def code(value: str, scheme: str, meaning: str = "ZQ") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def content(kind: str, concept: Dataset, **values: object) -> Dataset:
    item = Dataset()
    item.ValueType, item.ConceptNameCodeSequence = kind, [concept]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def test_structured_content_keeps_known_codes_and_numbers() -> None:
    heart, state = code("364075005", "SCT"), code("109054", "DCM")
    dataset = plain("CT")
    dataset.AcquisitionContextSequence = [
        content("NUMERIC", heart, NumericValue="72", MeasurementUnitsCodeSequence=[code("/min", "UCUM")]),
        content("CODE", state, ConceptCodeSequence=[code("128973001", "SCT")]),
        content("CODE", state, ConceptCodeSequence=[code("ZQ9", "99LOCAL")]),
        content(
            "NUMERIC", code("ZQ8", "99LOCAL"), NumericValue="4711", MeasurementUnitsCodeSequence=[code("1", "UCUM")]
        ),
        content("NUMERIC", heart, NumericValue="72", MeasurementUnitsCodeSequence=[code("ZQ7", "99LOCAL")]),
        content("TEXT", heart, TextValue="ZQ Meier"),
        content("PNAME", state, PersonName="Meier^Anna"),
        content("DATE", state, Date="19610203"),
        Dataset(),
    ]
    result = read(deidentifier("clean_structured_content").dataset(read(dataset)))
    kinds = [
        (item.ValueType, item.ConceptNameCodeSequence[0].CodeMeaning) for item in result.AcquisitionContextSequence
    ]
    known = load_table().codes["SCT"].get("128973001") is not None
    assert kinds == [("NUMERIC", "Heart rate")] + [("CODE", "Patient State")] * known
    first = result.AcquisitionContextSequence[0]
    assert (first.NumericValue, first.MeasurementUnitsCodeSequence[0].CodeMeaning) == (72, "per minute")
    data = file_bytes(result)
    assert not [secret for secret in (b"ZQ", b"Meier", b"4711", b"19610203") if secret in data]
    assert "AcquisitionContextSequence" not in deidentifier().dataset(read(dataset))


def with_private(vr: str, value: object, element: int = 0x0C, creator: str = "SIEMENS MR HEADER") -> Dataset:
    dataset = plain("MR")
    dataset.private_block(0x0019, creator, create=True).add_new(element, vr, value)
    return dataset


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"])
def test_safe_private_numbers_stay_with_the_reservation_of_their_block(syntax: str) -> None:
    dataset = with_private("IS", "1000")
    dataset.private_block(0x0019, "SIEMENS MR HEADER").add_new(0x0E, "FD", [0.6, 0.0, 0.8])
    dataset.private_block(0x0019, "SIEMENS MR HEADER").add_new(0x0D, "CS", "DIRECTIONAL")
    dataset.private_block(0x0019, "SIEMENS MR HEADER").add_new(0x77, "LO", "ZQ")
    dataset.private_block(0x0019, "ZQ LOCAL", create=True).add_new(0x0C, "IS", "4711")
    dataset.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x39, "IS", [1000000800, 8, 0, 0])
    dataset.file_meta.TransferSyntaxUID = syntax
    result = read(deidentifier("retain_safe_private").dataset(read(dataset)))
    kept = {element.tag: element.value for element in result if element.tag.is_private}
    assert kept == {
        0x00190010: "SIEMENS MR HEADER", 0x0019100C: 1000, 0x0019100D: "DIRECTIONAL", 0x0019100E: [0.6, 0.0, 0.8],
        0x00430010: "GEMS_PARM_01", 0x00431039: [1000000800, 8, 0, 0],
    }  # fmt: skip
    codes = [item.CodeValue for item in result.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113111"]


def test_safe_private_blocks_are_found_wherever_they_are_reserved_and_at_every_depth() -> None:
    dataset = plain("MR")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.NumberOfFrames = 1
    frame, position = Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, 0]
    frame.PlanePositionSequence = [position]
    frame.private_block(0x2001, "ZQ FIRST", create=True).add_new(0x03, "FL", 47.0)
    frame.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x03, "FL", 800.0)
    dataset.PerFrameFunctionalGroupsSequence = [frame]
    result = read(deidentifier("retain_safe_private").dataset(read(dataset)))
    kept = [element.tag for element in result.PerFrameFunctionalGroupsSequence[0] if element.tag.is_private]
    assert kept == [0x20010011, 0x20011103]
    assert result.PerFrameFunctionalGroupsSequence[0][0x20011103].value == 800


@pytest.mark.parametrize(
    ("vr", "value", "element"),
    [
        ("LO", "ANNA", 0x0C),
        ("UN", b"ANNA MEIER", 0x0C),
        ("UN", b"ANNA^MEI", 0x0E),
        ("FD", [0.6, 0.8], 0x0E),
        ("SH", "1000", 0x0C),
        ("OB", b"1000", 0x0C),
        ("CS", "ANNA", 0x0D),
        ("LO", "DIRECTIONAL", 0x0D),
    ],
)
def test_safe_private_attributes_with_anything_else_in_them_go(vr: str, value: object, element: int) -> None:
    result = deidentifier("retain_safe_private").dataset(read(with_private(vr, value, element)))
    assert not [tag for tag in result.keys() if tag.is_private]  # noqa: SIM118 - a dataset yields elements


def test_private_attributes_of_an_unlisted_creator_go_even_if_they_are_numbers() -> None:
    source = read(with_private("IS", "1000", creator="SIEMENS MR HEADERS"))
    assert not [tag for tag in deidentifier("retain_safe_private").dataset(source).keys() if tag.is_private]  # noqa: SIM118
    assert not [tag for tag in deidentifier().dataset(read(with_private("IS", "1"))).keys() if tag.is_private]  # noqa: SIM118


def test_the_list_of_safe_private_attributes_agrees_with_pydicoms_dictionary() -> None:
    listed = load_safe_private()
    compared = 0
    for creator, rules in listed.rules.items():
        for (group, number), rule in rules.items():
            known = private_dictionaries.get(creator, {}).get(f"{group:04X}xx{number:02X}")
            if known is not None:
                assert known[0] == rule.vrs[0]
                compared += 1
            assert rule.vrs[0] in NUMBERS or rule.pattern is not None
            assert rule.vrs[0] not in {"PN", "DA", "DT", "TM", "UI", "OB", "OW", "UN", "SQ", "ST", "LT", "UT"}
    assert compared > 60


def test_markers_name_the_options_and_keep_what_earlier_tools_said() -> None:
    dataset = plain("CT")
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = ["DCM:113100/113105", "by Anna Meier"]
    dataset.DeidentificationMethodCodeSequence = [code("113100", "DCM"), code("113105", "DCM"), code("1", "99ZQ")]
    options = ("retain_uids", "clean_graphics", "clean_pixel_data", "retain_modified_dates")
    result = deidentifier(*options).dataset(read(dataset))
    values = [item.CodeValue for item in result.DeidentificationMethodCodeSequence]
    assert values == ["113100", "113105", "113110", "113103", "113107"]  # no pixels were cleaned: no 113101
    assert list(result.DeidentificationMethod[:2]) == ["DCM:113100/113105", "earlier de-identification (text removed)"]
    assert list(result.DeidentificationMethod[3:]) == ["Retain UIDs", "Clean Graphics", "Retain Modified Dates"]
    assert all(len(text) <= 64 for text in result.DeidentificationMethod)
    assert b"Meier" not in file_bytes(result)


def test_doing_it_again_under_the_same_options_says_everything_once() -> None:
    made = deidentifier("retain_uids", "clean_descriptors", "retain_patient_characteristics")
    once = made.dataset(read(plain("CT")))
    twice = made.dataset(read(once))
    assert list(twice.DeidentificationMethod) == list(once.DeidentificationMethod)
    assert twice.DeidentificationMethodCodeSequence == once.DeidentificationMethodCodeSequence
    assert len(twice.ContributingEquipmentSequence) == 1


def test_graphics_go_under_clean_graphics_as_they_do_without() -> None:
    dataset = plain("CT")
    for tag, vr, value in (
        (0x60000010, "US", 8), (0x60003000, "OB", bytes(16)), (0x60004000, "LT", "ZQ"), (0x50003000, "OB", b"ZQZQ"),
        (0x00700001, "SQ", [Dataset()]),
    ):  # fmt: skip
        dataset.add_new(tag, vr, value)
    result = deidentifier("clean_graphics").dataset(read(dataset))
    assert not [tag for tag in result.keys() if tag.group in {0x5000, 0x6000, 0x0070}]  # noqa: SIM118
    assert result.DeidentificationMethodCodeSequence[-1].CodeValue == "113103"


def test_report_counts_options_by_their_actions() -> None:
    made = deidentifier("clean_descriptors", "retain_safe_private", "retain_modified_dates")
    dataset = with_private("IS", "1000")
    dataset.StudyDescription = "MR Head"
    made.dataset(read(dataset))
    made.dataset(read(dataset))
    assert made.report["StudyDescription"] == {"W": 2}
    assert made.report["StudyDate"] == {"M": 2}
    assert made.report["private"] == {"P": 2, "private": 2}
