"""The plain answer: benefit, no benefit, or inconclusive, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsynth.evaluation.evidence import Arm, Difference, Verdict

MINIMUM_PATIENTS = 5
"""Test patients per class below which a bootstrap of patients says nothing: their resamples are too much alike."""


def verdict(
    arms: Sequence[Arm],
    differences: Sequence[Difference],
    primary: str,
    margin: float,
    labels: NDArray[np.int64],
    patients: Sequence[str],
) -> Verdict:
    """The verdict on the primary arm, from the corrected intervals of its AUC against both controls.

    benefit: both intervals lie above 0, both gains reach `margin`, and so both corrected p-values are small.
    no benefit: either interval stays below `margin`: a gain worth having is excluded.
    inconclusive: anything else; also where the real arm leaves less room above it than `margin`, and where a class
    has fewer than five test patients.
    """
    found = {d.against: d for d in differences if d.arm == primary and d.measure == "auc" and d.family == "primary"}
    (real,) = (arm for arm in arms if arm.kind == "real")
    against_real = found[real.name]
    (against_copies,) = (d for name, d in found.items() if name != real.name)
    quoted = (
        f"Adding synthetic scans ({primary}) moved the AUC on real test scans by {_signed(against_real)} against real "
        f"scans alone and by {_signed(against_copies)} against as many duplicated real scans."
    )
    fewest = min(len({p for p, own in zip(patients, labels == c, strict=True) if own}) for c in np.unique(labels))
    if fewest < MINIMUM_PATIENTS:
        why = (
            f"One class has only {fewest} test patients; at least {MINIMUM_PATIENTS} per class are needed before an "
            "interval over patients means anything."
        )
        return Verdict("inconclusive", (quoted, why))
    both = (against_real, against_copies)
    if all(d.corrected.low > 0 and d.difference.value >= margin for d in both):
        why = f"Both intervals lie above zero and both gains reach the margin of {margin:g}."
        return Verdict("benefit", (quoted, why))
    harmed = any(d.corrected.high < 0 for d in both)
    if real.auc.value > 1 - margin and not harmed:
        why = (
            f"Real scans alone already reach an AUC of {real.auc.value:.3f}, so these test scans leave no room to see "
            f"a gain of {margin:g}."
        )
        return Verdict("inconclusive", (quoted, why))
    excluded = [d for d in both if d.corrected.high < margin]
    if excluded:
        names = " and ".join(f"{d.against} (at most {d.corrected.high:+.3f})" for d in excluded)
        why = f"The interval excludes a gain of {margin:g} against {names}."
        return Verdict("no benefit", (quoted, why))
    why = (
        f"The intervals allow both no gain and a gain of {margin:g} or more; more test patients would narrow them, "
        "more seeds would if the runs differ among themselves."
    )
    return Verdict("inconclusive", (quoted, why))


def _signed(difference: Difference) -> str:
    value, corrected = difference.difference.value, difference.corrected
    return f"{value:+.3f} (corrected interval {corrected.low:+.3f} to {corrected.high:+.3f})"
