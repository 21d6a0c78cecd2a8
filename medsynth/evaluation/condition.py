"""Whether synthetic scans are what they were asked to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medsynth.evaluation import statistics
from medsynth.evaluation.evidence import MaskOverlap, Scores
from medsynth.evaluation.segmentation import dice_scores, label_values, train_segmenter
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.progress import Advance
from medsynth.seeding import numpy_generator

Floats = NDArray[np.float64]


def classifier_scores(
    probabilities: Floats, judged: LabelledVolumes, resampling: Resampling, *, seed: int, name: str
) -> Scores:
    """Scores of classifiers trained on real scans, one per seed, against the labels of `judged`.

    probabilities: [S, N, C]. Patients, and the training seeds with them, are resampled. `judged` needs two classes.
    """
    generator = numpy_generator(seed, "condition", name)
    labels = judged.label_array()
    weights = statistics.class_patient_weights(judged.patients, labels, resampling.resamples, generator)
    seeds = len(probabilities)
    seed_weights = statistics.scan_weights(seeds, seeds, resampling.resamples, generator) / seeds
    auc, accuracy = (
        statistics.score(probabilities, labels, measure, weights, seed_weights).estimate(resampling.confidence)
        for measure in statistics.MEASURES
    )
    return Scores(auc=auc, balanced_accuracy=accuracy, scans=len(judged))


def no_masks(train: LabelledVolumes, held_out: LabelledVolumes, synthetic: LabelledVolumes) -> str | None:
    """Why an overlap of masks cannot be measured; None where it can."""
    for name, volumes in (("training", train), ("held-out real", held_out), ("synthetic", synthetic)):
        if volumes.masks is None:
            return f"The {name} scans have no masks."
        if not set(label_values(volumes.masks)) & set(label_values(train.with_masks())):
            return f"The masks of the {name} scans hold no label that the training scans have."
    return None


@dataclass(frozen=True)
class Segmenter:
    """A network that finds `labels` in scans, trained for `steps` on real ones."""

    network: nn.Module
    labels: tuple[int, ...]
    steps: int
    device: torch.device

    @classmethod
    def trained(
        cls, train: LabelledVolumes, *, steps: int, seed: int, device: torch.device, advance: Advance
    ) -> Segmenter:
        """A segmenter of the labels that the training scans' masks have."""
        masks = train.with_masks()
        labels = label_values(masks)
        network = train_segmenter(train.voxels, masks, labels, steps=steps, seed=seed, device=device, advance=advance)
        return cls(network, labels, steps, device)


def mask_overlap(
    segmenter: Segmenter, held_out: LabelledVolumes, synthetic: LabelledVolumes, resampling: Resampling, *, seed: int
) -> MaskOverlap:
    """Dice of a segmenter trained on real training scans, on held-out real and on synthetic scans.

    A high overlap on synthetic scans says that the anatomy lies where the mask asked for it. Both sets and the training
    scans must have masks with labels in common, which `no_masks` tells.
    """
    found = []
    for name, volumes in (("held-out real", held_out), ("synthetic", synthetic)):
        masks = volumes.with_masks()
        scores = dice_scores(segmenter.network, volumes.voxels, masks, segmenter.labels, device=segmenter.device)
        some = np.flatnonzero(np.isfinite(scores))
        patients = [volumes.patients[i] for i in some]
        generator = numpy_generator(seed, "condition", "dice", name)
        weights = statistics.patient_weights(patients, resampling.resamples, generator)
        draws = weights @ scores[some] / weights.sum(1)
        found.append(statistics.percentile_estimate(float(scores[some].mean()), draws, resampling.confidence))
    return MaskOverlap(on_real=found[0], on_synthetic=found[1], steps=segmenter.steps)
