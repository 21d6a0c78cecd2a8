from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from medsynth.errors import DataError
from medsynth.evaluation import statistics


@pytest.mark.parametrize("seed", range(4))
def test_auc_agrees_with_scikit_learn_with_and_without_weights(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=60)
    scores = np.round(generator.normal(labels, 1.5), 1)  # rounding makes ties
    weights = generator.integers(0, 4, size=(5, 60)).astype(float)
    found = statistics.weighted_auc(scores, labels == 1, weights)
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_auc_of_three_classes_is_the_macro_one_versus_rest_of_scikit_learn() -> None:
    generator = np.random.default_rng(7)
    labels = generator.integers(3, size=90)
    probabilities = generator.dirichlet(np.ones(3), size=90)
    expected = roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert statistics.auc(probabilities, labels)[0] == pytest.approx(expected, abs=1e-12)


def test_balanced_accuracy_agrees_with_scikit_learn() -> None:
    generator = np.random.default_rng(8)
    labels = generator.integers(3, size=50)
    probabilities = generator.dirichlet(np.ones(3), size=50)
    weights = generator.integers(1, 4, size=(1, 50)).astype(float)
    expected = balanced_accuracy_score(labels, probabilities.argmax(1), sample_weight=weights[0])
    assert statistics.balanced_accuracy(probabilities, labels, weights)[0] == pytest.approx(expected, abs=1e-12)


def test_a_resample_without_one_class_has_no_auc() -> None:
    assert np.isnan(statistics.weighted_auc(np.arange(4.0), np.array([1, 1, 0, 0], bool), np.array([[1.0, 1, 0, 0]])))


def test_holm_by_hand() -> None:
    # Sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06, .04 x 1 = .04 -> not below the one before, so .06.
    adjusted, divisors = statistics.holm([0.04, 0.01, 0.03, 0.02])
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert divisors == [1, 4, 2, 3]
    assert statistics.holm([0.6, 0.7])[0] == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == ([], [])


def test_scans_of_one_patient_are_drawn_together() -> None:
    patients = ["a", "b", "a", "c", "b"]
    weights = statistics.patient_weights(patients, 200, np.random.default_rng(0))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(1), 3)


def test_every_resample_holds_two_classes_and_one_class_is_refused() -> None:
    labels = np.array([1, 0, 0, 0, 0, 0])
    weights = statistics.class_patient_weights(list("abcdef"), labels, 500, np.random.default_rng(0))
    assert (weights[:, 0] > 0).all()
    assert (weights[:, 1:].sum(1) > 0).all()
    with pytest.raises(DataError, match="at least two classes"):
        statistics.class_patient_weights(list("abc"), np.array([1, 1, 1]), 10, np.random.default_rng(0))


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        values = generator.exponential(size=60)
        weights = statistics.scan_weights(60, 60, 400, generator)
        estimate = statistics.percentile_estimate(values.mean(), weights @ values / 60, 0.9)
        hits += estimate.low <= 1 <= estimate.high
    assert 0.84 <= hits / 400 <= 0.94


def test_recentring_leaves_spread_and_removes_shift() -> None:
    draws = np.random.default_rng(0).normal(5.0, 1.0, 20_000)
    estimate = statistics.recentred_estimate(3.0, draws, 0.95)
    assert estimate.low == pytest.approx(3 - 1.96, abs=0.05)
    assert estimate.high == pytest.approx(3 + 1.96, abs=0.05)
    assert statistics.recentred_estimate(0.5, draws, 0.95, floor=0.0).low == 0.0


def test_exact_interval_of_a_share() -> None:
    none, some, everything = (statistics.share_estimate(hits, 20, 0.95) for hits in (0, 7, 20))
    # Closed forms at the ends (Clopper and Pearson): 1 - .025^(1/20) and its mirror image.
    assert (none.low, none.high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert (everything.low, everything.high) == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert (some.low, some.high) == (pytest.approx(0.1539, abs=1e-4), pytest.approx(0.5922, abs=1e-4))


def test_p_values_are_uniform_at_best_and_never_zero() -> None:
    assert statistics.two_sided_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert statistics.two_sided_p(np.zeros(999)) == 1.0
    assert statistics.two_sided_p(-np.ones(999)) == pytest.approx(2 / 1000)


def _arm(generator: np.random.Generator, labels: np.ndarray, patient_effect: np.ndarray, gain: float) -> np.ndarray:
    """Probabilities [2 seeds, N, 2] whose scores separate the classes by `gain`."""
    out = []
    for _ in range(2):
        score = gain * labels + patient_effect + generator.normal(0, 0.7, len(labels))
        p = 1 / (1 + np.exp(-score))
        out.append(np.stack([1 - p, p], axis=1))
    return np.stack(out)


def _difference(seed: int, gain_a: float, gain_b: float) -> tuple[np.ndarray, float]:
    generator = np.random.default_rng(seed)
    patients = [f"p{i // 2}" for i in range(100)]  # two scans each
    labels = np.repeat(generator.permutation(np.repeat([0, 1], 25)), 2)
    effect = np.repeat(generator.normal(0, 0.7, 50), 2)
    a, b = (_arm(generator, labels, effect, gain) for gain in (gain_a, gain_b))
    weights = statistics.class_patient_weights(patients, labels, 400, generator)
    seeds = statistics.scan_weights(2, 2, 400, generator) / 2
    scored = [statistics.score(p, labels, "auc", weights, seeds) for p in (a, b)]
    return scored[0].draws - scored[1].draws, scored[0].value - scored[1].value


def test_paired_bootstrap_covers_zero_when_both_arms_are_the_same() -> None:
    covered = 0
    for seed in range(150):
        draws, _ = _difference(seed, 1.0, 1.0)
        low, high = statistics.interval(draws, 0.95)
        covered += low <= 0 <= high
    assert covered / 150 >= 0.92


def test_paired_bootstrap_finds_a_planted_effect() -> None:
    found = sum(statistics.interval(_difference(seed, 2.5, 0.8)[0], 0.95)[0] > 0 for seed in range(30))
    assert found >= 27


def test_pairing_narrows_the_interval() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    base = labels + generator.normal(0, 1.5, 80)
    arms = []
    for _ in range(2):
        p = 1 / (1 + np.exp(-(base + generator.normal(0, 0.1, 80))))
        arms.append(np.stack([1 - p, p], axis=1)[None])
    seeds = np.ones((1000, 1))
    weights = [statistics.class_patient_weights([str(i) for i in range(80)], labels, 1000, generator) for _ in "ab"]
    first = statistics.score(arms[0], labels, "auc", weights[0], seeds).draws
    paired = first - statistics.score(arms[1], labels, "auc", weights[0], seeds).draws
    unpaired = first - statistics.score(arms[1], labels, "auc", weights[1], seeds).draws
    assert paired.std() < unpaired.std() / 3
