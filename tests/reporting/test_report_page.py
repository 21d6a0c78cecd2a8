"""The page says what the evidence says, asks nothing of a network and is the same for the same input."""

from __future__ import annotations

import dataclasses
import itertools
import re
from html.parser import HTMLParser

import pytest
from report_examples import around, example_evidence, example_facts, example_pictures

from medsynth.evaluation.evidence import Evidence, Metric, Verdict
from medsynth.reporting import charts, words
from medsynth.reporting.facts import Facts
from medsynth.reporting.report import render, write_report


class Page(HTMLParser):
    """Tags with their attributes, and the text outside of style."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def pictures():
    return example_pictures()


@pytest.fixture(scope="module")
def source(pictures):
    return render(example_evidence(), pictures, Facts(**example_facts()))


def test_nothing_is_fetched_and_nothing_runs(source):
    page = Page(source)
    assert not page.open
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "form"}
        for name in ("src", "href", "srcset", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    outside = re.sub(r"data:image/png;base64,[^\"]*", "", source)
    assert not re.search(r"https?://|url\(|@import", outside)


def test_it_fits_into_a_mail(source):
    assert len(source.encode()) < 10_000_000


def test_headings_anchors_and_pictures_are_in_order(source):
    page = Page(source)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        target = attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    images = [a for t, a in page.tags if t == "img"]
    assert len(images) == 3
    assert all(len(a["alt"] or "") > 40 for a in images)
    assert all(a.get("aria-label") for t, a in page.tags if t == "svg")
    assert all(a.get("scope") for t, a in page.tags if t == "th")


@pytest.mark.parametrize("outcome", ["benefit", "no benefit", "inconclusive"])
def test_the_verdict_comes_first_and_in_plain_words(pictures, outcome):
    text = Page(render(example_evidence(outcome), pictures, Facts(**example_facts()))).text
    assert words.HEADLINES[outcome] in text
    assert words.LEADS[outcome] in text
    assert text.index(words.LEADS[outcome]) < text.index("Splits are by patient")
    assert "The gain over real scans alone is +0.030." in text
    for other in {"benefit", "no benefit", "inconclusive"} - {outcome}:
        assert words.LEADS[other] not in text


def test_text_from_outside_cannot_become_markup(source):
    assert "zero &amp; &lt;more&gt;" in source
    evidence = example_evidence()
    assert evidence.benefit is not None
    arms = (dataclasses.replace(evidence.benefit.arms[0], name="<b>&"), *evidence.benefit.arms[1:])
    odd = dataclasses.replace(evidence, benefit=dataclasses.replace(evidence.benefit, arms=arms))
    page = render(odd, {}, Facts(**{**example_facts(), "title": "<script>alert(1)</script>"}))
    assert "<b>" not in page
    assert "<script" not in page


def test_what_was_not_measured_is_said_with_its_reason():
    absent = {name: f"Reason {i}." for i, name in enumerate(("fidelity", "privacy", "condition", "benefit"))}
    evidence = Evidence(counts={}, confidence=0.95, bootstrap=100, seed=1, absent=absent)
    text = Page(render(evidence, {}, Facts(title="small", cohort=[]))).text
    assert "Benefit not measured" in text
    for reason in absent.values():
        assert reason in text
    assert text.count("Not drawn in this run.") == 2
    assert "asks for no gate" in text


def test_every_figure_of_the_evidence_is_on_the_page(source):
    text = Page(source).text
    evidence = example_evidence()
    assert evidence.benefit
    assert evidence.privacy
    assert evidence.fidelity
    for arm in evidence.benefit.arms:
        assert arm.name in text
        assert words.estimate(arm.auc) in text
    for difference in evidence.benefit.differences:
        assert words.signed(difference.difference) in text
        assert words.p_value(difference.p_holm) in text
    for space in evidence.fidelity.spaces:
        for metric in space.metrics:
            assert words.METRICS[metric.name][0] in text
    for pair in evidence.privacy.closest:
        assert pair.synthetic_case in text
        assert pair.training_case in text
    assert "no gate looks at" in text
    assert words.percent(0.23) in text
    for gate in example_facts()["gates"]:
        assert gate["sentence"] in text
    assert "ab" * 32 in text
    assert "anonymous" not in text.lower()


def test_training_tells_its_warnings_levels_and_waiting(source):
    assert "25% of the samples lie nearer to one training scan &lt;than&gt; others" in source
    for title in (
        "validation loss by noise angle in degrees",
        "bits on the validation split",
        "likeness among samples (ms-ssim)",
        "distance to the nearest training latent",
        "share of the time that went by waiting for data",
    ):
        assert f"denoiser: {title}" in source.lower()
    assert "18-36: from 0.4 to 0.4" in source
    assert "step 1500 of the denoiser" in source
    assert "too few to tell during training: whether training scans are learned by heart." in source
    facts = Facts("t", [])
    assert (facts.warnings, facts.unanswered, facts.kept) == ([], None, [])
    quiet = {
        "autoencoder": [{"step": 5, "warnings": ["up"]}],
        "denoiser": [{"step": 1, "warnings": ["old"]}, {"step": 2}],
    }
    assert Facts("t", [], history=quiet).warnings == ["up"]


def test_the_same_input_gives_the_same_file_and_a_failure_leaves_none(tmp_path, pictures):
    for name in ("one", "two"):
        write_report(example_evidence(), pictures, example_facts(), tmp_path / f"{name}.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report(example_evidence(), pictures, example_facts(), tmp_path / "folder.html")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.html", "one.html", "two.html"]


def test_numbers_are_short_and_keep_their_meaning():
    assert [words.number(v) for v in (0, 0.5, 0.12345, 3.14159, 31.4159, 314.159, 0.00001)] == [
        "0", "0.500", "0.123", "3.14", "31.4", "314", "1.00e-05",
    ]  # fmt: skip
    assert words.p_value(0.0002) == "< 0.001"
    assert words.percent(0.0667) == "6.67 %"


@pytest.mark.parametrize(
    ("better", "synthetic", "reading"),
    [
        ("lower", 0.5, "like real"),
        ("lower", 2.0, "worse than real"),
        ("higher", 2.0, "better than real"),
        ("higher", 0.1, "worse than real"),
        ("like real", 2.0, "more alike than real"),
        ("like real", 0.1, "more varied than real"),
    ],
)
def test_a_figure_is_read_beside_its_real_value(better, synthetic, reading):
    assert words.beside_real(Metric("x", better, around(synthetic, 0.1), around(0.5, 0.1))) == reading


def test_privacy_in_words_takes_the_worst_space():
    evidence = example_evidence()
    assert evidence.privacy
    audit = evidence.privacy.spaces[0]
    worse = dataclasses.replace(audit, space="voxels", closer=around(0.4, 0.1))
    known = dataclasses.replace(audit, space="textures", membership=around(0.7, 0.1))
    told = words.about_privacy(dataclasses.replace(evidence.privacy, spaces=(audit, worse)))
    assert "cannot be told from guessing" in told
    assert "(textures)" not in told
    told = words.about_privacy(dataclasses.replace(evidence.privacy, spaces=(audit, known, worse)))
    assert f"{words.estimate(around(0.7, 0.1))} (textures), better than guessing" in told
    assert told.startswith("More synthetic scans lie close")
    assert "40 %" in told
    assert "voxels" in told


def test_masks_are_judged_in_words_of_their_own():
    privacy = example_evidence().privacy
    assert privacy and privacy.masks
    told = words.about_privacy(privacy)
    assert "masks that the scans were asked for with lie closer" in told
    assert "23 %" in told
    fresh = dataclasses.replace(privacy.masks, closer=around(0.04, 0.03))
    assert "masks that the scans were asked for with lie no closer" in words.about_privacy(
        dataclasses.replace(privacy, masks=fresh)
    )
    assert "masks" not in words.about_privacy(dataclasses.replace(privacy, masks=None))


def test_a_forest_plot_puts_estimates_where_their_values_are():
    rows = [charts.ForestRow(str(v), around(v, 0.05)) for v in (0.2, 0.4, 0.8)]
    svg = str(charts.forest("t", rows, 0.4, "axis"))
    marks = [float(x) for x in re.findall(r'class="mark plain" cx="([\d.]+)"', svg)]
    reference = float(re.search(r'class="reference" x1="([\d.]+)"', svg).group(1))
    assert marks[1] == reference
    assert (marks[2] - marks[1]) / (marks[1] - marks[0]) == pytest.approx(2, abs=0.01)


def test_the_names_of_many_curves_go_on_in_the_next_line():
    names = ["frequency", "gradient", "kl", "l1", "structural", "adversarial"]
    told = str(charts.curves("t", {name: [(1, 0.5), (2, 0.7)] for name in names}, "step"))
    places = re.findall(r'class="label" x="([\d.]+)" y="(\d+)">([^<]*)', told)
    assert [name for _, _, name in places] == names
    assert all(float(x) + 7.2 * len(name) < charts.CURVE_WIDTH for x, _, name in places)
    assert len({(x, y) for x, y, _ in places}) == len(names) and len({y for _, y, _ in places}) == 2
    highest = min(float(point.split(",")[1]) for point in re.search(r'points="([^"]*)"', told).group(1).split())
    assert highest > max(float(y) for _, y, _ in places)


def test_curves_turn_logarithmic_over_a_decade_and_leave_out_what_is_not_finite():
    line = [(1, 100.0), (2, 10.0), (3, 1.0), (4, float("nan"))]
    points = re.search(r'points="([^"]*)"', str(charts.curves("t", {"loss": line}, "step"))).group(1).split()
    heights = [float(p.split(",")[1]) for p in points]
    assert len(points) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert charts.curves("t", {}, "step") == ""


def test_a_flat_curve_and_equal_distances_are_drawn():
    assert "polyline" in charts.curves("t", {"loss": [(1, 0.5), (2, 0.5)]}, "step")
    assert "circle" in charts.distances("t", {"synthetic": [1.0, 1.0]}, 1.0, "d")


def test_no_suspicious_distance_is_thinned_away():
    svg = str(charts.distances("t", {"synthetic": [0.1] * 50 + [2.0] * 5000}, 1.0, "d"))
    assert "50 of 5050 below" in svg
    assert svg.count("<circle") <= 50 + 300


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.03, 0.07), (0.71, 0.73), (0, 12345)])
def test_ticks_are_round_and_inside(low, high):
    found = charts.ticks(low, high, 5)
    assert 2 <= len(found) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_the_verdict_of_the_evidence_is_not_reinterpreted(pictures):
    evidence = example_evidence("no benefit")
    assert evidence.benefit
    assert evidence.benefit.verdict == Verdict("no benefit", evidence.benefit.verdict.reasons)
    assert 'class="verdict no-benefit"' in render(evidence, pictures, Facts(**example_facts()))
