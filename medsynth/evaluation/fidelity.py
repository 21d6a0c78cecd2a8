"""How alike synthetic and real scans are distributed, beside how alike real and real are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth.evaluation import statistics
from medsynth.evaluation.distances import KernelDistance, Manifold, ball_radius, frechet, gaussian_fit, pairwise
from medsynth.evaluation.evidence import Estimate, Metric, SpaceFidelity
from medsynth.evaluation.features import Frame
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.structure import multiscale_ssim, shrink
from medsynth.progress import Advance
from medsynth.seeding import numpy_generator

Floats = NDArray[np.float64]

BETTER: dict[str, Literal["lower", "higher"]] = {
    "frechet": "lower",
    "kid": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
}
SHARES = ("precision", "recall", "density", "coverage")
SUBSAMPLES = 20
"""Random subsamples over which a figure is averaged where one of the two sets has more scans than are compared."""
PAIRS = 200
PAIRS_PER_CALL = 16
MINIMUM = 3
"""Fewest scans per set for a distribution to be spoken of."""


@dataclass(frozen=True)
class Plan:
    """Sample sizes and resamples, the same for synthetic and held-out scans."""

    compared: int
    resampling: Resampling
    seed: int

    def subsamples(self, count: int, name: str) -> list[NDArray[np.int64]]:
        """Indices of `compared` scans out of `count`, several times; once, where that is all of them."""
        if count == self.compared:
            return [np.arange(count)]
        generator = numpy_generator(self.seed, "fidelity", "subsample", name)
        return [generator.choice(count, self.compared, replace=False) for _ in range(SUBSAMPLES)]


def reference_sentence(training: int, compared: int) -> str:
    """Which scans are compared with which, for the reader of a report."""
    return (
        f"Synthetic scans and held-out real scans (validation and test) are each compared with the {training} real "
        f"training scans, {compared} at a time; the held-out value is what real scans reach against real scans."
    )


def compare_spaces(
    training: dict[str, Floats], synthetic: dict[str, Floats], held_out: dict[str, Floats], plan: Plan, advance: Advance
) -> tuple[SpaceFidelity, ...]:
    """Every metric in every feature space: synthetic beside held-out real, both against the training split.

    All three map a space to raw features [N, D]. `advance` is called once per space and set.
    """
    out = []
    for space, raw in training.items():
        frame = Frame.fit(raw)
        reference = frame.standardise(raw)
        figures = []
        for name, judged in (("synthetic", synthetic[space]), ("held out", held_out[space])):
            figures.append(_figures(frame, reference, frame.standardise(judged), plan, f"{space} {name}"))
            advance(1)
        metrics = tuple(Metric(name, better, figures[0][name], figures[1][name]) for name, better in BETTER.items())
        out.append(SpaceFidelity(space, features=reference.shape[1], components=len(frame.axes), metrics=metrics))
    return tuple(out)


def point_figures(frame: Frame, reference: Floats, judged: Floats) -> dict[str, float]:
    """All figures of `judged` against `reference` (both standardised, [M, D] and [N, D]) without intervals."""
    distance = frechet(*gaussian_fit(frame.reduce(reference)), *gaussian_fit(frame.reduce(judged)))
    shares = Manifold.of(frame.reduce(reference), frame.reduce(judged)).shares()
    return {
        "frechet": float(distance[0]),
        "kid": float(KernelDistance.of(reference, judged).value()[0]),
        **{name: float(getattr(shares, name)[0]) for name in SHARES},
    }


def _figures(frame: Frame, reference: Floats, judged: Floats, plan: Plan, name: str) -> dict[str, Estimate]:
    generator = numpy_generator(plan.seed, "fidelity", "bootstrap", name)
    drawn_reference = statistics.scan_weights(len(reference), len(reference), plan.resampling.resamples, generator)
    drawn_judged = statistics.scan_weights(len(judged), plan.compared, plan.resampling.resamples, generator)
    subsamples = plan.subsamples(len(judged), name)
    confidence = plan.resampling.confidence

    flat_reference, flat_judged = frame.reduce(reference), frame.reduce(judged)
    fit = gaussian_fit(flat_reference)
    distances = [frechet(*fit, *gaussian_fit(flat_judged[chosen]))[0] for chosen in subsamples]
    draws = frechet(*gaussian_fit(flat_reference, drawn_reference), *gaussian_fit(flat_judged, drawn_judged))
    out = {"frechet": statistics.recentred_estimate(float(np.mean(distances)), draws, confidence, floor=0.0)}

    # KID has no bias that a sample size could change, so all judged scans may speak for its value.
    kernels = KernelDistance.of(reference, judged)
    kid_draws = kernels.value(drawn_reference, drawn_judged)
    out["kid"] = statistics.recentred_estimate(float(kernels.value()[0]), kid_draws, confidence)

    shares = [Manifold.of(flat_reference, flat_judged[chosen]).shares() for chosen in subsamples]
    # Balls around judged scans get their size from as many scans as are compared.
    drawn_shares = _at_compared_size(flat_reference, flat_judged, subsamples).shares(drawn_reference, drawn_judged)
    for metric in SHARES:
        value = float(np.mean([getattr(one, metric)[0] for one in shares]))
        ceiling = np.inf if metric == "density" else 1.0
        spread = getattr(drawn_shares, metric)
        out[metric] = statistics.recentred_estimate(value, spread, confidence, floor=0.0, ceiling=ceiling)
    return out


def _at_compared_size(reference: Floats, judged: Floats, subsamples: list[NDArray[np.int64]]) -> Manifold:
    """The manifold of all judged scans, each ball as large as it is on average among as many scans as are compared."""
    whole = Manifold.of(reference, judged[subsamples[0]])
    total, seen = np.zeros(len(judged)), np.zeros(len(judged))
    for chosen in subsamples:
        total[chosen] += ball_radius(judged[chosen], whole.neighbours)
        seen[chosen] += 1
    typical = total.sum() / seen.sum()
    radius = np.where(seen > 0, total / np.maximum(seen, 1), typical)
    apart = pairwise(judged, reference)
    own = ball_radius(reference, whole.neighbours)
    return Manifold(apart <= own[None], apart <= radius[:, None], whole.neighbours)


def diversity(synthetic: Tensor, training: Tensor, plan: Plan, device: torch.device, advance: Advance) -> Metric:
    """Mean MS-SSIM of random pairs of synthetic scans beside that of random pairs of real training scans.

    synthetic, training: [N, 1, X, Y, Z] in [-1, 1]. Lower means more diverse; near the real value is right. The
    interval resamples scans, so that a pair is only as certain as its two scans.
    """
    values = {}
    for name, voxels in (("synthetic", synthetic), ("real", training)):
        values[name] = _pair_similarity(voxels, plan, name, device, advance)
    return Metric("ms_ssim", "like real", values["synthetic"], values["real"])


def _pair_similarity(voxels: Tensor, plan: Plan, name: str, device: torch.device, advance: Advance) -> Estimate:
    generator = numpy_generator(plan.seed, "fidelity", "pairs", name)
    pairs = random_pairs(len(voxels), PAIRS, generator)
    values = []
    for start in range(0, len(pairs), PAIRS_PER_CALL):
        chunk = pairs[start : start + PAIRS_PER_CALL]
        first, second = (shrink(voxels[torch.from_numpy(chunk[:, side])].to(device)) for side in (0, 1))
        with torch.inference_mode():
            values.append(multiscale_ssim(first, second).double().cpu().numpy())
        advance(len(chunk))
    similarity = np.concatenate(values)
    drawn = statistics.scan_weights(len(voxels), len(voxels), plan.resampling.resamples, generator)
    both = drawn[:, pairs[:, 0]] * drawn[:, pairs[:, 1]]
    drawn_any = both.sum(1) > 0
    draws = (both @ similarity)[drawn_any] / both.sum(1)[drawn_any]
    return statistics.percentile_estimate(float(similarity.mean()), draws, plan.resampling.confidence)


def pair_count(count: int) -> int:
    """How many pairs of `count` scans are compared."""
    return min(PAIRS, count * (count - 1) // 2)


def random_pairs(count: int, wanted: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Up to `wanted` different pairs of different scans, [P, 2]; all of them where there are no more."""
    total = count * (count - 1) // 2
    first, second = np.triu_indices(count, 1) if total <= 4 * wanted else (None, None)
    if first is not None and second is not None:
        chosen = generator.permutation(total)[:wanted]
        return np.stack([first[chosen], second[chosen]], axis=1).astype(np.int64)
    found: set[tuple[int, int]] = set()
    while len(found) < wanted:
        a, b = sorted(generator.choice(count, 2, replace=False).tolist())
        found.add((a, b))
    return np.array(sorted(found), dtype=np.int64)
