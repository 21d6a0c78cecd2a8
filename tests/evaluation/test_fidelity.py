from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.evaluation import degradation, fidelity
from medsynth.evaluation.distances import frechet, gaussian_fit
from medsynth.evaluation.features import SPACES, Frame, extract
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes

World = Callable[..., LabelledVolumes]
CPU = torch.device("cpu")
RESAMPLING = Resampling(200, 0.95)


def _quiet(done: int) -> None:
    return None


def _features(volumes: LabelledVolumes) -> dict[str, np.ndarray]:
    return {space: sets["s"] for space, sets in extract({"s": volumes}, CPU, _quiet, with_lesions=False).items()}


@pytest.fixture(scope="module")
def training(world: World) -> dict[str, np.ndarray]:
    return _features(world(100, 1))


@pytest.fixture(scope="module")
def fresh(world: World) -> LabelledVolumes:
    return world(50, 2)


def _points(training: dict[str, np.ndarray], volumes: LabelledVolumes) -> dict[str, dict[str, float]]:
    raw, out = _features(volumes), {}
    for space in SPACES:
        frame = Frame.fit(training[space])
        judged = frame.standardise(raw[space])
        out[space] = fidelity.point_figures(frame, frame.standardise(training[space]), judged)
    return out


@pytest.mark.parametrize("kind", degradation.DAMAGES)
def test_every_metric_climbs_down_the_ladder(
    kind: degradation.Damage, training: dict[str, np.ndarray], fresh: LabelledVolumes
) -> None:
    rungs = []
    for strength in (0.0, 0.3, 0.6, 1.0):
        voxels = degradation.damage(fresh.voxels, kind, strength, torch.Generator().manual_seed(0))
        rungs.append(_points(training, replace(fresh, voxels=voxels)))
    for space in SPACES:
        for metric in ("frechet", "kid"):
            values = [rung[space][metric] for rung in rungs]
            assert values == sorted(values), (space, metric, values)
            assert values[-1] > 2 * abs(values[0])
        # Blurred scans lie within the real ones, so only what they leave uncovered gives them away.
        for metric in ("coverage",) if kind == "blur" else ("precision", "density", "coverage"):
            values = [rung[space][metric] for rung in rungs]
            assert values[-1] < 0.8 * values[0], (space, metric, values)


def test_losing_a_mode_lowers_recall_and_coverage_but_not_precision(world: World) -> None:
    def scanners(count: int, seed: int, only: int | None = None) -> LabelledVolumes:
        volumes = world(count, seed, contrast=0.0)
        which = torch.arange(count) % 2 if only is None else torch.full((count,), only)
        return replace(volumes, voxels=(volumes.voxels + 0.7 * which[:, None, None, None, None] - 0.35).clamp(-1, 1))

    training = _features(scanners(100, 1))
    one, both = _points(training, scanners(50, 2, only=1)), _points(training, scanners(50, 2))
    for space in SPACES:
        assert one[space]["recall"] < 0.7 * both[space]["recall"]
        assert one[space]["coverage"] < 0.7 * both[space]["coverage"]
        assert one[space]["frechet"] > 3 * both[space]["frechet"]
        assert one[space]["kid"] > 3 * abs(both[space]["kid"])
        assert one[space]["precision"] > both[space]["precision"] - 0.1


def test_planted_copies_look_as_good_as_fresh_scans_to_every_fidelity_metric(
    training: dict[str, np.ndarray], fresh: LabelledVolumes, world: World
) -> None:
    # Which is why fidelity never stands without the privacy audit.
    copies, honest = _points(training, world(100, 1).take(np.arange(50))), _points(training, fresh)
    for space in SPACES:
        assert copies[space]["precision"] >= honest[space]["precision"]
        assert copies[space]["coverage"] > honest[space]["coverage"] - 0.05
        assert copies[space]["kid"] < honest[space]["kid"]


def test_the_audits_own_ladder_moves_as_expected(training: dict[str, np.ndarray], fresh: LabelledVolumes) -> None:
    rungs = degradation.ladder(
        fresh,
        training,
        _features(fresh),
        with_lesions=False,
        seed=0,
        device=CPU,
        advance=_quiet,
    )
    assert len(rungs) == 2 * (2 * len(degradation.DAMAGES) + 2)
    assert all(rung.as_expected for rung in rungs), [rung for rung in rungs if not rung.as_expected]


