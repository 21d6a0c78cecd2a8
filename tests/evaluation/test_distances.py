from __future__ import annotations

import numpy as np
import pytest

from medsynth.evaluation.distances import (
    KernelDistance,
    Manifold,
    cubic_kernel,
    frechet,
    gaussian_fit,
    pairwise,
    symmetric_sqrt,
)


def test_symmetric_square_root_squares_back_even_when_singular() -> None:
    generator = np.random.default_rng(0)
    low_rank = generator.normal(size=(9, 4))
    for matrix in (low_rank.T @ low_rank, low_rank @ low_rank.T):
        root = symmetric_sqrt(matrix)
        np.testing.assert_allclose(root @ root, matrix, atol=1e-9)


def test_frechet_in_closed_form() -> None:
    # Commuting covariances: |m - n|^2 + sum (sqrt(a) - sqrt(b))^2.
    mean, a, b = np.array([1.0, -2.0, 0.5]), np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    expected = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(mean, np.diag(a), np.zeros(3), np.diag(b)) == pytest.approx(expected, abs=1e-12)
    # A rotation of both changes nothing; equal Gaussians are at distance zero.
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = frechet(turn @ mean, turn @ np.diag(a) @ turn.T, np.zeros(3), turn @ np.diag(b) @ turn.T)
    assert turned == pytest.approx(expected, abs=1e-6)  # the root of a rounding error of 1e-16 is 1e-8
    cov = np.cov(np.random.default_rng(2).normal(size=(50, 6)).T)
    assert frechet(np.zeros(6), cov, np.zeros(6), cov) == pytest.approx(0, abs=1e-9)


def test_frechet_of_non_commuting_covariances_against_a_direct_matrix_square_root() -> None:
    generator = np.random.default_rng(3)
    a, b = (m @ m.T for m in generator.normal(size=(2, 4, 4)))
    eigenvalues = np.linalg.eigvals(a @ b)  # real and positive for a product of two positive matrices
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(eigenvalues.real).sum()
    assert frechet(np.zeros(4), a, np.zeros(4), b) == pytest.approx(expected, rel=1e-9)


def test_weights_stand_for_repeated_scans() -> None:
    generator = np.random.default_rng(4)
    features, counts = generator.normal(size=(12, 3)), generator.integers(0, 4, size=(1, 12)).astype(float)
    repeated = np.repeat(features, counts[0].astype(int), axis=0)
    mean, cov = gaussian_fit(features, counts)
    np.testing.assert_allclose(mean[0], repeated.mean(0), atol=1e-12)
    np.testing.assert_allclose(cov[0], np.cov(repeated.T), atol=1e-12)


def test_kid_is_the_double_sum_of_its_definition() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.normal(size=(7, 3)), generator.normal(size=(9, 3))
    within = sum(cubic_kernel(a[[i]], a[[j]]).item() for i in range(7) for j in range(7) if i != j) / 42
    within_b = sum(cubic_kernel(b[[i]], b[[j]]).item() for i in range(9) for j in range(9) if i != j) / 72
    expected = within + within_b - 2 * cubic_kernel(a, b).mean()
    assert KernelDistance.of(a, b).value()[0] == pytest.approx(expected, abs=1e-12)


def test_kid_is_zero_on_average_for_one_distribution_and_positive_for_two() -> None:
    generator = np.random.default_rng(6)
    same = [KernelDistance.of(*generator.normal(size=(2, 40, 5))).value()[0] for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(400)
    assert min(same) < 0
    apart = [KernelDistance.of(x, y + 0.5).value()[0] for x, y in generator.normal(size=(50, 2, 40, 5))]
    assert np.mean(apart) > 10 * abs(np.mean(same))


def test_resampled_kid_keeps_repeats_of_a_scan_apart() -> None:
    generator = np.random.default_rng(7)
    a, b = generator.normal(size=(2, 60, 5))
    kernels = KernelDistance.of(a, b)
    weights = generator.multinomial(60, np.full(60, 1 / 60), size=(2, 500)).astype(float)
    draws = kernels.value(weights[0], weights[1])
    assert abs(draws.mean() - kernels.value()[0]) < 0.15 * draws.std()


def test_manifold_against_its_definition() -> None:
    generator = np.random.default_rng(8)
    real, fake, k = generator.normal(size=(30, 2)), generator.normal(0.5, 1, size=(20, 2)), 5

    def radius(points: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(points - points[i], axis=1))[k]

    found = Manifold.of(real, fake).shares()
    balls = [[np.linalg.norm(f - r) <= radius(real, i) for i, r in enumerate(real)] for f in fake]
    fake_balls = [[np.linalg.norm(f - r) <= radius(fake, j) for r in real] for j, f in enumerate(fake)]
    assert found.precision.mean() == pytest.approx(np.any(balls, axis=1).mean())
    assert found.density.mean() == pytest.approx(np.sum(balls) / (k * len(fake)))
    assert found.recall.mean() == pytest.approx(np.any(fake_balls, axis=0).mean())
    assert found.coverage.mean() == pytest.approx(np.any(balls, axis=0).mean())


def test_one_distribution_has_density_one_and_known_coverage() -> None:
    # Naeem 2020, sec. 3: E[density] = 1, E[coverage] = 1 - (M-1)...(M-k) / ((2M-1)...(2M-k)) for samples of one size M.
    generator, size, k = np.random.default_rng(9), 200, 5
    found = [Manifold.of(*generator.normal(size=(2, size, 8))).shares() for _ in range(20)]
    expected = 1 - np.prod([(size - i) / (2 * size - i) for i in range(1, k + 1)])
    assert np.mean([f.density.mean() for f in found]) == pytest.approx(1, abs=0.06)
    assert np.mean([f.coverage.mean() for f in found]) == pytest.approx(expected, abs=0.01)


def test_small_samples_shrink_the_neighbourhood() -> None:
    points = np.arange(3.0)[:, None]
    found = Manifold.of(points, points).shares()
    assert found.precision.mean() == found.recall.mean() == found.coverage.mean() == 1.0
    np.testing.assert_allclose(pairwise(points, points), abs(points - points.T))


def test_weights_of_one_change_nothing_and_drawn_scans_count_as_often_as_drawn() -> None:
    generator = np.random.default_rng(10)
    whole = Manifold.of(generator.normal(size=(30, 2)), generator.normal(0.7, 1, size=(20, 2)))
    plain, weighted = whole.shares(), whole.shares(np.ones((1, 30)), np.ones((1, 20)))
    assert (plain.precision, plain.recall, plain.density, plain.coverage) == (
        weighted.precision,
        weighted.recall,
        weighted.density,
        weighted.coverage,
    )
    drawn = np.zeros((1, 20))
    drawn[0, 3] = 20
    assert whole.shares(None, drawn).precision[0] == whole.in_reference[3].any()
    assert whole.shares(None, drawn).coverage[0] == pytest.approx(whole.in_reference[3].mean())
    assert whole.shares(None, drawn).recall[0] == pytest.approx(whole.in_judged[3].mean())
