"""Intervals, paired differences and corrections.

Resampling is expressed as weights: row `b` of a weight matrix [B, N] says how often scan `i` was drawn in resample `b`.
A metric is then a weighted sum for all resamples at once, and one weight matrix used for several arms is a paired
bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from medsynth.errors import DataError
from medsynth.evaluation.evidence import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Measure = Literal["auc", "balanced_accuracy"]

MEASURES: tuple[Measure, ...] = ("auc", "balanced_accuracy")


@dataclass(frozen=True)
class Resampling:
    """How many resamples stand behind an interval, and how much it should hold."""

    resamples: int
    confidence: float


RESAMPLING = Resampling(1000, 0.95)
"""Where no setting says otherwise."""


def interval(draws: Floats, confidence: float) -> tuple[float, float]:
    """The percentile interval of bootstrap draws (Efron 1993, sec. 13.3)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def percentile_estimate(value: float, draws: Floats, confidence: float) -> Estimate:
    """`value` with the percentile interval of `draws`."""
    low, high = interval(draws, confidence)
    return Estimate(float(value), low, high)


def recentred_estimate(
    value: float, draws: Floats, confidence: float, floor: float = -np.inf, ceiling: float = np.inf
) -> Estimate:
    """`value` with the spread of `draws` laid around it.

    Resampling repeats scans, which pushes a distance between samples up by a bias of its own. Moving the draws' mean
    back onto `value` removes that, so the interval speaks of what this sample size gives on average. `floor` and
    `ceiling` bound what is possible.
    """
    low, high = interval(draws - draws.mean() + value, confidence)
    return Estimate(float(value), min(max(low, floor), ceiling), min(max(high, floor), ceiling))


def scan_weights(count: int, drawn: int, resamples: int, generator: np.random.Generator) -> Floats:
    """Weights [resamples, count] of drawing `drawn` scans with replacement."""
    return generator.multinomial(drawn, np.full(count, 1 / count), size=resamples).astype(np.float64)


def patient_weights(patients: Sequence[str], resamples: int, generator: np.random.Generator) -> Floats:
    """Weights [resamples, N] of drawing whole patients with replacement; all scans of a patient move together."""
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    return scan_weights(len(names), len(names), resamples, generator)[:, member]


def class_patient_weights(
    patients: Sequence[str], labels: Ints, resamples: int, generator: np.random.Generator
) -> Floats:
    """Patient weights in which every resample holds at least two classes; others are drawn again.

    Raises DataError where `labels` has a single class.
    """
    if len(np.unique(labels)) < 2:
        raise DataError("intervals of an AUC: expected at least two classes among the scans, found one")
    weights = patient_weights(patients, resamples, generator)
    while len(poor := np.flatnonzero(_classes_present(weights, labels) < 2)):
        weights[poor] = patient_weights(patients, len(poor), generator)
    return weights


def _classes_present(weights: Floats, labels: Ints) -> Ints:
    return np.stack([weights[:, labels == c].sum(1) > 0 for c in np.unique(labels)]).sum(0)


def weighted_auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve for every row of `weights` [B, N]: P(positive scores higher), ties count half.

    NaN for a row without positives or without negatives.
    """
    order = np.argsort(scores, kind="stable")
    ranked, drawn, is_positive = scores[order], weights[:, order], positive[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    negatives = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    positives = np.add.reduceat(drawn * is_positive, starts, axis=1)
    below = negatives.cumsum(1) - negatives / 2
    pairs = positives.sum(1) * negatives.sum(1)
    wins = (positives * below).sum(1)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def auc(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """AUC per resample [B]: of class 1 for two classes, else the mean over classes of one-versus-rest.

    probabilities: [N, classes]. A class that a resample misses is left out of that resample's mean.
    """
    drawn = np.ones((1, len(labels))) if weights is None else weights
    if probabilities.shape[1] == 2:
        return weighted_auc(probabilities[:, 1], labels == 1, drawn)
    each = np.stack([weighted_auc(probabilities[:, c], labels == c, drawn) for c in np.unique(labels)])
    return np.nanmean(each, axis=0)


def balanced_accuracy(probabilities: Floats, labels: Ints, weights: Floats | None = None) -> Floats:
    """Mean recall over the classes present, per resample [B]; the class of highest probability is the answer."""
    drawn = np.ones((1, len(labels))) if weights is None else weights
    right = probabilities.argmax(1) == labels
    recalls = []
    for c in np.unique(labels):
        here = drawn * (labels == c)
        total = here.sum(1)
        recalls.append(np.divide((here * right).sum(1), total, out=np.full(len(total), np.nan), where=total > 0))
    return np.nanmean(np.stack(recalls), axis=0)


@dataclass(frozen=True)
class Scored:
    """A measure of one arm: per seed [S], and per resample of patients and seeds [B]."""

    per_seed: Floats
    draws: Floats

    @property
    def value(self) -> float:
        return float(self.per_seed.mean())

    def estimate(self, confidence: float) -> Estimate:
        """The seed mean with its interval."""
        return percentile_estimate(self.value, self.draws, confidence)


def score(probabilities: Floats, labels: Ints, measure: Measure, weights: Floats, seed_weights: Floats) -> Scored:
    """`measure` averaged over seeds, with resamples of patients, and of seeds within each resample.

    probabilities: [S, N, C].  weights: [B, N].  seed_weights: [B, S], rows sum to 1. Using the same weights for two
    arms pairs them. Resampling seeds too keeps the luck of a training run from passing for an effect.
    """
    function = auc if measure == "auc" else balanced_accuracy
    per_seed = np.array([function(p, labels)[0] for p in probabilities])
    drawn = np.stack([function(p, labels, weights) for p in probabilities], axis=1)  # [B, S]
    return Scored(per_seed, (drawn * seed_weights).sum(1))


def two_sided_p(draws: Floats) -> float:
    """Two-sided p-value of a zero difference: the smallest level whose percentile interval leaves zero out.

    One is added to both counts, so that no finite number of resamples claims an impossible event (Davison 1997, 4.2.5).
    """
    count = len(draws) + 1
    below, above = (np.sum(draws <= 0) + 1) / count, (np.sum(draws >= 0) + 1) / count
    return float(min(1.0, 2 * min(below, above)))


def holm(p_values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Holm's step-down correction (Holm 1979): adjusted p-values, and each comparison's divisor of the level."""
    count = len(p_values)
    adjusted, divisors = [0.0] * count, [0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        divisors[index] = count - rank
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted, divisors


def share_estimate(hits: int, count: int, confidence: float) -> Estimate:
    """A share with the exact binomial interval (Clopper and Pearson 1934): also honest about 0 of N."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return Estimate(hits / count, low, high)
