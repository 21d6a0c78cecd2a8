"""Regenerate `table.json` from published copies of the standard: `python -m medsynth.imaging.deidentify.build_table`.

Three sources, needed only here: `dicom-anonymizer` 2.1.0 (actions of PS3.15 table E.1-1, edition 2026c),
`dicom-standard` 0.1.0 (modules and attribute types of PS3.3, and the option columns of table E.1-1, edition 2020b) and
the code dictionary of pydicom. What is written by hand is the choice of modules, of sequences and of the terms in
`vocabulary.json`.
"""

from __future__ import annotations

import html
import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

EDITION = "2026c"
OPTIONS_EDITION = "2020b"
TABLE = Path(__file__).with_name("table.json")

IODS = {
    "1.2.840.10008.5.1.4.1.1.2": "ct-image",
    "1.2.840.10008.5.1.4.1.1.2.1": "enhanced-ct-image",
    "1.2.840.10008.5.1.4.1.1.2.2": "legacy-converted-enhanced-ct-image",
    "1.2.840.10008.5.1.4.1.1.4": "mr-image",
    "1.2.840.10008.5.1.4.1.1.4.1": "enhanced-mr-image",
    "1.2.840.10008.5.1.4.1.1.4.4": "legacy-converted-enhanced-mr-image",
    "1.2.840.10008.5.1.4.1.1.7": "secondary-capture-image",
}

ACTIONS = {
    "D": "D_TAGS",
    "Z": "Z_TAGS",
    "X": "X_TAGS",
    "U": "U_TAGS",
    "Z/D": "Z_D_TAGS",
    "X/Z": "X_Z_TAGS",
    "X/D": "X_D_TAGS",
    "X/Z/D": "X_Z_D_TAGS",
    "X/Z/U*": "X_Z_U_STAR_TAGS",
}

OPTION_COLUMNS = {
    "retain_full_dates": "rtnLongFullDatesOpt",
    "retain_modified_dates": "rtnLongModifDatesOpt",
    "retain_patient_characteristics": "rtnPatCharsOpt",
    "retain_device_identity": "rtnDevIdOpt",
    "retain_institution_identity": "rtnInstIdOpt",
    "retain_uids": "rtnUIDsOpt",
    "clean_descriptors": "cleanDescOpt",
    "clean_structured_content": "cleanStructContOpt",
    "clean_graphics": "cleanGraphOpt",
}
"""Options that table E.1-1 answers attribute by attribute; the others are about pixels and private attributes."""

DATES_OF_NO_VISIT = {
    "ContextGroupLocalVersion", "ContextGroupVersion", "HangingProtocolCreationDateTime", "SelectorDAValue",
    "SelectorDTValue", "SelectorTMValue", "TemplateLocalVersion", "TemplateVersion",
}  # fmt: skip
"""Rows newer than the option columns whose date is the version of a code list, or stands in a display protocol."""

DEVICE_TEXT = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions")
"""Not in table E.1-1, so the Basic Profile as published keeps them. Here free text goes unless an option keeps it, and
the option that keeps a device's identity is the one that they belong to (PS3.15 E.3.8)."""

KEPT_MODULES = {
    "bulk-motion-synchronization", "cardiac-synchronization", "contrast-bolus", "ct-image", "ct-series", "enhanced-ct-image",
    "enhanced-mr-image", "frame-of-reference", "general-equipment", "general-image", "general-reference", "general-series",
    "image-pixel", "image-plane", "modality-lut", "mr-image", "mr-pulse-sequence", "mr-series", "multi-frame-dimension",
    "multi-frame-functional-groups", "respiratory-synchronization", "sc-equipment", "sc-image", "sop-common",
    "synchronization", "voi-lut",
}  # fmt: skip
"""Modules whose attributes outlive the profile when table E.1-1 does not list them. Patient, study, trial, device,
specimen, overlay, ICC, multi-energy and acquisition-context modules are left out on purpose."""