def test_no_damage_is_no_change(fresh: LabelledVolumes) -> None:
    for kind in degradation.DAMAGES:
        same = degradation.damage(fresh.voxels, kind, 0.0, torch.Generator().manual_seed(0))
        torch.testing.assert_close(same, fresh.voxels)


def test_fresh_scans_compare_like_held_out_ones_and_sizes_are_matched(
    training: dict[str, np.ndarray], fresh: LabelledVolumes, world: World
) -> None:
    plan = fidelity.Plan(30, RESAMPLING, 0)
    held_out = _features(world(30, 3))
    spaces = fidelity.compare_spaces(training, _features(fresh), held_out, plan, _quiet)
    again = fidelity.compare_spaces(training, _features(fresh), held_out, plan, _quiet)
    assert spaces == again
    for space in spaces:
        assert space.components <= 10
        for metric in space.metrics:
            assert metric.synthetic.low <= metric.synthetic.value <= metric.synthetic.high
            assert metric.synthetic.low <= metric.real.high, (space.space, metric)
            assert metric.real.low <= metric.synthetic.high, (space.space, metric)


def test_matching_sizes_removes_the_bias_of_the_frechet_distance() -> None:
    generator = np.random.default_rng(0)
    ratio_matched, ratio_raw = [], []
    for trial in range(30):
        training = {"s": generator.normal(size=(80, 12))}
        synthetic, held_out = {"s": generator.normal(size=(400, 12))}, {"s": generator.normal(size=(25, 12))}
        plan = fidelity.Plan(25, Resampling(100, 0.95), trial)
        (space,) = fidelity.compare_spaces(training, synthetic, held_out, plan, _quiet)
        metric = space.metrics[0]
        ratio_matched.append(metric.synthetic.value / metric.real.value)
        frame = Frame.fit(training["s"])
        fits = [gaussian_fit(frame.reduce(frame.standardise(f["s"]))) for f in (training, synthetic, held_out)]
        ratio_raw.append(float((frechet(*fits[0], *fits[1]) / frechet(*fits[0], *fits[2]))[0]))
    assert np.median(ratio_matched) == pytest.approx(1, abs=0.2)
    assert np.median(ratio_raw) < 0.6  # more scans would have passed for more likeness


def test_the_interval_of_the_frechet_distance_covers_what_this_size_gives_on_average() -> None:
    generator = np.random.default_rng(1)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        return generator.normal(size=(60, 30)), generator.normal(0.4, 1.2, size=(40, 30))

    def estimate(seed: int, resamples: int):
        training, judged = draw()
        frame = Frame.fit(training)
        plan = fidelity.Plan(40, Resampling(resamples, 0.9), seed)
        reference = frame.standardise(training)
        return fidelity._figures(frame, reference, frame.standardise(judged), plan, "x")["frechet"]

    truth = np.mean([estimate(i, 2).value for i in range(300)])
    found = [estimate(i, 150) for i in range(100)]
    assert 0.8 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99


def test_diversity_sees_a_collapsed_generator(world: World) -> None:
    real, plan = world(24, 5), fidelity.Plan(24, RESAMPLING, 0)
    collapsed = real.voxels[:1] + 0.01 * torch.randn(24, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    metric = fidelity.diversity(collapsed, real.voxels, plan, CPU, _quiet)
    assert metric.synthetic.low > metric.real.high
    honest = fidelity.diversity(world(24, 6).voxels, real.voxels, plan, CPU, _quiet)
    assert honest.synthetic.low < honest.real.high
    assert honest.real.low < honest.synthetic.high


def test_pairs_are_different_scans_and_never_repeat() -> None:
    for count in (3, 10, 500):
        pairs = fidelity.random_pairs(count, fidelity.PAIRS, np.random.default_rng(0))
        assert len(pairs) == fidelity.pair_count(count)
        assert (pairs[:, 0] < pairs[:, 1]).all()
        assert len({tuple(p) for p in pairs.tolist()}) == len(pairs)
