"""The table of samplers on planted features: who was shown to be as good as the best, and who is recommended."""

from __future__ import annotations

import numpy as np

from medsynth.evaluation.distances import KernelDistance
from medsynth.evaluation.features import Frame
from medsynth.evaluation.sampler_choice import Cell, RealFeatures, tabulate
from medsynth.evaluation.statistics import Resampling

RESAMPLING = Resampling(400, 0.95)
SPACES = ("one", "two")
REQUESTS = 60


def real(count: int, seed: int) -> RealFeatures:
    generator = np.random.default_rng(seed)
    features = {space: generator.normal(size=(count, 6)) for space in SPACES}
    return RealFeatures(features, [f"p{number // 2}" for number in range(count)])


TRAINING, HELD_OUT = real(120, 1), real(80, 2)


def cell(evaluations: int, calls: int, error: float, *, seed: int = 3, spaces: tuple[str, ...] = SPACES) -> Cell:
    """The same draws for all choices, moved by an error of the sampler in the spaces named."""
    generator = np.random.default_rng(seed)
    features = {space: generator.normal(size=(REQUESTS, 6)) + error * (space in spaces) for space in SPACES}
    return Cell("euler", evaluations, calls, 0.5, features)


def names(cells: list[Cell], **options: int) -> tuple[int, list[list[str]]]:
    table = tabulate(cells, TRAINING, HELD_OUT, RESAMPLING, options.get("seed", 5))
    return table.recommended.evaluations, [choice.short_in for choice in table.choices]


def test_the_cheapest_that_is_as_good_as_the_best_is_recommended() -> None:
    chosen, short = names([cell(4, 4, 1.5), cell(8, 8, 0.6), cell(15, 15, 0.01), cell(30, 30, 0.0)])
    assert chosen == 15
    assert short == [["one", "two"], ["one", "two"], [], []]


def test_a_choice_that_is_worse_in_one_space_is_not_recommended() -> None:
    chosen, short = names([cell(8, 8, 1.0, spaces=("two",)), cell(30, 30, 0.0)])
    assert short[0] == ["two"]
    assert chosen == 30


def test_where_the_spaces_disagree_the_one_nearest_to_the_best_of_each_is_taken() -> None:
    cells = [cell(4, 4, 2.0, spaces=("one",)), cell(8, 8, 2.0), cell(15, 15, 0.5, spaces=("two",)), cell(30, 30, 2.0)]
    assert names(cells) == (15, [["one"], ["one", "two"], ["two"], ["one", "two"]])


def test_the_lowest_of_one_space_is_not_recommended_where_it_is_hopeless_in_the_other() -> None:
    assert names([cell(4, 4, 9.0, spaces=("one",)), cell(30, 30, 0.6, spaces=("two",))])[0] == 30


def test_calls_count_and_not_what_was_allowed() -> None:
    assert names([cell(31, 30, 0.0), cell(30, 31, 0.0)])[0] == 31


def test_pairing_tells_apart_what_intervals_of_each_do_not() -> None:
    """A small error: the intervals of both overlap widely, that of the difference leaves zero out."""
    table = tabulate([cell(8, 8, 0.18), cell(30, 30, 0.0)], TRAINING, HELD_OUT, RESAMPLING, 5)
    worse, best = (choice.spaces["one"] for choice in table.choices)
    assert worse.kid.low < best.kid.high
    assert worse.above_best.low > 0
    assert best.above_best.low == best.above_best.high == 0
    unpaired = tabulate([cell(8, 8, 0.18), cell(30, 30, 0.0, seed=4)], TRAINING, HELD_OUT, RESAMPLING, 5)
    widths = [t.choices[0].spaces["one"].above_best for t in (table, unpaired)]
    assert widths[0].high - widths[0].low < 0.8 * (widths[1].high - widths[1].low)


def test_the_figures_are_those_of_the_kernel_distance() -> None:
    table = tabulate([cell(8, 8, 0.3), cell(30, 30, 0.0)], TRAINING, HELD_OUT, RESAMPLING, 5)
    frame = Frame.fit(TRAINING.features["one"])
    held_out = frame.standardise(HELD_OUT.features["one"])
    judged = frame.standardise(cell(8, 8, 0.3).features["one"])
    assert table.choices[0].spaces["one"].kid.value == KernelDistance.of(judged, held_out).value()[0]
    assert table.real["one"].low < 0 < table.real["one"].high, "real scans of one distribution"
    differences = [choice.spaces["one"].above_best.value for choice in table.choices]
    kids = [choice.spaces["one"].kid.value for choice in table.choices]
    np.testing.assert_allclose(differences, np.array(kids) - min(kids))


def test_equal_choices_are_rarely_told_apart() -> None:
    """Ten pairs of the same distribution with draws of their own: nineteen in twenty intervals are to hold zero."""
    pairs = [([cell(8, 8, 0.0, seed=s), cell(30, 30, 0.0, seed=s + 100)], s) for s in range(10, 20)]
    tables = [tabulate(pair, TRAINING, HELD_OUT, RESAMPLING, seed) for pair, seed in pairs]
    told = [any(judged.above_best.low > 0 for judged in c.spaces.values()) for table in tables for c in table.choices]
    assert sum(told) <= 3


def test_real_scans_set_the_margin() -> None:
    table = tabulate([cell(8, 8, 0.3), cell(30, 30, 0.0)], TRAINING, HELD_OUT, RESAMPLING, 5)
    for choice in table.choices:
        for space, judged in choice.spaces.items():
            assert judged.margin == table.real[space].high - table.real[space].value > 0


def test_what_too_few_scans_cannot_tell_apart_is_not_taken_for_good() -> None:
    """Twelve scans of unrelated draws: the worse choice may be the best, and may be far off; the dearer one is recommended."""

    def few(evaluations: int, error: float, seed: int) -> Cell:
        whole = cell(evaluations, evaluations, error, seed=seed)
        return Cell("euler", evaluations, evaluations, 0.5, {s: f[:12] for s, f in whole.features.items()})

    table = tabulate([few(4, 0.4, 11), few(30, 0.0, 12)], TRAINING, HELD_OUT, RESAMPLING, 5)
    cheap = table.choices[0]
    assert any(judged.above_best.low < 0 < judged.above_best.high for judged in cheap.spaces.values())
    assert table.recommended.evaluations == 30


def test_equal_choices_on_shared_draws_are_as_good() -> None:
    """A tenth of a tenth of a deviation apart, seed after seed: the cheaper one is recommended."""
    for seed in range(10, 20):
        assert names([cell(8, 8, 0.01, seed=seed), cell(30, 30, 0.0, seed=seed)], seed=seed) == (8, [[], []])
