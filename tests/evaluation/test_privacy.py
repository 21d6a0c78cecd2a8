from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.evaluation import degradation, privacy
from medsynth.evaluation.features import extract
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes, join

World = Callable[..., LabelledVolumes]
RESAMPLING = Resampling(200, 0.95)


def _quiet(done: int) -> None:
    return None


def _audit(train: LabelledVolumes, held_out: LabelledVolumes, synthetic: LabelledVolumes):
    planted = degradation.planted_copies(train, 20, 0)
    sets = {"train": train, "held out": held_out, "synthetic": synthetic, "planted": planted}
    raw = extract(sets, torch.device("cpu"), _quiet, with_lesions=False)
    views = privacy.views_of(raw, sets)
    patients = train.patients + held_out.patients
    return [privacy.audit_space(space, view, patients, RESAMPLING, seed=0) for space, view in views.items()]


def test_planted_copies_are_found_among_fresh_scans(world: World) -> None:
    train, held_out, fresh = world(100, 1), world(60, 2), world(30, 3)
    noise = 0.02 * torch.randn(10, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = train.take(np.arange(10))
    noisy = train.take(np.arange(10, 20))
    noisy = LabelledVolumes(noisy.voxels + noise, None, noisy.labels, noisy.classes, noisy.patients, noisy.cases)
    moved = degradation.planted_copies(train, 10, seed=7)
    synthetic = join(join(fresh, exact), join(noisy, moved))
    found = _audit(train, held_out, synthetic)
    caught = np.stack([np.array(audit.distances) < audit.threshold for audit, _ in found]).any(0)
    assert caught[30:50].all()
    assert caught[50:].mean() >= 0.9
    assert caught[:30].mean() <= 0.25
    for audit, near in found:
        assert near.index[30:40].tolist() == list(range(10))
        assert max(audit.distances[30:40]) < 1e-6
        assert audit.closer.low <= audit.closer.value <= audit.closer.high
    (correlation,) = (audit for audit, _ in found if audit.space == privacy.CORRELATION)
    assert correlation.planted_found >= 0.9
    assert correlation.membership.value > 0.55

    pairs = privacy.closest_pairs(found, synthetic, train, 20)
    assert len({pair.synthetic for pair in pairs}) == 20
    assert all(pair.synthetic >= 30 for pair in pairs)
    assert pairs[0].distance < 1e-6
    exact_pairs = [pair for pair in pairs if 30 <= pair.synthetic < 40]
    assert len(exact_pairs) == 10
    assert all(pair.training == pair.synthetic - 30 for pair in exact_pairs)
    assert all(pair.training_case == train.cases[pair.training] for pair in exact_pairs)


def test_fresh_scans_of_the_same_distribution_are_flagged_at_the_nominal_rate_only(world: World) -> None:
    shares: dict[str, list[float]] = {}
    nominal = 0.0
    for trial in range(4):
        found = _audit(world(60, 100 + trial), world(40, 200 + trial), world(60, 300 + trial))
        for audit, _ in found:
            shares.setdefault(audit.space, []).append(audit.closer.value)
            nominal = audit.nominal
    assert nominal == pytest.approx(2 / 41)
    for space, values in shares.items():
        assert np.mean(values) < nominal + 0.05, (space, values)


def test_the_conformal_threshold_keeps_its_promise() -> None:
    generator = np.random.default_rng(0)
    for count, expected in ((7, 1 / 8), (19, 1 / 20), (29, 1 / 30), (39, 2 / 40), (99, 5 / 100)):
        flagged = []
        for _ in range(3000):
            values = generator.normal(size=count + 1)
            threshold, nominal = privacy.calibrate(values[:count])
            flagged.append(values[count] < threshold)
        assert nominal == pytest.approx(expected)
        assert np.mean(flagged) == pytest.approx(expected, abs=0.015)


def test_a_threshold_from_a_smaller_pool_would_flag_fresh_scans() -> None:
    # Why thresholds are measured against the same pool: distances shrink as the pool grows.
    generator = np.random.default_rng(1)
    pool, held_out, fresh = (generator.normal(size=(n, 4)) for n in (400, 100, 400))
    matched, _ = privacy.calibrate(privacy.nearest(pool, held_out).distance)
    unmatched, _ = privacy.calibrate(privacy.nearest(pool[:40], held_out).distance)
    distances = privacy.nearest(pool, fresh).distance
    assert (distances < matched).mean() < 0.1
    assert (distances < unmatched).mean() > 0.2


def test_neighbours_are_exact() -> None:
    generator = np.random.default_rng(2)
    training, judged = generator.normal(size=(50, 6)) + 1e4, generator.normal(size=(20, 6)) + 1e4
    judged[0] = training[17]
    found = privacy.nearest(training, judged)
    apart = np.linalg.norm(judged[:, None] - training[None], axis=2)
    np.testing.assert_array_equal(found.index, apart.argmin(1))
    np.testing.assert_allclose(found.distance, apart.min(1), atol=1e-12)
    np.testing.assert_allclose(found.ratio, apart.min(1) / np.sort(apart, 1)[:, 1], atol=1e-12)
    assert found.distance[0] == found.ratio[0] == 0


def test_distance_of_correlation_vectors_is_that_of_pearsons_coefficient() -> None:
    a, b = torch.rand(2, 1, 1, 12, 10, 8, generator=torch.Generator().manual_seed(0))
    x, y = privacy.correlation_vectors(torch.cat([a, b]))
    r = np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1]
    assert ((x - y) ** 2).sum() == pytest.approx(2 * (1 - r), abs=1e-6)
    brighter = privacy.correlation_vectors(0.5 * a + 0.2)
    np.testing.assert_allclose(brighter[0], x, atol=1e-6)  # blind to brightness and contrast


