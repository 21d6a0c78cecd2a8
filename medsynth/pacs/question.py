"""What is asked of a PACS. Its values may be a patient's: they are sent there, and never shown, logged or stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medsynth.errors import UsageError

STUDY_KEYS = (
    "AccessionNumber", "ModalitiesInStudy", "PatientBirthDate", "PatientID", "PatientName", "PatientSex",
    "ReferringPhysicianName", "StudyDate", "StudyDescription", "StudyID", "StudyInstanceUID", "StudyTime",
)  # fmt: skip
SERIES_KEYS = (
    "BodyPartExamined", "Laterality", "Modality", "PerformedProcedureStepStartDate", "ProtocolName", "SeriesDate",
    "SeriesDescription", "SeriesInstanceUID", "SeriesNumber",
)  # fmt: skip
NARROWING = frozenset(STUDY_KEYS + SERIES_KEYS) - {"Modality", "ModalitiesInStudy", "PatientSex", "Laterality"}
"""Keys of which at least one is needed: the others alone would mean half of a hospital."""

EXACT = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber", "Modality")
"""Keys whose answers are checked: a PACS may ignore a key that it does not know, and answer with everybody."""

DATE_RANGE = r"\d{8}|\d{8}-|-\d{8}|\d{8}-\d{8}"
UID = r"[0-9.]{1,64}"


@dataclass(frozen=True)
class Question:
    """Matching keys (PS3.4 C.2.2.2) at the level of studies and of series; all of them must match."""

    study: Mapping[str, str] = field(default_factory=dict, repr=False)
    series: Mapping[str, str] = field(default_factory=dict, repr=False)

    def excludes(self, answer: Mapping[str, str]) -> bool:
        """Whether an answer (keyword -> value) contradicts the question, because the PACS ignored a key."""
        asked = {**self.study, **self.series}
        return any(
            not _agrees(asked[key], answer[key])
            for key in EXACT
            if key in asked and key in answer and not set("*?\\") & set(asked[key])
        )


def questions(
    *,
    patients: Sequence[str] = (),
    studies: Sequence[str] = (),
    query: Sequence[str] = (),
    modality: str | None = None,
    date: str | None = None,
) -> list[Question]:
    """One question per patient and study, each narrowed by the rest. Raises UsageError, without repeating a value."""
    common = _common(query, modality, date)
    for patient in patients:
        if not patient.strip() or set("*?\\") & set(patient):
            raise UsageError(
                "expected a whole patient ID, found an empty one or one with * ? \\; use --query for patterns"
            )
    for study in studies:
        if not re.fullmatch(UID, study):
            raise UsageError("expected a Study Instance UID (digits and dots), found something else; check --study")
    asked = [{"PatientID": patient.strip()} for patient in patients] + [
        {"StudyInstanceUID": study} for study in studies
    ]
    found = []
    for own in asked or [{}]:
        keys = {**common, **own}
        if not NARROWING & set(keys):
            raise UsageError(
                "expected --patient, --study, --date or a --query that narrows the search, found none; "
                "a whole PACS is not pulled by accident"
            )
        found.append(
            Question(
                {key: value for key, value in keys.items() if key in STUDY_KEYS},
                {key: value for key, value in keys.items() if key in SERIES_KEYS},
            )
        )
    return found


def _common(query: Sequence[str], modality: str | None, date: str | None) -> dict[str, str]:
    keys: dict[str, str] = {}
    for text in query:
        key, equals, value = text.partition("=")
        if not equals or not value.strip(" *") or key not in STUDY_KEYS + SERIES_KEYS:
            raise UsageError(
                "expected --query KEY=VALUE with a value and one of the keys "
                f"{', '.join(sorted({*STUDY_KEYS, *SERIES_KEYS}))}, found something else; write it so"
            )
        if key in keys:
            raise UsageError(f"expected --query {key}=... once, found it twice; keep one")
        keys[key] = value.strip()
    if modality is not None:
        if not re.fullmatch(r"[A-Z0-9_]{1,16}", modality):
            raise UsageError("expected --modality as in DICOM, for example CT or MR, found something else")
        keys["Modality"] = modality
    if date is not None:
        if not re.fullmatch(DATE_RANGE, date):
            raise UsageError(
                "expected --date YYYYMMDD, YYYYMMDD-YYYYMMDD, YYYYMMDD- or -YYYYMMDD, found something else"
            )
        keys["StudyDate"] = date
    return keys


def _agrees(asked: str, answered: str) -> bool:
    return asked.strip(" \0").casefold() == answered.strip(" \0").casefold()
