"""One HTML file that shows what was made, what was measured and what it is worth. It needs no network and no script."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medsynth import __version__
from medsynth.evaluation.evidence import Benefit, Evidence, Privacy
from medsynth.reporting import charts, words
from medsynth.reporting.facts import Facts
from medsynth.reporting.pictures import Picture

_HERE = Path(__file__).parent


EXAMPLES, RECONSTRUCTIONS, CLOSEST = "examples", "reconstructions", "closest"
"""Names of the pictures that have a place in the report."""


def write_report(
    evidence: Evidence, pictures: Mapping[str, Picture], facts: Facts | Mapping[str, Any], path: Path
) -> None:
    """Write the report to `path`, whole or not at all. The same input gives the same bytes.

    pictures: by the names above; one that is missing is said to be missing.  facts: `Facts`, or its fields as a dict.
    """
    page = render(evidence, pictures, facts if isinstance(facts, Facts) else Facts(**facts))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def render(evidence: Evidence, pictures: Mapping[str, Picture], facts: Facts) -> str:
    """The page as text."""
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "estimate": words.estimate,
        "signed": words.signed,
        "percent": words.percent,
        "number": words.number,
        "p_value": words.p_value,
        "base64": lambda png: base64.b64encode(png).decode("ascii"),
    }
    verdict = evidence.benefit.verdict if evidence.benefit else None
    return environment.get_template("page.html.j2").render(
        evidence=evidence,
        pictures={name: pictures.get(name) for name in (EXAMPLES, RECONSTRUCTIONS, CLOSEST)},
        facts=facts,
        version=__version__,
        style=Markup(style),  # noqa: S704 - the package's own file
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        outcome=verdict.outcome if verdict else "not measured",
        headline=words.HEADLINES[verdict.outcome] if verdict else "Benefit not measured",
        lead=words.LEADS[verdict.outcome] if verdict else words.why_absent(evidence, "benefit"),
        reasons=verdict.reasons if verdict else (),
        glance=_glance(evidence),
        words=words,
        loss_charts=[(title, charts.curves(title, lines, "optimiser step")) for title, lines in facts.losses()],
        arm_chart=_arm_chart(evidence.benefit) if evidence.benefit else "",
        difference_chart=_difference_chart(evidence.benefit) if evidence.benefit else "",
        privacy_charts=_privacy_charts(evidence.privacy) if evidence.privacy else [],
        level=f"{100 * evidence.confidence:g} %",
    )


def _glance(evidence: Evidence) -> list[tuple[str, str, str]]:
    """Anchor, heading and sentence of the questions answered further down."""
    fidelity, privacy, condition = evidence.fidelity, evidence.privacy, evidence.condition
    return [
        (
            "fidelity",
            "Do they look like real scans?",
            words.about_fidelity(fidelity) if fidelity else words.why_absent(evidence, "fidelity"),
        ),
        (
            "condition",
            "Are they what was asked for?",
            words.about_condition(condition) if condition else words.why_absent(evidence, "condition"),
        ),
        (
            "privacy",
            "Are they copies of patients?",
            words.about_privacy(privacy) if privacy else words.why_absent(evidence, "privacy"),
        ),
    ]


_ARM_KINDS: Mapping[str, str] = {"synthetic_added": "synthetic", "synthetic_only": "synthetic"}


def _arm_chart(benefit: Benefit) -> Markup:
    rows = [
        charts.ForestRow(arm.name, arm.auc, _ARM_KINDS.get(arm.kind, "real"), words.estimate(arm.auc))
        for arm in benefit.arms
    ]
    real = next(arm.auc.value for arm in benefit.arms if arm.kind == "real")
    return charts.forest(
        "AUC on real test scans per arm", rows, real, "AUC on real test scans (line: real scans alone)"
    )


def _difference_chart(benefit: Benefit) -> Markup:
    chosen = [d for d in benefit.differences if d.measure == "auc" and d.family == "primary"]
    rows = [
        charts.ForestRow(f"against {d.against}", d.corrected, "synthetic", words.signed(d.corrected)) for d in chosen
    ]
    if not rows:
        return Markup("")
    axis = f"gain in AUC of {benefit.primary} (grey: smaller than the margin of {benefit.margin:g})"
    return charts.forest(f"Gain of {benefit.primary}, corrected intervals", rows, 0.0, axis, benefit.margin)


def _privacy_charts(privacy: Privacy) -> list[tuple[Any, Markup]]:
    out = []
    for space in privacy.spaces:
        rows = {"held-out real": space.held_out_distances, "synthetic": space.distances}
        title = f"Distance to the nearest training scan, {space.space}"
        out.append((space, charts.distances(title, rows, space.threshold, "distance to the nearest training scan")))
    return out
