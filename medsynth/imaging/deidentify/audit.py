"""The audit of an output folder, for the privacy officer: `deidentification.json`, and the same as one page to read or print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

import medsynth
from medsynth.config.deidentify import Deidentify
from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify.audit_page import NOT_CHECKED, render_page
from medsynth.imaging.deidentify.identifiers import Identifiers
from medsynth.imaging.deidentify.journal import JOURNAL, write_whole
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.options import OPTIONS
from medsynth.imaging.deidentify.table import load_table
from medsynth.imaging.deidentify.tally import KINDS, Tally

AUDIT, PAGE = "deidentification.json", "deidentification.html"
FORMAT = 2
PROFILE = "PS3.15 Annex E Basic Application Level Confidentiality Profile (DCM 113100)"


class Audit:
    """Says what was done, how often and why not; never to whom."""

    def __init__(self, key: SecretKey, settings: Deidentify, *, linked: bool) -> None:
        self._key = key
        self._settings = settings
        self._linked = linked

    def write(self, out: Path, tally: Tally, sought: Identifiers, journal: Path) -> Path:
        """Write both files and give the first one's path. Raises PrivacyError, with neither written, if a value is found."""
        record = self.record(tally)
        data = json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        page = render_page(record)
        self._check(tally, sought, {AUDIT: data, PAGE: page, JOURNAL: journal.read_text(encoding="utf-8")})
        write_whole(out / PAGE, page)
        write_whole(out / AUDIT, data)
        return out / AUDIT

    def record(self, tally: Tally) -> dict[str, Any]:
        """The audit as plain data."""
        table = load_table()
        return {
            "format": FORMAT,
            "tool": f"medsynth {medsynth.__version__}",
            "profile": PROFILE,
            "table": f"PS3.15 {table.edition}",
            "options": {name: f"{OPTIONS[name].name} (DCM {OPTIONS[name].code})" for name in self._settings.options},
            "key": self._key.fingerprint,
            "linking_table": self._linked,
            "text_in_pixels": {
                "ocr": self._settings.ocr,
                "own_rules": self._settings.regions is not None,
                "suspected": "masked" if "clean_pixel_data" in self._settings.options else "refused",
            },
            "faces": self._faces(),
            "files": {kind: tally.count(kind) for kind in KINDS},
            "patients": tally.patients,
            "left_out": tally.reasons,
            "series": [
                {
                    "patient": name.split("/")[0],
                    "series": self._shown(name.split("/")[1]),
                    **_series_record(tally, name),
                }
                for name in sorted(tally.series)
            ],
            "attributes": tally.by_attribute,
            "residual_search": {
                "files_searched": tally.count("written", "duplicate", "withheld"),
                "files_withheld": tally.count("withheld"),
                "sidecars_searched": [AUDIT, PAGE, JOURNAL],
                "values_found_in_sidecars": 0,
            },
            "not_checked": [NOT_CHECKED[name] for name in self._not_checked()],
        }

    def _shown(self, series: str) -> str:
        """How the audit calls a series: even where UIDs were retained, no original one stands in it."""
        return self._key.uid(series) if "retain_uids" in self._settings.options else series

    def _faces(self) -> str:
        if self._settings.face_command is not None:
            return "removed"
        return "accepted" if self._settings.accept_faces else "refused"

    def _not_checked(self) -> list[str]:
        text = "no_ocr" if self._settings.ocr == "off" else "quiet"
        faces = {"accepted": "faces_kept", "removed": "faces_removed", "refused": "faces"}[self._faces()]
        return [text, faces, "words", "ages", "packed", "outside"]

    def _check(self, tally: Tally, sought: Identifiers, sidecars: dict[str, str]) -> None:
        """Raise PrivacyError if a value stands in a sidecar that is no word of the audit itself.

        Reasons for leaving out are written by this program: of them, single words of free text prove nothing.
        """
        blank = render_page(self.record(Tally()))
        left = sought.without("\n".join([blank, *(name for name, _ in tally.attributes)]))
        reasons = "\n".join(reason for by_reason in tally.reasons.values() for reason in by_reason)
        ours = {value for value in left.sought_in(reasons.encode()) if _is_word(value, left.keyword(value))}
        found = {
            (name, left.keyword(value))
            for name, text in sidecars.items()
            for value in left.sought_in(text.encode())
            if value not in ours
        }
        if found:
            name, keyword = min(found)
            raise PrivacyError(
                f"expected nothing of the original headers in {name}, found a value of {keyword}; do not pass the folder "
                "on, and report this as a fault of medsynth"
            )


def _series_record(tally: Tally, name: str) -> dict[str, Any]:
    left_out: dict[str, dict[str, int]] = {}
    written = 0
    for (kind, reason), count in sorted(tally.series[name].items()):
        if kind == "written":
            written += count
        else:
            left_out.setdefault(kind, {})[reason] = count
    return {"written": written, "left_out": left_out}


def _is_word(value: object, keyword: str) -> bool:
    tag = tag_for_keyword(keyword)
    return isinstance(value, str) and value.isalpha() and (tag is None or dictionary_VR(tag) != "PN")
