"""The report that a pipeline really wrote, in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.browser
@pytest.mark.slow
def test_the_pipelines_report_opens_without_a_complaint_or_a_request(finished: Path, browser: Any) -> None:
    report = (finished / "evaluation" / "report.html").as_uri()
    browser.get_log("performance")
    browser.get(report)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith("data:")] == [report]
    images = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(images) >= 2
    assert all(complete and width > 0 and words > 0 for complete, width, words in images)
    evidence = json.loads((finished / "evaluation" / "evidence.json").read_text())
    assert evidence["benefit"]["verdict"]["outcome"] in browser.find_element("tag name", "body").text.lower()
