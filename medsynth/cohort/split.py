"""Which patient goes to training, validation or test.

Never a row, always a patient; the same whatever the order of the rows; alike in every split as far as one category goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from medsynth.config.cohort import Split
from medsynth.errors import CohortError
from medsynth.seeding import derive

SPLITS = ("train", "validation", "test")


def assign_splits(
    patients: Sequence[str],
    strata: Sequence[str | None],
    fixed: Sequence[str | None],
    shares: Split,
    seed: int,
) -> dict[str, str]:
    """The split of every patient.

    The three sequences hold one entry per case. `strata` is the category whose shares should be alike (a patient whose
    cases differ counts as the value that is rarer in the cohort), `fixed` a split that is already decided and wins.
    The number of patients per split is within one of its share; small cohorts deviate only to leave no split empty.

    Where every patient is fixed, that is the split, whole or not: what a split is needed for decides whether it may be
    empty. Raises CohortError where there are fewer than three patients to share out, a patient is fixed to two splits,
    or a split would be empty.
    """
    cases = list(zip(patients, strata, fixed, strict=True))
    decided = _decided(cases)
    total = len(set(patients))
    if len(decided) == total > 0:
        return decided
    if total < len(SPLITS):
        raise CohortError(
            f"expected at least {len(SPLITS)} patients, one for each of {', '.join(SPLITS)}, found {total}; add patients"
        )
    wanted = {name: Fraction(getattr(shares, name)).limit_denominator(10**6) * total for name in SPLITS}
    taken = Counter(decided.values())
    free = total - len(decided)
    counts = _apportion(free, {name: max(Fraction(0), wanted[name] - taken[name]) for name in SPLITS}, taken)

    severity = _patient_strata(cases)
    undecided = sorted(
        (patient for patient in set(patients) if patient not in decided),
        key=lambda patient: (severity[patient], derive(seed, "split", patient), patient),
    )
    return decided | dict(zip(undecided, _interleave(counts), strict=True))


def _decided(cases: Sequence[tuple[str, str | None, str | None]]) -> dict[str, str]:
    decided: dict[str, str] = {}
    for position, (patient, _, split) in enumerate(cases, start=1):
        if split is None:
            continue
        if split not in SPLITS:
            raise CohortError(f"case {position}: expected a split of {', '.join(SPLITS)}, found another word")
        if decided.setdefault(patient, split) != split:
            raise CohortError(
                f"case {position}: expected every patient in one split, found this patient in {decided[patient]} and "
                f"{split}; give all rows of a patient the same split"
            )
    return decided


def _patient_strata(cases: Sequence[tuple[str, str | None, str | None]]) -> dict[str, str]:
    """The stratum of each patient: of the values among its cases, the one that is rarest in the whole cohort.

    A patient with any malignant nodule is thus a malignant patient where malignancy is rare, which keeps rare values
    from being spread unevenly by patients who have both.
    """
    frequency = Counter(stratum for _, stratum, _ in cases)
    found: dict[str, tuple[int, str]] = {}
    for patient, stratum, _ in cases:
        rank = (frequency[stratum], stratum or "")
        found[patient] = min(found.get(patient, rank), rank)
    return {patient: stratum for patient, (_, stratum) in found.items()}


def _apportion(seats: int, weights: Mapping[str, Fraction], taken: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that add up to `seats` in proportion to `weights` (Hamilton's method), none leaving a split empty."""
    empty = [name for name in SPLITS if not taken[name]]
    if seats < len(empty):
        raise CohortError(
            f"expected patients in each of {', '.join(SPLITS)}, found none left for {', '.join(empty[seats:])}; "
            "leave the split of some patients open, or move some there"
        )
    whole = sum(weights.values())
    exact = {name: weights[name] * seats / whole if whole else Fraction(0) for name in SPLITS}
    counts = {name: int(exact[name]) for name in SPLITS}
    by_remainder = sorted(SPLITS, key=lambda name: (counts[name] - exact[name], SPLITS.index(name)))
    for name in by_remainder[: seats - sum(counts.values())]:
        counts[name] += 1
    for name in empty:
        if not counts[name]:
            donor = max(SPLITS, key=lambda other: counts[other] - (other in empty))
            counts[donor] -= 1
            counts[name] = 1
    return counts


def _interleave(counts: Mapping[str, int]) -> list[str]:
    """The splits in an order in which every stretch has its fair share of each (Tijdeman 1980, chairman assignment).

    After i places each split has been named within 1 - 1 / (2k - 2) of its share of i, k being the number of splits; so
    any stretch of the order, such as one stratum of patients, is within 1.5 of its share.
    """
    total = sum(counts.values())
    share = {name: Fraction(count, total) for name, count in counts.items() if count}
    if len(share) < 2:
        return [name for name in share for _ in range(total)]
    slack = Fraction(1, 2 * len(share) - 2)
    named: Counter[str] = Counter()
    order = []
    for place in range(1, total + 1):
        due = {name: share[name] * place - named[name] for name in share}
        ready = [name for name in share if due[name] >= slack]
        choice = min(ready, key=lambda name: ((1 - slack - due[name]) / share[name], SPLITS.index(name)))
        named[choice] += 1
        order.append(choice)
    return order
