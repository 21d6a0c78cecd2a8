"""Splits are by patient, fair, reproducible, and blind to the order of the rows."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from medsynth.cohort.split import SPLITS, _interleave, assign_splits
from medsynth.config.cohort import Split
from medsynth.errors import CohortError

SHARES = Split()


def random_cohort(seed: int, patients: int, values: tuple[str | None, ...]) -> tuple[list[str], list[str | None]]:
    """One to five cases per patient in random order, each with a stratum."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(len(values)))
    rows = [
        (f"p{number}", values[int(generator.choice(len(values), p=weights))])
        for number in range(patients)
        for _ in range(int(generator.integers(1, 6)))
    ]
    rows = [rows[i] for i in generator.permutation(len(rows))]
    return [patient for patient, _ in rows], [stratum for _, stratum in rows]


@pytest.mark.parametrize("seed", range(25))
def test_properties_of_random_cohorts(seed: int) -> None:
    generator = np.random.default_rng(1000 + seed)
    count = int(generator.integers(7, 300))
    train, validation = sorted(generator.uniform(0.15, 0.7, 2))[::-1]
    validation = min(validation, 0.9 - train)
    shares = Split(train=train, validation=validation, test=1 - train - validation)
    values = ("a", "b", "c", None)[: int(generator.integers(1, 5))]
    patients, strata = random_cohort(seed, count, values)
    found = assign_splits(patients, strata, [None] * len(patients), shares, seed)

    assert set(found) == set(patients)
    sizes = Counter(found.values())
    assert set(sizes) == set(SPLITS)
    for name in SPLITS:
        assert abs(sizes[name] - getattr(shares, name) * count) < 1 or sizes[name] == 1

    shuffled = generator.permutation(len(patients))
    again = assign_splits(
        [patients[i] for i in shuffled], [strata[i] for i in shuffled], [None] * len(patients), shares, seed
    )
    assert again == found


@pytest.mark.parametrize("seed", range(10))
def test_each_stratum_has_the_shares_of_the_whole(seed: int) -> None:
    generator = np.random.default_rng(seed)
    patients = [f"p{i}" for i in range(200)]
    strata = [("rare" if value < 0.1 else "common" if value < 0.6 else "usual") for value in generator.random(200)]
    found = assign_splits(patients, strata, [None] * 200, SHARES, seed)
    by_stratum: dict[str, Counter[str]] = defaultdict(Counter)
    for patient, stratum in zip(patients, strata, strict=True):
        by_stratum[stratum][found[patient]] += 1
    for counter in by_stratum.values():
        for name in SPLITS:
            assert abs(counter[name] - getattr(SHARES, name) * counter.total()) <= 1.5


def test_every_stretch_of_the_order_is_fair() -> None:
    """Tijdeman's bound, for prefixes of many apportionments: within 1 - 1 / (2k - 2) of the share."""
    for counts in ((70, 15, 15), (1, 1, 1), (5, 1, 0), (33, 33, 34), (2, 1, 1), (97, 2, 1), (0, 0, 4)):
        wanted = dict(zip(SPLITS, counts, strict=True))
        order = _interleave(wanted)
        assert Counter(order) == Counter({k: v for k, v in wanted.items() if v})
        for place in range(1, len(order) + 1):
            named = Counter(order[:place])
            for name in SPLITS:
                assert abs(named[name] - wanted[name] * place / len(order)) <= 0.75


def test_the_seed_decides_and_is_repeatable() -> None:
    patients, strata = random_cohort(3, 60, ("a", "b"))
    none = [None] * len(patients)
    first, second = (assign_splits(patients, strata, none, SHARES, seed) for seed in (1, 2))
    assert first == assign_splits(patients, strata, none, SHARES, 1)
    assert first != second
    moved = sum(first[p] != second[p] for p in first) / len(first)
    assert moved > 0.2  # about 1 - sum of squared shares = 0.47 where the two are independent


def test_a_fixed_split_wins_and_the_rest_fills_up() -> None:
    patients = [f"p{i}" for i in range(40)]
    fixed: list[str | None] = ["test"] * 10 + [None] * 30
    found = assign_splits(patients, [None] * 40, fixed, SHARES, 0)
    assert [found[p] for p in patients[:10]] == ["test"] * 10
    # Ten are more than the six that were due: nobody else goes there, the others share the rest as 70 : 15.
    assert Counter(found[p] for p in patients[10:]) == {"train": 25, "validation": 5}


def test_a_fully_fixed_cohort_is_left_alone() -> None:
    fixed = ["train", "validation", "test", "train"]
    assert list(assign_splits(list("abcd"), [None] * 4, fixed, SHARES, 9).values()) == fixed


def test_one_fixed_row_fixes_the_whole_patient() -> None:
    found = assign_splits(["a", "b", "a", "c"], [None] * 4, [None, None, "test", None], SHARES, 0)
    assert found["a"] == "test"
    assert set(found.values()) == set(SPLITS)


@pytest.mark.parametrize("count", [3, 4, 5, 6])
def test_small_cohorts_leave_no_split_empty(count: int) -> None:
    for seed in range(20):
        found = assign_splits([f"p{i}" for i in range(count)], [None] * count, [None] * count, SHARES, seed)
        assert set(found.values()) == set(SPLITS)
        assert Counter(found.values())["train"] == max(1, count - 2)


def test_a_mixed_patient_counts_as_its_rarer_value() -> None:
    """Ten patients with one malignant among many benign cases are spread like the other malignant ones."""
    patients, strata = [], []
    for number in range(40):
        patients += [f"p{number}"] * 4
        strata += ["benign"] * 3 + ["malignant" if number < 20 else "benign"]
    found = assign_splits(patients, strata, [None] * len(patients), SHARES, 5)
    malignant = Counter(found[f"p{number}"] for number in range(20))
    assert malignant["train"] == pytest.approx(14, abs=1.5)
    assert min(malignant[name] for name in ("validation", "test")) >= 2


def test_too_few_patients_and_empty_splits_are_refused() -> None:
    with pytest.raises(CohortError, match=r"at least 3 patients.*found 2"):
        assign_splits(["a", "b", "a"], [None] * 3, [None] * 3, SHARES, 0)
    with pytest.raises(CohortError, match="none left for test"):
        assign_splits(list("abc"), [None] * 3, ["train", "train", None], SHARES, 0)
    with pytest.raises(CohortError) as caught:
        assign_splits(["secret-name"] * 2 + list("abc"), [None] * 5, ["train", "test", None, None, None], SHARES, 0)
    assert "secret-name" not in str(caught.value)


def test_a_split_that_is_given_for_every_patient_is_taken_as_it_is() -> None:
    assert assign_splits(["a", "b", "a"], [None] * 3, ["train"] * 3, SHARES, 0) == {"a": "train", "b": "train"}


def test_spare_seats_go_to_every_empty_split() -> None:
    """Where validation alone is filled already, two open patients go to the two others, whatever the shares say."""
    for shares in (SHARES, Split(train=0.1, validation=0.8, test=0.1), Split(train=0.05, validation=0.05, test=0.9)):
        found = assign_splits(list("abc"), [None] * 3, ["validation", None, None], shares, 0)
        assert Counter(found.values()) == dict.fromkeys(SPLITS, 1)