KEPT_SEQUENCES = {
    "AnatomicRegionSequence", "CTDIPhantomTypeCodeSequence", "ContrastBolusAdministrationRouteSequence",
    "ContrastBolusAgentSequence", "ContributingEquipmentSequence", "DeidentificationMethodCodeSequence",
    "DerivationCodeSequence", "DimensionIndexSequence", "DimensionOrganizationSequence", "ModalityLUTSequence",
    "PerFrameFunctionalGroupsSequence", "PrimaryAnatomicStructureSequence", "PurposeOfReferenceCodeSequence",
    "ReferencedImageSequence", "SharedFunctionalGroupsSequence", "SourceImageSequence", "VOILUTSequence",
    "WaterEquivalentDiameterCalculationMethodCodeSequence",
}  # fmt: skip
"""Sequences kept outside functional groups; every other unlisted sequence goes whole."""

NEVER_KEPT = {
    "AuthorizationEquipmentCertificationNumber", "ContributionDateTime", "ImagesInAcquisition", "LUTExplanation",
    "LongitudinalTemporalInformationModified", "ManufacturerModelName", "PatientIdentityRemoved", "SoftwareVersions",
    "SpecificCharacterSet",
}  # fmt: skip
"""Free text, or written anew by the driver. No character set is needed: everything that is left is ASCII."""

EXTENSIONS = {
    "ct-image": ["SpacingBetweenSlices", "TemporalPositionIdentifier", "NumberOfTemporalPositions"],
    "mr-image": [
        "RescaleIntercept", "RescaleSlope", "RescaleType", "DiffusionBValue", "DiffusionGradientOrientation",
        "DiffusionDirectionality", "EffectiveEchoTime", "ParallelReductionFactorInPlane", "TemporalPositionIndex",
    ],
}  # fmt: skip
"""Attributes that scanners add to the classic objects and that voxels cannot be read or understood without."""
ALWAYS = ["SyntheticData", "NumberOfFrames"]

