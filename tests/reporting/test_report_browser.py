"""The report in a real browser: no complaint, no request, every picture drawn, on a wide and on a narrow screen."""

from __future__ import annotations

import json

import pytest
from report_examples import example_evidence, example_facts, example_pictures

from medsynth.reporting.report import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def look(browser, *, scheme, width=1280):
    """Light or dark, on a screen that is `width` pixels wide."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    scheme = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(example_evidence(), example_pictures(), example_facts(), path)
    return path


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_opens_without_a_complaint_or_a_request(browser, report, width, scheme):
    look(browser, scheme=scheme, width=width)
    browser.get_log("performance")
    browser.get(report.as_uri())
    assert browser.get_log("browser") == []
    requests = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []

    images = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(images) == 3
    assert all(complete and natural > 0 and alt > 0 for complete, natural, alt in images)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(drawn) >= 6
    assert all(height > 50 for height in drawn)
    # The style was applied although the policy allows only this one, and nothing makes the page itself scroll sideways.
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(16, 21, 27)"}[scheme]
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_background(browser, report, scheme):
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 for text."""
    look(browser, scheme=scheme)
    browser.get(report.as_uri())
    worst = browser.execute_script(
        """
        const parse = c => c.match(/[\\d.]+/g).map(Number);
        const light = c => { const [r, g, b] = parse(c).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return getComputedStyle(e).backgroundColor; } return 'rgb(255,255,255)'; };
        const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
        const found = [...document.body.querySelectorAll('*')]
            .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
            .map(e => [ratio(getComputedStyle(e)[e.closest('svg') ? 'fill' : 'color'], behind(e)), e.tagName, e.className]);
        return found.sort((a, b) => a[0] - b[0])[0];
        """
    )
    assert worst[0] >= 4.5, worst
