"""How well a scan can be told from its mirror image, asked of the scans themselves: whether mirrored scans are scans too.

A discriminator is shown a scan and its mirror image and says which is which (two-alternative forced choice). Where
mirroring changes nothing about scans of this kind it is right half the time, whatever it has learned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsynth.evaluation.evidence import Estimate
from medsynth.evaluation.features import random_network_features
from medsynth.evaluation.statistics import Resampling, patient_weights, percentile_estimate
from medsynth.progress import Advance
from medsynth.seeding import numpy_generator

COARSE = 6
"""Means of so many blocks per axis say where in a scan the brightness lies."""
FOLDS = 5
FEWEST = 10
"""Patients without which nothing can be said."""

Floats = NDArray[np.float64]


def sided_features(volumes: Tensor, device: torch.device, advance: Advance) -> Floats:
    """Features of volumes [N, 1, X, Y, Z] that a mirror changes: [N, D].

    Untrained networks see edges and texture that have a direction; coarse means see what lies on one side.
    """
    layout = F.adaptive_avg_pool3d(volumes, COARSE).flatten(1).double().numpy()
    return np.concatenate([random_network_features(volumes, device, advance), layout], axis=1)


def told_apart(differences: Floats, patients: Sequence[str], resampling: Resampling, seed: int) -> Estimate:
    """Share of the scans that are told from their mirror images: 0.5 is chance.

    `differences` [N, D] are the `sided_features` of the scans less those of their mirror images, `patients` whose scans.

    The discriminator is linear, learned by ridge regression from other patients than those it judges; the interval
    draws patients. Raises ValueError where there are fewer than `FEWEST`.
    """
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    if len(names) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} patients, found {len(names)}")
    folds = numpy_generator(seed, "mirror folds").permutation(np.arange(len(names)) % FOLDS)[member]
    scale = np.sqrt((differences**2).mean(0))
    scaled = differences / np.where(scale > 0, scale, 1.0)
    right = np.empty(len(scaled))
    for fold in range(FOLDS):
        learned, judged = scaled[folds != fold], scaled[folds == fold]
        products = learned @ learned.T
        ridge = np.trace(products) / len(learned) + np.finfo(np.float64).tiny
        answers = judged @ learned.T @ np.linalg.solve(products + ridge * np.eye(len(learned)), np.ones(len(learned)))
        # Where nothing speaks for either, one guesses.
        right[folds == fold] = (1 + np.sign(answers)) / 2
    weights = patient_weights(patients, resampling.resamples, numpy_generator(seed, "mirror patients"))
    draws = (weights @ right) / weights.sum(1)
    return percentile_estimate(float(right.mean()), draws, resampling.confidence)