def test_membership_of_scans_that_played_no_part_is_a_blind_guess(world: World) -> None:
    # A frame fitted on training scans would put these values at 0.34 for the random networks: worse than blind.
    values: dict[str, list[float]] = {}
    for trial in range(4):
        for audit, _ in _audit(world(60, 400 + trial), world(60, 500 + trial), world(60, 600 + trial)):
            values.setdefault(audit.space, []).append(audit.membership.value)
    for space, found in values.items():
        assert np.mean(found) == pytest.approx(0.5, abs=0.08), (space, found)


def test_an_overfitted_model_is_caught_by_distance_and_by_membership(world: World) -> None:
    train, held_out = world(60, 21), world(40, 22)
    generator = torch.Generator().manual_seed(0)
    others = torch.randperm(60, generator=generator)
    remembered = 0.85 * train.voxels + 0.15 * train.voxels[others]
    synthetic = replace(train, voxels=remembered + 0.02 * torch.randn(remembered.shape, generator=generator))
    audits = {audit.space: audit for audit, _ in _audit(train, held_out, synthetic)}
    assert audits[privacy.CORRELATION].closer.low > 0.5
    assert audits[privacy.CORRELATION].stands_out.low > 0.5
    assert audits[privacy.CORRELATION].membership.low > 0.9


def _with_masks(volumes: LabelledVolumes, seed: int) -> LabelledVolumes:
    """Ellipsoids of random axes and places, one for each scan."""
    draw = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(16)] * 3, indexing="ij"), -1)
    masks = []
    for _ in range(len(volumes)):
        centre, axes = draw.uniform(5, 11, 3), draw.uniform(2, 6, 3)
        masks.append((((grid - centre) / axes) ** 2).sum(-1) <= 1)
    return replace(volumes, masks=torch.from_numpy(np.stack(masks)[:, None].astype(np.uint8)))


def test_masks_that_were_taken_over_are_told_and_fresh_ones_are_not(world: World) -> None:
    train, held_out = _with_masks(world(100, 1), 1), _with_masks(world(60, 2), 2)
    planted = degradation.planted_copies(train, 20, 0)
    patients = train.patients + held_out.patients
    found = {}
    for name, synthetic in (("taken over", train.take(np.arange(100))), ("fresh", _with_masks(world(100, 3), 3))):
        view = privacy.View.of_masks({"train": train, "held out": held_out, "synthetic": synthetic, "planted": planted})
        assert view is not None
        found[name], _ = privacy.audit_space(privacy.MASKS, view, patients, RESAMPLING, seed=0)
    assert found["taken over"].closer.value == 1
    assert found["taken over"].membership.value == 1
    assert found["fresh"].closer.low < found["fresh"].nominal < found["fresh"].closer.high
    assert found["fresh"].membership.low < 0.5 < found["fresh"].membership.high


def test_the_overlap_of_masks_is_what_their_vectors_say(world: World) -> None:
    a, b = np.zeros((2, 1, 1, 8, 8, 8), np.uint8)
    a[..., :4, :, :], b[..., 2:6, :, :4] = 1, 2
    distance = np.linalg.norm(privacy.mask_vectors(torch.from_numpy(a)) - privacy.mask_vectors(torch.from_numpy(b)))
    assert distance**2 == pytest.approx(2 * (1 - 64 / np.sqrt(256 * 128)))


def test_scans_without_masks_have_no_audit_of_masks(world: World) -> None:
    train = world(20, 1)
    assert privacy.View.of_masks({"train": _with_masks(train, 1), "held out": train}) is None