TECHNICAL_VRS = {"AT", "CS", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UI", "UL", "US", "UV"}
TEXT_WITH_TERMS = {"LO", "SH"}
BULK = {"PixelData", "LUTData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"}

CODE_GROUPS = (4, 11, 12, 19, 20, 21, 244, 3101, 4031, 4052, 7005, 7050, 7201, 7202, 7203, 10013)
STRICTNESS = ("1", "1C", "2", "2C", "3", "None")

Rows = list[dict[str, Any]]


def build(standard: Path) -> dict[str, Any]:
    """The whole table; `standard` is the folder of JSON files that `dicom-standard` installs."""
    profile = _profile()
    sources = {
        name: json.loads((standard / f"{name}.json").read_text())
        for name in ("ciod_to_modules", "ciod_to_fg_macros", "module_to_attributes", "macro_to_attributes")
    }
    options = _options(profile, json.loads((standard / "confidentiality_profile_attributes.json").read_text()))
    trees = {iod: _tree(iod, profile, options, sources) for iod in IODS.values()}
    texts = _tags_with_terms(trees.values())
    rows = sources["module_to_attributes"] + sources["macro_to_attributes"]
    return {
        "edition": EDITION,
        "options_edition": OPTIONS_EDITION,
        "sources": {
            "PS3.15": "dicom-anonymizer 2.1.0",
            "PS3.15 options": "dicom-standard 0.1.0",
            "PS3.3": "dicom-standard 0.1.0",
            "codes": "pydicom 3",
        },
        "profile": profile,
        "options": options,
        "sop_classes": IODS,
        "attributes": trees,
        "terms": _terms(rows, texts),
        "codes": _codes(),
    }


def _profile() -> dict[str, str]:
    """Tag -> action code of table E.1-1; repeating groups are written with `xx`."""
    tables = importlib.import_module(f"dicomanonymizer.dicom_anonymization_databases.dicomfields_{EDITION}")
    rows: dict[str, str] = {}
    for action, name in ACTIONS.items():
        for entry in getattr(tables, name):
            group, element = entry[:2]
            if len(entry) == 4:  # (group, element, group mask, element mask)
                text = f"{group >> 8:02X}xx" + (f"{element:04X}" if entry[3] else "xxxx")
            else:
                text = f"{group:04X}{element:04X}"
            rows[text] = action
    return dict(sorted(rows.items()))


def _options(profile: dict[str, str], rows: Rows) -> dict[str, dict[str, str]]:
    """Option -> tag -> K (keep) or C (clean), for rows of the profile.

    The option columns are older than the actions. Of the rows that came after them, dates and times follow the
    longitudinal options, because E.3.6 speaks of all of them (`DATES_OF_NO_VISIT` excepted), and UIDs that the profile
    replaces follow Retain UIDs, which E.3.9 lets keep every one. Every other newer row stays under the basic action.
    """
    known = {row["id"].upper().replace("X", "x"): row for row in rows}
    options = {
        option: {tag: known[tag][column] for tag in profile if known.get(tag, {}).get(column) in {"K", "C"}}
        for option, column in OPTION_COLUMNS.items()
    }
    for tag in profile:
        if tag in known or "x" in tag or not dictionary_has_tag(int(tag, 16)):
            continue
        vr, keyword = dictionary_VR(int(tag, 16)), keyword_for_tag(int(tag, 16))
        if vr in {"DA", "DT", "TM"} and keyword not in DATES_OF_NO_VISIT:
            options["retain_full_dates"][tag] = "K"
            options["retain_modified_dates"][tag] = "C"
        if vr == "UI" and profile[tag] == "U":
            options["retain_uids"][tag] = "K"
    for keyword in DEVICE_TEXT:
        options["retain_device_identity"][f"{tag_for_keyword(keyword):08X}"] = "K"
    return {option: dict(sorted(tags.items())) for option, tags in options.items()}


def _tree(
    iod: str, profile: dict[str, str], options: dict[str, dict[str, str]], sources: dict[str, Rows]
) -> dict[str, Any]:
    """Nested {tag: type} or {tag: {"type", "items"}} of what an object of this kind may hold or must treat."""
    retained = {tag for tags in options.values() for tag in tags}
    root: dict[str, Any] = {}
    modules = {row["moduleId"] for row in sources["ciod_to_modules"] if row["ciodId"] == iod} | {"modality-lut"}
    for row in sources["module_to_attributes"]:
        if row["moduleId"] in modules:
            path = row["path"].split(":")[1:]
            _insert(root, path, row["type"], profile, retained, kept=row["moduleId"] in KEPT_MODULES, macro=False)
    macros = {row["macroId"] for row in sources["ciod_to_fg_macros"] if row["ciodId"] == iod}
    groups = ("52009229", "52009230")
    for row in sources["macro_to_attributes"]:
        if row["macroId"] in macros:
            for group in groups:
                path = [group, *row["path"].split(":")[1:]]
                _insert(root, path, row["type"], profile, retained, kept=True, macro=True)
    for keyword in (*EXTENSIONS.get(iod, ()), *ALWAYS):
        tag = tag_for_keyword(keyword)
        if tag is not None:
            root.setdefault(f"{tag:08X}", ["3"])
    return _plain(root)


def _insert(
    tree: dict[str, Any],
    path: list[str],
    requirement: str,
    profile: dict[str, str],
    retained: set[str],
    *,
    kept: bool,
    macro: bool,
) -> None:
    """Place one attribute of PS3.3 where it belongs, or nowhere if it or a sequence around it is not kept."""
    for depth, text in enumerate(path):
        tag = text.upper()
        if "X" in tag or not dictionary_has_tag(int(tag, 16)):
            return
        if not _belongs(int(tag, 16), tag in profile or tag in retained, kept=kept, macro=macro):
            return
        if depth == len(path) - 1:
            entry = tree.setdefault(tag, [requirement])
            entry[0] = min(entry[0], requirement, key=STRICTNESS.index)
            return
        if tag not in retained and "U*" not in profile.get(tag, "U*"):
            return  # the whole sequence goes or is replaced: nothing inside it needs a rule
        kept = kept or tag in retained  # an option that keeps a sequence keeps what describes its items
        entry = tree.setdefault(tag, ["3"])
        if len(entry) == 1:
            entry.append({})
        if _is_code(int(tag, 16)):
            return  # codes are rebuilt from the dictionary, never copied
        tree = entry[1]


def _belongs(tag: int, listed: bool, *, kept: bool, macro: bool) -> bool:
    keyword, vr = keyword_for_tag(tag), dictionary_VR(tag)
    if listed:
        return True
    if keyword in NEVER_KEPT:
        return False
    if vr == "SQ":
        return kept and (keyword in KEPT_SEQUENCES or (macro and not keyword.startswith("RealWorldValue")))
    if keyword == "DeidentificationMethod":
        return True
    vrs = set(vr.split(" or "))
    return kept and (keyword in BULK or bool(vrs & (TECHNICAL_VRS | TEXT_WITH_TERMS)))


def _is_code(tag: int) -> bool:
    """By their names: sequences of coded concepts, of which only codes in the dictionary outlive the profile."""
    keyword = keyword_for_tag(tag)
    return keyword.endswith("CodeSequence") or keyword in {
        "AnatomicRegionSequence",
        "PrimaryAnatomicStructureSequence",
        "ContrastBolusAgentSequence",
        "ContrastBolusAdministrationRouteSequence",
    }


def _plain(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree as it is written: in tag order, a bare type where there are no items."""
    return {
        tag: {"type": entry[0], "items": _plain(entry[1])} if len(entry) == 2 and entry[1] else entry[0]
        for tag, entry in sorted(tree.items())
    }


def _tags_with_terms(trees: Iterable[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for tree in trees:
        for tag, entry in tree.items():
            if dictionary_VR(int(tag, 16)) in {"CS"} | TEXT_WITH_TERMS:
                found.add(tag)
            if isinstance(entry, dict):
                found |= _tags_with_terms([entry["items"]])
    return found


def _terms(rows: Rows, tags: set[str]) -> dict[str, list[str]]:
    """Keyword -> the defined terms and enumerated values that PS3.3 gives anywhere for it."""
    terms: dict[str, set[str]] = {}
    for row in rows:
        tag = row["path"].rsplit(":", 1)[1].upper()
        if tag not in tags:
            continue
        found = re.findall(r"<dt>\s*<span>(.*?)</span>", row.get("description") or "", re.DOTALL)
        words = {html.unescape(text).strip().upper() for text in found}
        if words:
            terms.setdefault(keyword_for_tag(int(tag, 16)), set()).update(words)
    return {keyword: sorted(words) for keyword, words in sorted(terms.items())}


def _codes() -> dict[str, dict[str, str]]:
    """Scheme -> code value -> meaning, for the context groups that images refer to."""
    groups = importlib.import_module("pydicom.sr._cid_dict").cid_concepts
    concepts = importlib.import_module("pydicom.sr._concepts_dict").concepts
    older = importlib.import_module("pydicom.sr._snomed_dict").mapping["SCT"]
    codes: dict[str, dict[str, str]] = {}
    for group in CODE_GROUPS:
        for scheme, keywords in groups[group].items():
            for keyword in keywords:
                for value, (meaning, members) in concepts[scheme][keyword].items():
                    if group not in members or len(value) > 16:
                        continue
                    codes.setdefault(scheme, {})[value] = meaning
                    if scheme == "SCT" and value in older:
                        codes.setdefault("SRT", {})[older[value]] = meaning
    return {scheme: dict(sorted(values.items())) for scheme, values in sorted(codes.items())}


def to_text(table: dict[str, Any]) -> str:
    """The table as JSON: one line per attribute, so that a new edition reads as a diff."""
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def installed_standard() -> Path:
    """Where `dicom-standard` puts its JSON files in this environment."""
    return Path(sys.prefix) / "standard"


def main() -> None:
    TABLE.write_text(to_text(build(installed_standard())), encoding="utf-8")


if __name__ == "__main__":
    main()
