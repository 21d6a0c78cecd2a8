"""What the figures say, in sentences for people who do not live by them."""

from __future__ import annotations

from medsynth.evaluation.evidence import Condition, Estimate, Evidence, Fidelity, Metric, NeighbourAudit, Privacy

METRICS = {
    "frechet": ("Frechet distance", "How far apart the two groups of scans lie as a whole; lower is better."),
    "kid": ("Kernel distance (KID)", "The same question, asked without bias from small numbers; lower is better."),
    "precision": ("Precision", "Share of scans that look like some real training scan."),
    "recall": ("Recall", "Share of real training scans that some scan resembles."),
    "density": ("Density", "How densely scans lie where real training scans lie; about 1 for real scans."),
    "coverage": ("Coverage", "Share of real training scans with a scan in their neighbourhood."),
    "ms_ssim": ("MS-SSIM between scans", "How alike scans of one group are to each other; should be like real."),
}

HEADLINES = {
    "benefit": "Benefit",
    "no benefit": "No benefit",
    "inconclusive": "Inconclusive",
}
LEADS = {
    "benefit": "Adding the synthetic scans to the real ones improved the classifier on real test patients.",
    "no benefit": "Adding the synthetic scans to the real ones did not improve the classifier on real test patients.",
    "inconclusive": "It cannot be said from these scans whether adding synthetic ones helps the classifier.",
}


def number(value: float) -> str:
    """Three significant digits, no exponent where it can be helped."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 100_000:
        digits = max(0, 3 - len(str(int(abs(value)))) if abs(value) >= 1 else 3)
        return f"{value:.{digits}f}"
    return f"{value:.2e}"


def estimate(value: Estimate) -> str:
    """Value and interval."""
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def signed(value: Estimate) -> str:
    """A difference with its sign, and its interval."""
    return f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.3g} %"


def p_value(value: float) -> str:
    """A p-value, small ones as a bound."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def about_privacy(privacy: Privacy) -> str:
    """Of each figure the space that looks worst decides."""
    worst = max(privacy.spaces, key=lambda space: space.closer.value)
    told = max(privacy.spaces, key=lambda space: space.membership.value)
    expected = percent(worst.nominal)
    if worst.closer.low > worst.nominal:
        lead = "More synthetic scans lie close to a training scan than fresh real scans would"
    else:
        lead = "Synthetic scans lie no closer to the training scans than fresh real scans do, as far as can be told"
    return (
        f"{lead}: {percent(worst.closer.value)} below the threshold ({worst.space}), where {expected} are expected. "
        f"Training scans are told from others by the synthetic ones with an AUC of {estimate(told.membership)} "
        f"({told.space}), {_beside_guessing(told.membership)}.{_about_masks(privacy.masks)}"
    )


def _beside_guessing(membership: Estimate) -> str:
    return "better than guessing (0.5)" if membership.low > 0.5 else "which cannot be told from guessing (0.5)"


def _about_masks(masks: NeighbourAudit | None) -> str:
    if masks is None:
        return ""
    if masks.closer.low > masks.nominal:
        lead = "The masks that the scans were asked for with lie closer to training patients' than fresh masks would"
    else:
        lead = "The masks that the scans were asked for with lie no closer to training patients' than fresh masks do"
    return (
        f" {lead}: {percent(masks.closer.value)} below the threshold, where {percent(masks.nominal)} are expected. Training "
        f"patients' masks are told from others by them with an AUC of {estimate(masks.membership)}, "
        f"{_beside_guessing(masks.membership)}."
    )


def about_condition(condition: Condition) -> str:
    """Whether the scans are what was asked for."""
    parts = []
    if condition.on_synthetic:
        parts.append(
            f"A classifier trained on real scans recognises what was asked for with an AUC of "
            f"{estimate(condition.on_synthetic.auc)}"
            + (f"; on real scans it reaches {estimate(condition.on_real.auc)}." if condition.on_real else ".")
        )
    if condition.masks:
        parts.append(
            f"A segmenter trained on real scans finds the masks that were asked for with a Dice of "
            f"{estimate(condition.masks.on_synthetic)}; on real scans it reaches {estimate(condition.masks.on_real)}."
        )
    return " ".join(parts) or "Not measured."


def about_fidelity(fidelity: Fidelity) -> str:
    """The Frechet distance, space by space, as a multiple of what real scans reach."""
    parts = []
    for space in fidelity.spaces:
        metric = next((m for m in space.metrics if m.name == "frechet"), None)
        if metric and metric.real.value > 0:
            parts.append(f"{number(metric.synthetic.value / metric.real.value)} times in {space.space} features")
    if not parts:
        return fidelity.reference
    return f"The distance to the training scans, as a multiple of what held-out real scans have: {'; '.join(parts)}."


def beside_real(metric: Metric) -> str:
    """One word on how a figure compares with its real-versus-real value."""
    s, r = metric.synthetic, metric.real
    if s.low <= r.high and r.low <= s.high:
        return "like real"
    worse = s.value > r.value if metric.better == "lower" else s.value < r.value
    if metric.better == "like real":
        return "more alike than real" if s.value > r.value else "more varied than real"
    return "worse than real" if worse else "better than real"


def why_absent(evidence: Evidence, section: str) -> str:
    """The reason the evidence gives for not having measured a section."""
    return evidence.absent.get(section, "It was not asked for.")
