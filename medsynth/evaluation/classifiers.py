"""A classifier of labelled scans, fitted as the settings of the benefit say."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medsynth.config.evidence import Benefit
from medsynth.evaluation.benefit import Floats, Predict
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.training.classifier import predict, train_classifier

SMALLEST_AXIS = 16
"""Voxels per axis that the classifiers need."""
PREDICT_VOXELS = 2**22


def fit_classifier(
    volumes: LabelledVolumes, settings: Benefit, *, seed: int, device: torch.device, augment: bool = False
) -> Predict:
    """A classifier of `volumes` after the settings' number of optimiser steps, with classical augmentation or not."""
    network = train_classifier(
        _at_least(volumes.voxels),
        torch.from_numpy(volumes.label_array()),
        classes=len(volumes.classes),
        kind=settings.classifier.kind,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
        device=device,
        augment=augment,
    )
    per_batch = max(1, PREDICT_VOXELS // int(np.prod(volumes.voxels.shape[2:])))

    def answer(voxels: Tensor) -> Floats:
        return np.asarray(predict(network, _at_least(voxels), batch_size=per_batch).double().numpy())

    return answer


def _at_least(voxels: Tensor) -> Tensor:
    """Edges repeated until every axis has what a classifier needs."""
    missing = [max(0, SMALLEST_AXIS - size) for size in voxels.shape[2:]]
    if not any(missing):
        return voxels
    pads = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    return F.pad(voxels, pads, mode="replicate")
