"""The audit: what it tells, that it holds no original value, and that the page opens anywhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from planted_headers import file_bytes, plain, planted

from medsynth.config.deidentify import Deidentify
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.audit import Audit
from medsynth.imaging.deidentify.audit_page import MOST_SERIES, render_page
from medsynth.imaging.deidentify.folder import deidentify_folder
from medsynth.imaging.deidentify.journal import JOURNAL
from medsynth.imaging.deidentify.options import OPTIONS
from medsynth.imaging.deidentify.table import load_table
from medsynth.imaging.deidentify.tally import Outcome, Tally

KEY = SecretKey(bytes(32))
SETTINGS = Deidentify(options=("retain_modified_dates", "clean_descriptors"), ocr="off")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder that was de-identified, and the secrets of its sources."""
    root = tmp_path_factory.mktemp("audit")
    secrets: dict[str, bytes] = {}
    (root / "in").mkdir()
    for number, modality in enumerate(("CT", "MR", "CT")):
        dataset, planted_here = planted(modality)
        dataset.PatientID = f"AUDITED-{number}"
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.4.{number}"
        dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.99.3.{number}"
        (root / "in" / f"{number}.dcm").write_bytes(file_bytes(dataset))
        secrets.update(planted_here)
    head = plain("CT")
    head.BodyPartExamined, head.PixelSpacing = "HEAD", [15, 15]
    (root / "in" / "head.dcm").write_bytes(file_bytes(head))
    (root / "in" / "cut.dcm").write_bytes(file_bytes(plain("CT"))[:-20])
    (root / "in" / "notes.txt").write_text("of Zvyagintseva")
    key = SecretKey.load_or_create(root / "secrets" / "key")
    deidentify_folder(root / "in", root / "out", key, SETTINGS)
    return root / "out", secrets


def test_it_says_by_which_rules_and_what_became_of_each_series(done: tuple[Path, dict[str, bytes]]) -> None:
    audit = json.loads((done[0] / "deidentification.json").read_text())
    assert list(audit["options"]) == ["clean_descriptors", "retain_modified_dates"]
    assert audit["options"]["clean_descriptors"] == "Clean Descriptors (DCM 113105)"
    assert audit["table"] == f"PS3.15 {load_table().edition}"
    assert re.fullmatch("[0-9a-f]{8}", audit["key"])
    assert audit["files"] == {"written": 3, "duplicate": 0, "foreign": 1, "damaged": 1, "refused": 1, "withheld": 0}
    assert audit["residual_search"]["files_searched"] == 3
    assert sum(row["written"] for row in audit["series"]) == 3
    by_series = [row for row in audit["series"] if row["written"]]
    assert len({row["patient"] for row in by_series}) == audit["patients"] == 3
    places = {f"{path.parts[-3]}/{path.parts[-2]}" for path in done[0].rglob("*.dcm")}
    assert {f"{row['patient']}/{row['series']}" for row in by_series} == places
    (head,) = [row for row in audit["series"] if row["left_out"].get("refused")]
    assert "head" in next(iter(head["left_out"]["refused"]))
    assert audit["attributes"]["PixelData"] == {"K": 3}
    assert any("text in pixels" in text for text in audit["not_checked"])


def test_no_original_value_stands_in_it(done: tuple[Path, dict[str, bytes]]) -> None:
    out, secrets = done
    for name in ("deidentification.json", "deidentification.html", JOURNAL):
        data = (out / name).read_bytes()
        assert [place for place, secret in secrets.items() if secret in data] == [], name
        assert not re.search(rb"AUDITED|1\.2\.826|\.dcm\b(?<!pydicom)", data) or name == JOURNAL, name
    assert not re.search(rb"AUDITED|1\.2\.826|notes", (out / JOURNAL).read_bytes())


def test_page_and_data_say_the_same(done: tuple[Path, dict[str, bytes]]) -> None:
    audit = json.loads((done[0] / "deidentification.json").read_text())
    page = _text((done[0] / "deidentification.html").read_text())
    assert "3 of 6 files were written; not all could be." in page
    for row in audit["series"]:
        assert row["patient"] in page
        assert row["series"] in page
    for reasons in audit["left_out"].values():
        for reason in reasons:
            assert reason in page
    for text in (*audit["options"].values(), *audit["not_checked"], audit["key"], audit["table"], audit["tool"]):
        assert text in page
    assert "Patient's Birth Date 0010,0030" in page


def test_the_page_loads_and_runs_nothing(done: tuple[Path, dict[str, bytes]]) -> None:
    page = (done[0] / "deidentification.html").read_text()
    assert not re.search(r"<script|https?://|@import|url\(|<img|<iframe|<object", page)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]


def test_marks_in_a_reason_stay_text() -> None:
    tally = Tally()
    tally.add(Outcome("damaged", "P1/2.25.1", "expected <b>a scan</b> & found {{ none }}"))
    page = render_page(Audit(KEY, Deidentify(), linked=False).record(tally))
    assert "&lt;b&gt;a scan&lt;/b&gt; &amp; found {{ none }}" in page


def test_a_page_of_many_series_stays_readable() -> None:
    tally = Tally()
    for number in range(MOST_SERIES + 5):
        tally.add(Outcome("written", f"P{number:012X}/2.25.{number}/2.25.9{number}.dcm"))
    tally.add(Outcome("refused", "PLAST/2.25.77", "expected something else"))
    record = Audit(KEY, Deidentify(), linked=False).record(tally)
    assert len(record["series"]) == MOST_SERIES + 6
    page = _text(render_page(record))
    assert "PLAST" in page
    assert "the other 6 stand in the JSON file" in page


def test_retained_uids_stay_out_of_it() -> None:
    tally = Tally()
    tally.add(Outcome("written", "P1/1.2.840.77.4711/1.2.840.77.4712.dcm"))
    record = Audit(KEY, Deidentify(options=("retain_uids",)), linked=False).record(tally)
    assert record["series"][0]["series"] == KEY.uid("1.2.840.77.4711")
    assert "4711" not in render_page(record)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Deidentify(), "Scans in which a face could be recognised were refused."),
        (Deidentify(accept_faces=True), "Faces were let through by explicit setting."),
        (
            Deidentify(options=("clean_recognizable_visual_features",), face_command=("x", "{input}", "{output}")),
            "Faces were removed by a command of the site",
        ),
        (Deidentify(options=("clean_pixel_data",)), "Images suspected of showing text were masked"),
        (Deidentify(options=tuple(OPTIONS)[4:6]), "Clean Descriptors (DCM 113105)"),
    ],
)
def test_settings_are_told_in_words(settings: Deidentify, words: str) -> None:
    tally = Tally()
    tally.add(Outcome("written", "P1/2.25.1/2.25.2.dcm"))
    page = _text(render_page(Audit(KEY, settings, linked=False).record(tally)))
    assert words in page
    assert "Every image was written, and no value" in page


@pytest.mark.browser
def test_it_opens_in_a_browser_without_a_complaint(done: tuple[Path, dict[str, bytes]], browser: Any) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get((done[0] / "deidentification.html").as_uri())
    assert browser.title == "De-identification report"
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    requested = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith(("file:", "data:")) for url in requested)
    assert len([url for url in requested if url.startswith("file:")]) == 1
    width = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert width[0] <= width[1], "nothing is cut off at the side"


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words += data.split()


def _text(page: str) -> str:
    parser = _Words()
    parser.feed(re.sub(r"(?s)<style>.*?</style>", "", page))
    return " ".join(parser.words)
