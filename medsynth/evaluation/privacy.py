"""Signs that synthetic scans repeat training scans.

Every threshold comes from held-out real scans, measured against the very pool of training scans that synthetic ones are
measured against: nearest distances shrink as a pool grows, so a threshold from another pool size would mislead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from medsynth.evaluation import statistics
from medsynth.evaluation.evidence import ClosePair, Estimate, NeighbourAudit
from medsynth.evaluation.features import Frame
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import NULL_MASK, LabelledVolumes
from medsynth.seeding import numpy_generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NOMINAL = 0.05
"""Share of fresh real scans that a threshold may wrongly flag, where there are enough held-out scans to set it so."""
CORRELATION_AXIS = 24
CORRELATION = "image correlation"
MASKS = "masks"


def correlation_vectors(voxels: Tensor) -> Floats:
    """Unit vectors [N, V] whose squared Euclidean distance is 2 (1 - Pearson correlation) of the volumes.

    Volumes are averaged down to at most 24 voxels per axis first, so that a shift by a voxel or fine noise does not
    hide a copy.
    """
    vectors = _small(voxels)
    return _unit(vectors - vectors.mean(1, keepdim=True))


def mask_vectors(masks: Tensor) -> Floats:
    """Unit vectors [N, V] of what masks [N, 1, X, Y, Z] label, whose squared Euclidean distance is 2 (1 - overlap).

    The overlap of masks A and B is |A and B| / sqrt(|A| |B|) (Ochiai), on volumes averaged down as for the correlation.
    """
    return _unit(_small(((masks > 0) & (masks != NULL_MASK)).float()))


def _small(volumes: Tensor) -> Tensor:
    factors = [-(-size // CORRELATION_AXIS) for size in volumes.shape[2:]]
    return F.avg_pool3d(volumes, factors, ceil_mode=True).flatten(1).double()


def _unit(vectors: Tensor) -> Floats:
    return np.asarray((vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)).numpy())


@dataclass(frozen=True)
class Neighbours:
    """Nearest training scans: index and distance of the nearest [N], and nearest over second nearest [N]."""

    index: Ints
    distance: Floats
    ratio: Floats


def nearest(training: Floats, judged: Floats) -> Neighbours:
    """Exact nearest neighbours of `judged` [N, D] among at least two `training` scans [M, D]."""
    search = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(training)
    index = search.kneighbors(judged, return_distance=False)
    # The brute-force search squares differences of large numbers; near zero only the plain difference is exact.
    exact = np.stack([np.linalg.norm(judged - training[index[:, rank]], axis=1) for rank in (0, 1)], axis=1)
    order = np.argsort(exact, axis=1, kind="stable")
    exact, index = np.take_along_axis(exact, order, 1), np.take_along_axis(index, order, 1)
    return Neighbours(
        index=index[:, 0].astype(np.int64),
        distance=exact[:, 0],
        ratio=np.divide(exact[:, 0], exact[:, 1], out=np.ones(len(exact)), where=exact[:, 1] > 0),
    )


@dataclass(frozen=True)
class View:
    """One space: features [N, D] of each set, and the same for the attacker who tries to tell members.

    The audit's frame is fitted on training scans. That frame fits them better than others, which would tilt the
    comparison of training with held-out scans; the attacker's is fitted on the synthetic scans, all that he has.
    """

    training: Floats
    held_out: Floats
    synthetic: Floats
    planted: Floats
    attacker_training: Floats
    attacker_held_out: Floats
    attacker_synthetic: Floats

    @classmethod
    def of_features(cls, raw: dict[str, Floats]) -> View:
        """From raw features of "train", "held out", "synthetic" and "planted": standardised, without a PCA.

        Copies differ from their originals in few ways and from all others in many, so every feature helps to tell.
        """
        audit, attacker = Frame.fit(raw["train"]), Frame.fit(raw["synthetic"])
        return cls(
            *(audit.standardise(raw[name]) for name in ("train", "held out", "synthetic", "planted")),
            *(attacker.standardise(raw[name]) for name in ("train", "held out", "synthetic")),
        )

    @classmethod
    def of_volumes(cls, sets: dict[str, LabelledVolumes]) -> View:
        """From the same sets' voxels, for the image correlation, which has no frame."""
        return cls._of_vectors({name: correlation_vectors(volumes.voxels) for name, volumes in sets.items()})

    @classmethod
    def of_masks(cls, sets: dict[str, LabelledVolumes]) -> View | None:
        """From the same sets' masks; None where one of them has none."""
        masks = {name: volumes.masks for name, volumes in sets.items()}
        if any(each is None for each in masks.values()):
            return None
        return cls._of_vectors({name: mask_vectors(each) for name, each in masks.items() if each is not None})

    @classmethod
    def _of_vectors(cls, vectors: dict[str, Floats]) -> View:
        real = vectors["train"], vectors["held out"]
        return cls(*real, vectors["synthetic"], vectors["planted"], *real, vectors["synthetic"])


