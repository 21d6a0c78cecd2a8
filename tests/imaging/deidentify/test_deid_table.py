"""The table: as published, complete, and its choices resolved so that objects stay valid."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

import pytest
from pydicom.datadict import dictionary_VR, keyword_for_tag

from medsynth.imaging.deidentify import build_table
from medsynth.imaging.deidentify.options import ACTIONS, OPTIONS, WHEN, action_under
from medsynth.imaging.deidentify.table import Rule, Rules, load_table, resolve

TABLE = load_table()
WITHOUT_FULL_DATES = frozenset(OPTIONS) - {"retain_full_dates"}
WITHOUT_MODIFIED_DATES = frozenset(OPTIONS) - {"retain_modified_dates"}


def every_rule(options: frozenset[str]) -> Iterator[Rule]:
    """At every depth of every kind of object."""

    def walk(rules: Rules) -> Iterator[Rule]:
        for rule in rules.values():
            yield rule
            yield from walk(rule.items or {})

    for sop_class in TABLE.sop_classes:
        yield from walk(TABLE.rules_for(sop_class, options))


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


def test_option_columns_are_those_of_the_standard_and_dates_and_uids_that_are_newer() -> None:
    standard = build_table.installed_standard()
    if not standard.is_dir():
        pytest.skip("dicom-standard is not installed; it holds the option columns of PS3.15")
    rows = json.loads((standard / "confidentiality_profile_attributes.json").read_text())
    published = {row["id"].upper().replace("X", "x"): row for row in rows}
    for option, column in build_table.OPTION_COLUMNS.items():
        ours = TABLE.options[option]
        theirs = {tag: row[column] for tag, row in published.items() if row.get(column) in {"K", "C"}}
        assert {tag: code for tag, code in ours.items() if tag in theirs} == theirs
        for tag in ours.keys() - theirs.keys():
            vr, keyword = dictionary_VR(int(tag, 16)), keyword_for_tag(int(tag, 16))
            if keyword in build_table.DEVICE_TEXT:
                assert option == "retain_device_identity"
            else:
                assert tag not in published
                assert vr in (WHEN if "dates" in option else {"UI"})


def test_rows_newer_than_the_option_columns_stay_under_the_basic_action() -> None:
    rules = TABLE.rules_for("1.2.840.10008.5.1.4.1.1.7", frozenset(OPTIONS) - {"retain_full_dates"})
    basic = TABLE.rules_for("1.2.840.10008.5.1.4.1.1.7")
    for keyword in (
        "SecondaryCaptureDeviceID",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "AccessionNumber",
        "StudyID",
    ):
        found, before = (next(rule for rule in one.values() if rule.keyword == keyword) for one in (rules, basic))
        assert found.action == before.action in {"X", "Z"}
    assert all("00080106" not in tags and "0072005F" not in tags for tags in TABLE.options.values())


@pytest.mark.parametrize("options", [frozenset(), WITHOUT_FULL_DATES, WITHOUT_MODIFIED_DATES])
def test_each_attribute_at_each_depth_has_one_known_action(options: frozenset[str]) -> None:
    for rule in every_rule(options):
        assert rule.action in ACTIONS, rule.keyword
        if rule.action == "S":
            assert rule.items
        if rule.action in {"CODE", "RCODE", "T"}:
            assert rule.vrs == ("SQ",)


@pytest.mark.parametrize("options", [WITHOUT_FULL_DATES, WITHOUT_MODIFIED_DATES])
def test_no_option_lets_names_or_undeclared_or_bulk_values_out(options: frozenset[str]) -> None:
    for rule in every_rule(options):
        if set(rule.vrs) & {"PN", "UN"}:
            assert rule.action in {"X", "Z", "D"}, rule.keyword
        if "OB" in rule.vrs and rule.action not in {"X", "Z", "D"}:
            assert rule.keyword == "PixelData"


def test_modified_dates_leave_no_date_as_it_was() -> None:
    for rule in every_rule(WITHOUT_FULL_DATES):
        if set(rule.vrs) & {"DA", "DT"}:
            assert rule.action in {"X", "Z", "D", "M"}, rule.keyword


def test_an_option_changes_only_what_it_names() -> None:
    for option in OPTIONS:
        named = TABLE.options.get(option, {})
        for sop_class in TABLE.sop_classes:
            basic, under = TABLE.rules_for(sop_class), TABLE.rules_for(sop_class, {option})
            for tag, rule in under.items():
                if f"{tag:08X}" not in named and not (option == "retain_uids" and rule.vrs == ("UI",)):
                    assert rule.action == basic[tag].action, rule.keyword


@pytest.mark.parametrize(
    ("answers", "vr", "terms", "items", "action"),
    [
        ([], "LO", False, False, None),
        ([("clean_descriptors", "C")], "LO", False, False, "W"),
        ([("clean_descriptors", "C")], "SQ", False, True, "S"),
        ([("clean_descriptors", "C")], "SQ", False, False, "CODE"),
        ([("clean_descriptors", "C")], "PN", False, False, None),
        ([("retain_modified_dates", "C")], "DA", False, False, "M"),
        ([("retain_modified_dates", "C")], "TM", False, False, "R"),
        ([("retain_modified_dates", "C")], "SH", False, False, None),
        ([("retain_full_dates", "K")], "SH", False, False, "R"),
        ([("clean_descriptors", "C"), ("retain_device_identity", "K")], "LO", False, False, "R"),
        ([("retain_patient_characteristics", "K")], "AS", False, False, "A"),
        ([("retain_patient_characteristics", "K")], "CS", True, False, "C"),
        ([("retain_patient_characteristics", "K")], "DS", False, False, "K"),
        ([("retain_institution_identity", "K")], "SQ", False, False, "RCODE"),
        ([("retain_device_identity", "K")], "OB", False, False, None),
        ([("clean_structured_content", "C")], "SQ", False, True, "T"),
        ([("clean_graphics", "C")], "OW", False, False, None),
    ],
)
def test_options_resolve_by_representation(
    answers: list[tuple[str, str]], vr: str, terms: bool, items: bool, action: str | None
) -> None:
    assert action_under(answers, vr, has_terms=terms, has_items=items) == action
