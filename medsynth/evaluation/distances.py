"""Distances between two samples of features; each takes resampling weights, so that a bootstrap costs one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

Floats = NDArray[np.float64]

NEIGHBOURS = 5


def symmetric_sqrt(matrix: Floats) -> Floats:
    """Square root of a symmetric positive semi-definite matrix [..., D, D]; rounding below zero counts as zero."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))[..., None, :]) @ np.swapaxes(vectors, -1, -2))


def frechet(mean_a: Floats, cov_a: Floats, mean_b: Floats, cov_b: Floats) -> Floats:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982), batched over leading axes.

    means: [..., D], covariances: [..., D, D]. The trace of (A B)^1/2 is that of (A^1/2 B A^1/2)^1/2, which is symmetric.
    """
    root = symmetric_sqrt(cov_a)
    inner = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.clip(inner, 0, None)).sum(-1)
    traces = np.trace(cov_a, axis1=-2, axis2=-1) + np.trace(cov_b, axis1=-2, axis2=-1)
    return np.asarray(((mean_a - mean_b) ** 2).sum(-1) + traces - 2 * cross)


def gaussian_fit(features: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Mean [B, D] and unbiased covariance [B, D, D] of `features` [N, D] under each row of `weights` [B, N]."""
    drawn = np.ones((1, len(features))) if weights is None else weights
    total = drawn.sum(1)
    mean = drawn @ features / total[:, None]
    second = np.stack([(features * row[:, None]).T @ features for row in drawn])
    spread = second - total[:, None, None] * mean[:, :, None] * mean[:, None, :]
    return mean, spread / np.maximum(total - 1, 1)[:, None, None]


def cubic_kernel(a: Floats, b: Floats) -> Floats:
    """(a . b / D + 1)^3 (Binkowski 2018, sec. 4)."""
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


@dataclass(frozen=True)
class KernelDistance:
    """Kernel matrices of two samples, from which the unbiased squared MMD follows for any weights.

    The U-statistic of Gretton 2012, eq. 3: pairs of a scan with itself are left out, so the value is zero on average
    for two samples of one distribution, and may be negative.
    """

    within_a: Floats
    within_b: Floats
    between: Floats

    @classmethod
    def of(cls, a: Floats, b: Floats) -> KernelDistance:
        return cls(cubic_kernel(a, a), cubic_kernel(b, b), cubic_kernel(a, b))

    def value(self, weights_a: Floats | None = None, weights_b: Floats | None = None) -> Floats:
        """KID per resample [B]."""
        a = np.ones((1, len(self.within_a))) if weights_a is None else weights_a
        b = np.ones((1, len(self.within_b))) if weights_b is None else weights_b
        between = ((a @ self.between) * b).sum(1) / (a.sum(1) * b.sum(1))
        return np.asarray(_mean_of_pairs(self.within_a, a) + _mean_of_pairs(self.within_b, b) - 2 * between)


def _mean_of_pairs(kernel: Floats, weights: Floats) -> Floats:
    """Mean of the kernel over pairs of different scans; repeats of one scan never meet."""
    square = (weights**2) @ np.diag(kernel)
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return np.asarray((((weights @ kernel) * weights).sum(1) - square) / np.maximum(pairs, 1e-12))


@dataclass(frozen=True)
class Manifold:
    """Who lies in whose neighbourhood, for M judged and N reference scans and k neighbours.

    in_reference: bool [M, N], the judged scan lies in the reference scan's ball.  in_judged: bool [M, N], the reference
    scan lies in the judged scan's ball. A ball reaches to the k-th nearest other scan of its own set.
    """

    in_reference: NDArray[np.bool_]
    in_judged: NDArray[np.bool_]
    neighbours: int

    @classmethod
    def of(cls, reference: Floats, judged: Floats, neighbours: int = NEIGHBOURS) -> Manifold:
        """`neighbours` shrinks to what the smaller sample has."""
        k = max(1, min(neighbours, len(reference) - 1, len(judged) - 1))
        apart = pairwise(judged, reference)
        return cls(apart <= ball_radius(reference, k)[None], apart <= ball_radius(judged, k)[:, None], k)

    def shares(self, weights_reference: Floats | None = None, weights_judged: Floats | None = None) -> Shares:
        """Precision and recall (Kynkaanniemi 2019, eq. 1-3), density and coverage (Naeem 2020, eq. 4-5), each [B].

        Under weights, balls stay as they are and only drawn scans have one or lie in one: a scan drawn twice would
        otherwise be its own neighbour at distance zero.
        """
        judged_count, reference_count = self.in_reference.shape
        drawn = np.ones((1, reference_count)) if weights_reference is None else weights_reference
        asked = np.ones((1, judged_count)) if weights_judged is None else weights_judged
        inside, holding = self.in_reference.astype(np.float64), self.in_judged.astype(np.float64)
        balls_around = drawn @ inside.T  # [B, M]: drawn reference balls around each judged scan
        judged_inside = asked @ inside  # [B, N]: drawn judged scans in each reference ball
        judged_around = asked @ holding  # [B, N]: drawn judged balls around each reference scan
        whole_asked, whole_drawn = asked.sum(1), drawn.sum(1)
        # In a drawn sample of reference scans, `whole_drawn` balls of k scans each stand for all N.
        return Shares(
            precision=(asked * (balls_around > 0)).sum(1) / whole_asked,
            recall=(drawn * (judged_around > 0)).sum(1) / whole_drawn,
            density=(asked * balls_around).sum(1) / whole_asked / self.neighbours * (reference_count / whole_drawn),
            coverage=(drawn * (judged_inside > 0)).sum(1) / whole_drawn,
        )


@dataclass(frozen=True)
class Shares:
    """Precision, recall, density and coverage per resample [B]."""

    precision: Floats
    recall: Floats
    density: Floats
    coverage: Floats


def ball_radius(points: Floats, k: int) -> Floats:
    """Distance to the k-th nearest other point."""
    distances, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(points).kneighbors()
    return np.asarray(distances[:, -1])


def pairwise(a: Floats, b: Floats) -> Floats:
    """Euclidean distances [len(a), len(b)]."""
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.sqrt(np.clip(squared, 0, None)))