def views_of(features: dict[str, dict[str, Floats]], sets: dict[str, LabelledVolumes]) -> dict[str, View]:
    """By space, those of the scans of "train", "held out", "synthetic" and "planted"; `features`: raw, per space and set."""
    views = {space: View.of_features(raw) for space, raw in features.items()}
    return {**views, CORRELATION: View.of_volumes(sets)}


def calibrate(held_out: Floats) -> tuple[float, float]:
    """Threshold from held-out values, and the share of fresh real scans expected strictly below it.

    The k-th smallest of n exchangeable values is undercut by one more with probability k / (n + 1) (conformal
    prediction, Vovk 2005); k is the largest that keeps this within 5 %, and at least 1.
    """
    k = max(1, int(NOMINAL * (len(held_out) + 1)))
    return float(np.sort(held_out)[k - 1]), k / (len(held_out) + 1)


def audit_space(
    space: str, view: View, patients: tuple[str, ...], resampling: Resampling, *, seed: int
) -> tuple[NeighbourAudit, Neighbours]:
    """Nearest-neighbour audit in one space. `patients`: of the training scans, then of the held-out ones."""
    near, control = nearest(view.training, view.synthetic), nearest(view.training, view.held_out)
    threshold, nominal = calibrate(control.distance)
    relative, _ = calibrate(control.ratio)
    copies = nearest(view.training, view.planted)
    audit = NeighbourAudit(
        space=space,
        nominal=nominal,
        threshold=threshold,
        closer=statistics.share_estimate(
            int((near.distance < threshold).sum()), len(near.index), resampling.confidence
        ),
        relative_threshold=relative,
        stands_out=statistics.share_estimate(
            int((near.ratio < relative).sum()), len(near.index), resampling.confidence
        ),
        membership=_membership(view, patients, resampling, seed),
        planted_found=float((copies.distance < threshold).mean()),
        distances=tuple(near.distance.tolist()),
        ratios=tuple(near.ratio.tolist()),
        held_out_distances=tuple(control.distance.tolist()),
        held_out_ratios=tuple(control.ratio.tolist()),
    )
    return audit, near


def _membership(view: View, patients: tuple[str, ...], resampling: Resampling, seed: int) -> Estimate:
    """AUC of the attacker who holds only synthetic scans and calls the real scans nearest to them training scans.

    The attack of Chen 2020 (GAN-Leaks, full black box). 0.5 is a blind guess, 1 gives every training scan away.
    """
    candidates = np.concatenate([view.attacker_training, view.attacker_held_out])
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(view.attacker_synthetic)
    scores = -search.kneighbors(candidates)[0][:, 0]
    member = np.repeat([1, 0], [len(view.training), len(view.held_out)])
    generator = numpy_generator(seed, "membership")
    weights = statistics.class_patient_weights(patients, member, resampling.resamples, generator)
    value = statistics.weighted_auc(scores, member == 1, np.ones((1, len(member))))[0]
    draws = statistics.weighted_auc(scores, member == 1, weights)
    return statistics.percentile_estimate(float(value), draws, resampling.confidence)


def closest_pairs(
    found: list[tuple[NeighbourAudit, Neighbours]], synthetic: LabelledVolumes, training: LabelledVolumes, count: int
) -> tuple[ClosePair, ...]:
    """The `count` synthetic scans nearest to a training scan, each once, in the space where it is nearest.

    Distances of different spaces are made comparable by dividing by the space's threshold.
    """
    relative = np.stack([near.distance / max(audit.threshold, 1e-12) for audit, near in found])  # [spaces, N]
    best = relative.argmin(0)
    pairs = []
    for number in np.argsort(relative.min(0), kind="stable")[:count].tolist():
        audit, near = found[int(best[number])]
        match = int(near.index[number])
        pairs.append(
            ClosePair(
                synthetic=number,
                synthetic_case=synthetic.cases[number],
                training=match,
                training_case=training.cases[match],
                space=audit.space,
                distance=float(near.distance[number]),
                threshold=audit.threshold,
                ratio=float(near.ratio[number]),
            )
        )
    return tuple(pairs)
