"""What a model must reach before it may be called champion."""

from __future__ import annotations

from dataclasses import dataclass

from medsynth.config.evidence import Gates
from medsynth.evaluation.evidence import Evidence


@dataclass(frozen=True)
class GateResult:
    """One gate. `found` is None where the evidence lacks the figure: such a gate is not passed."""

    name: str
    required: float | str
    found: float | str | None
    passed: bool
    sentence: str


def check_gates(evidence: Evidence, gates: Gates) -> list[GateResult]:
    """One result per gate that is asked for, in the order of the settings."""
    results = []
    if gates.max_closer_than_real is not None:
        results.append(_closer(evidence, gates.max_closer_than_real))
    if gates.min_condition_auc is not None:
        results.append(_condition(evidence, gates.min_condition_auc))
    if gates.max_frechet_ratio is not None:
        results.append(_frechet(evidence, gates.max_frechet_ratio))
    if gates.require_benefit:
        results.append(_benefit(evidence))
    return results


def _missing(name: str, required: float | str, evidence: Evidence, section: str, why: str | None = None) -> GateResult:
    reason = why or evidence.absent.get(section, "it was not measured.")
    sentence = f"Not shown: {reason} Measure it, or leave this gate out (null) in the configuration."
    return GateResult(name, required, None, False, sentence)


def _closer(evidence: Evidence, limit: float) -> GateResult:
    name = "max_closer_than_real"
    if evidence.privacy is None:
        return _missing(name, limit, evidence, "privacy")
    worst = max(evidence.privacy.spaces, key=lambda space: space.closer.value)
    share = worst.closer
    sentence = (
        f"{share.value:.1%} of synthetic scans (interval {share.low:.1%} to {share.high:.1%}) lie nearer to a training "
        f"scan than the threshold from held-out real scans allows, in the worst space ({worst.space}); "
        f"{worst.nominal:.1%} is expected of fresh real scans, at most {limit:.1%} is allowed."
    )
    return GateResult(name, limit, share.value, share.value <= limit, sentence)


def _condition(evidence: Evidence, limit: float) -> GateResult:
    name = "min_condition_auc"
    if evidence.condition is None or evidence.condition.on_synthetic is None:
        absent = None if evidence.condition is None else evidence.condition.absent.get("classifier")
        return _missing(name, limit, evidence, "condition", absent)
    auc = evidence.condition.on_synthetic.auc
    sentence = (
        f"A classifier trained on real scans reaches an AUC of {auc.value:.3f} (interval {auc.low:.3f} to "
        f"{auc.high:.3f}) on synthetic scans against the labels asked for; at least {limit:.3f} is required."
    )
    return GateResult(name, limit, auc.value, auc.value >= limit, sentence)


def _frechet(evidence: Evidence, limit: float) -> GateResult:
    name = "max_frechet_ratio"
    if evidence.fidelity is None:
        return _missing(name, limit, evidence, "fidelity")
    ratios = {
        space.space: metric.synthetic.value / max(metric.real.value, 1e-12)
        for space in evidence.fidelity.spaces
        for metric in space.metrics
        if metric.name == "frechet"
    }
    worst = max(ratios, key=lambda space: ratios[space])
    sentence = (
        f"The Frechet distance is {ratios[worst]:.2f} times its real-versus-real value in the worst space ({worst}); "
        f"at most {limit:g} times is allowed."
    )
    return GateResult(name, limit, ratios[worst], ratios[worst] <= limit, sentence)


def _benefit(evidence: Evidence) -> GateResult:
    name = "require_benefit"
    if evidence.benefit is None:
        return _missing(name, "benefit", evidence, "benefit")
    verdict = evidence.benefit.verdict
    sentence = f"The verdict is {verdict.outcome}. {' '.join(verdict.reasons)}"
    return GateResult(name, "benefit", verdict.outcome, verdict.outcome == "benefit", sentence)
