"""What adding synthetic scans to the training of a classifier does, beside the controls that could do the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsynth.config.evidence import Evaluate
from medsynth.evaluation import statistics
from medsynth.evaluation.baseline import baselines
from medsynth.evaluation.evidence import Arm, Benefit, Difference
from medsynth.evaluation.statistics import MEASURES, Measure, Scored, score
from medsynth.evaluation.verdict import verdict
from medsynth.evaluation.volumes import LabelledVolumes, join
from medsynth.progress import Advance
from medsynth.seeding import derive, numpy_generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ArmKind = Literal["real", "classical", "duplicated", "synthetic_added", "synthetic_only"]

Predict = Callable[[Tensor], Floats]
"""Scans [N, 1, X, Y, Z] to class probabilities [N, classes]."""
Fit = Callable[[LabelledVolumes, int, bool], Predict]
"""Training scans, seed, classical augmentation or not -> a classifier after the fixed number of optimiser steps."""

REAL, DUPLICATED = "real", "real + duplicated real"


@dataclass(frozen=True)
class Plan:
    """One arm: training scans of `real` and of `synthetic` by index; `augment` for classical augmentation."""

    name: str
    kind: ArmKind
    ratio: float
    real: Ints
    synthetic: Ints
    augment: bool = False

    @property
    def added(self) -> int:
        """Scans beyond the first use of each real one."""
        return len(self.synthetic) + len(self.real) - len(np.unique(self.real))


def plan_arms(
    real: int, synthetic_labels: Ints, ratios: Sequence[float], seed: int
) -> tuple[tuple[Plan, ...], str, tuple[str, ...]]:
    """The arms for `real` training scans, the name of the primary one, and notes for the reader.

    The primary arm is the ratio nearest to 1, fixed before any result is seen. Where there are fewer synthetic scans
    than a ratio asks for, those there are are used, and ratios that thereby fall together are one arm. Smaller ratios
    use a part of what larger ones use. The duplicates are as many as the primary arm adds. Synthetic scans alone are an
    arm where they hold at least two classes.
    """
    synthetic = len(synthetic_labels)
    everything, nothing = np.arange(real), np.arange(0)
    shuffled = numpy_generator(seed, "benefit", "which synthetic").permutation(synthetic)
    notes: list[str] = []
    added: list[Plan] = []
    counts: set[int] = set()
    for ratio in sorted(set(ratios)):
        wanted = max(1, round(ratio * real))
        count = min(wanted, synthetic)
        if count < wanted:
            notes.append(f"Ratio {ratio:g} asks for {wanted} synthetic scans; there are {synthetic}.")
        if count not in counts:
            counts.add(count)
            name = f"real + {count} synthetic (x {count / real:.2g})"
            added.append(Plan(name, "synthetic_added", count / real, everything, shuffled[:count]))
    primary = min(added, key=lambda plan: (abs(plan.ratio - 1), plan.ratio))
    count = len(primary.synthetic)
    whole, rest = divmod(count, real)
    extra = numpy_generator(seed, "benefit", "which duplicates").permutation(real)[:rest]
    duplicated = np.concatenate([np.tile(everything, whole + 1), extra])
    plans = [
        Plan(REAL, "real", 0.0, everything, nothing),
        Plan("real + classical augmentation", "classical", 0.0, everything, nothing, augment=True),
        Plan(DUPLICATED, "duplicated", count / real, duplicated, nothing),
        *added,
    ]
    if len(np.unique(synthetic_labels[primary.synthetic])) > 1:
        plans.append(Plan("synthetic only", "synthetic_only", count / real, nothing, primary.synthetic))
    else:
        notes.append("The synthetic scans are all of one class, so no classifier can be trained on them alone.")
    return tuple(plans), primary.name, tuple(notes)


@dataclass(frozen=True)
class Trained:
    """Probabilities [S, N, C] of one arm's classifiers, one per seed, on real test scans and on synthetic scans.

    Only the real arm is asked about synthetic scans; of the others, that array is empty.
    """

    on_test: Floats
    on_synthetic: Floats


def run_arms(
    plans: Sequence[Plan],
    train: LabelledVolumes,
    test: LabelledVolumes,
    synthetic: LabelledVolumes,
    fit: Fit,
    *,
    seeds: int,
    seed: int,
    advance: Advance,
) -> dict[str, Trained]:
    """Every arm under every seed. The same seed numbers serve all arms, so that arms are paired in their first weights.

    Every arm's classifier also only ever sees real test scans; the real arm's classifiers judge the synthetic scans too.
    """
    out = {}
    for plan in plans:
        scans = _scans_of(plan, train, synthetic)
        on_test, on_synthetic = [], []
        for number in range(seeds):
            predict = fit(scans, derive(seed, "benefit", "classifier", number), plan.augment)
            on_test.append(predict(test.voxels))
            judged = synthetic.voxels if plan.kind == "real" else synthetic.voxels[:0]
            on_synthetic.append(predict(judged) if len(judged) else np.zeros((0, len(test.classes))))
            advance(1)
        out[plan.name] = Trained(np.stack(on_test), np.stack(on_synthetic))
    return out


def _scans_of(plan: Plan, train: LabelledVolumes, synthetic: LabelledVolumes) -> LabelledVolumes:
    if not len(plan.real):
        return synthetic.take(plan.synthetic)
    real = train.take(plan.real)
    return join(real, synthetic.take(plan.synthetic)) if len(plan.synthetic) else real


def measure_benefit(
    plans: Sequence[Plan],
    primary: str,
    notes: tuple[str, ...],
    trained: dict[str, Trained],
    train: LabelledVolumes,
    test: LabelledVolumes,
    synthetic: LabelledVolumes,
    settings: Evaluate,
    *,
    seed: int,
) -> Benefit:
    """Scores with intervals, paired differences corrected for their number, baselines, and the verdict."""
    labels = test.label_array()
    generator = numpy_generator(seed, "benefit", "bootstrap")
    weights = statistics.class_patient_weights(test.patients, labels, settings.bootstrap, generator)
    seeds = settings.benefit.seeds
    seed_weights = statistics.scan_weights(seeds, seeds, settings.bootstrap, generator) / seeds
    scored = {
        plan.name: {m: score(trained[plan.name].on_test, labels, m, weights, seed_weights) for m in MEASURES}
        for plan in plans
    }
    arms = tuple(_arm(plan, scored[plan.name], settings.confidence) for plan in plans)
    differences = tuple(d for m in MEASURES for d in _differences(plans, primary, scored, m, settings.confidence))
    return Benefit(
        classes=test.classes,
        steps=settings.benefit.steps,
        seeds=seeds,
        margin=settings.benefit.margin,
        test_scans=len(test),
        test_patients=len(set(test.patients)),
        primary=primary,
        arms=arms,
        differences=differences,
        baselines=baselines(train, test, synthetic, weights, settings.confidence),
        verdict=verdict(arms, differences, primary, settings.benefit.margin, labels, test.patients),
        notes=notes,
    )


def _arm(plan: Plan, scored: dict[Measure, Scored], confidence: float) -> Arm:
    estimates = {m: s.estimate(confidence) for m, s in scored.items()}
    return Arm(
        name=plan.name,
        kind=plan.kind,
        ratio=plan.ratio,
        real=len(plan.real) if plan.kind != "duplicated" else len(plan.real) - plan.added,
        added=plan.added,
        auc=estimates["auc"],
        balanced_accuracy=estimates["balanced_accuracy"],
        auc_per_seed=tuple(scored["auc"].per_seed.tolist()),
    )


def _differences(
    plans: Sequence[Plan],
    primary: str,
    scored: dict[str, dict[Measure, Scored]],
    measure: Measure,
    confidence: float,
) -> list[Difference]:
    """Every arm against `real`, and every arm with added synthetic scans against duplicated real ones.

    The two comparisons the verdict rests on are a family of their own; the others are corrected together.
    """
    pairs = [(plan.name, REAL) for plan in plans if plan.kind != "real"]
    pairs += [(plan.name, DUPLICATED) for plan in plans if plan.kind == "synthetic_added"]
    out: list[Difference] = []
    for family in ("primary", "secondary"):
        members = [pair for pair in pairs if (pair[0] == primary) == (family == "primary")]
        draws = [scored[a][measure].draws - scored[b][measure].draws for a, b in members]
        p_values = [statistics.two_sided_p(d) for d in draws]
        adjusted, divisors = statistics.holm(p_values)
        for (arm, against), drawn, p_value, p_holm, divisor in zip(
            members, draws, p_values, adjusted, divisors, strict=True
        ):
            value = scored[arm][measure].value - scored[against][measure].value
            out.append(
                Difference(
                    arm=arm,
                    against=against,
                    measure=measure,
                    family="primary" if family == "primary" else "secondary",
                    difference=statistics.percentile_estimate(value, drawn, confidence),
                    corrected=statistics.percentile_estimate(value, drawn, 1 - (1 - confidence) / divisor),
                    p_value=p_value,
                    p_holm=p_holm,
                )
            )
    return out
