"""The table: as published, complete, and its choices resolved so that objects stay valid."""

from __future__ import annotations

import importlib.util

import pytest
from pydicom.datadict import dictionary_VR

from medsynth.imaging.deidentify import build_table
from medsynth.imaging.deidentify.table import Rules, load_table, resolve

TABLE = load_table()


def test_committed_table_is_what_its_sources_give() -> None:
    if importlib.util.find_spec("dicomanonymizer") is None:
        pytest.skip("dicom-anonymizer is not installed; it holds the actions of PS3.15")
    standard = build_table.installed_standard()
    if not standard.is_dir():
        pytest.skip("dicom-standard is not installed; it holds the modules of PS3.3")
    assert build_table.to_text(build_table.build(standard)) == build_table.TABLE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "by_type"),
    [
        ("X", "XXX"),
        ("Z", "ZZZ"),
        ("D", "DDD"),
        ("U", "UUU"),
        ("Z/D", "DZX"),
        ("X/Z", "DZX"),
        ("X/D", "DZX"),
        ("X/Z/D", "DZX"),
        ("X/Z/U*", "SZX"),
    ],
)
def test_combinations_resolve_by_type(code: str, by_type: str) -> None:
    assert "".join(resolve(code, requirement) for requirement in (1, 2, 3)) == by_type


def test_every_row_of_the_edition_is_there() -> None:
    assert TABLE.edition == "2026c"
    assert len(TABLE.profile) == 655
    assert TABLE.profile["00100010"] == "Z"
    assert TABLE.profile["00080018"] == "U"
    assert TABLE.profile["50xxxxxx"] == "X"


def test_no_listed_attribute_is_kept_as_it_is() -> None:
    def check(rules: Rules) -> None:
        for tag, rule in rules.items():
            if f"{tag:08X}" in TABLE.profile:
                assert rule.action in {"X", "Z", "D", "U", "S"}, rule.keyword
            check(rule.items or {})

    for rules in TABLE.attributes.values():
        check(rules)


def test_free_text_dates_names_and_bulk_have_no_way_out() -> None:
    def check(rules: Rules) -> None:
        for tag, rule in rules.items():
            vr = dictionary_VR(tag)
            if vr in {"PN", "DA", "DT", "TM", "AS", "ST", "LT", "UT", "UC", "UR", "AE", "UN"}:
                assert rule.action in {"X", "Z", "D"}, rule.keyword
            if vr in {"OB", "OW", "OB or OW"} and rule.action == "K":
                assert rule.keyword == "PixelData"
            if vr == "CS" and rule.action == "C":
                assert rule.terms or rule.pattern
            if rule.action == "CODE":
                assert rule.items is None
            check(rule.items or {})

    for rules in TABLE.attributes.values():
        check(rules)


def test_every_unique_identifier_is_replaced() -> None:
    def check(rules: Rules) -> None:
        for tag, rule in rules.items():
            if dictionary_VR(tag) == "UI":
                assert rule.action == "U", rule.keyword
            check(rule.items or {})

    for rules in TABLE.attributes.values():
        check(rules)


def test_what_voxels_need_is_kept_in_both_classic_images() -> None:
    needed = [
        "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
        "PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient",
        "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "RescaleType", "WindowCenter",
        "WindowWidth", "Modality", "PixelData", "PixelPaddingValue", "ImageType", "SeriesNumber", "InstanceNumber",
        "SyntheticData", "BurnedInAnnotation", "RecognizableVisualFeatures",
    ]  # fmt: skip
    for iod in ("ct-image", "mr-image"):
        kept = {rule.keyword for rule in TABLE.attributes[iod].values() if rule.action in {"K", "C"}}
        assert set(needed) <= kept, set(needed) - kept
    assert {"KVP", "GantryDetectorTilt", "CTDIvol"} <= {r.keyword for r in TABLE.attributes["ct-image"].values()}
    assert {"EchoTime", "RepetitionTime", "FlipAngle"} <= {r.keyword for r in TABLE.attributes["mr-image"].values()}


def test_patient_characteristics_are_not_kept() -> None:
    for rules in TABLE.attributes.values():
        kept = {rule.keyword for rule in rules.values() if rule.action in {"K", "C", "S"}}
        assert not {word for word in kept if word.startswith(("Patient", "ClinicalTrial", "Measured", "Strain"))} - {
            "PatientPosition",
            "PatientOrientation",
            "PatientSupportAngle",
        }
