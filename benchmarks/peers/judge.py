"""The same judge for every method: distances, signs of copies, the segmenter and the classifier, beside real values."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.data import Data, Request
from medsynth.config.evidence import Evaluate
from medsynth.evaluation import condition, degradation, fidelity, privacy
from medsynth.evaluation.audit import LADDER_SCANS, Features
from medsynth.evaluation.classifiers import fit_classifier
from medsynth.evaluation.evidence import Estimate
from medsynth.evaluation.features import extract
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes, join
from medsynth.models.conditions import mask_name
from medsynth.seeding import derive

CPU = torch.device("cpu")
JUDGE_SEED = 20264
"""Not the seed of any training: all methods meet the same segmenter, classifiers and resamples."""
RESAMPLES = 1000
PER_SCAN = ("distances", "ratios", "held_out_distances", "held_out_ratios")
"""What an audit of copies holds for every scan, which is too much for a record."""


class Judge:
    """Judges the scans of a task. What real scans alone decide, segmenter and classifiers among it, is made once."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.settings: Evaluate = data.pipeline.evaluate
        self.masked = mask_name(data.declaration) is not None
        self.resampling = Resampling(RESAMPLES, self.settings.confidence)
        real = {n: LabelledVolumes.from_volume_set(split, data.label, data.classes) for n, split in data.splits.items()}
        self.train, self.test = real["train"], real["test"]
        self.held_out = join(real["validation"], real["test"])

    def __call__(self, request: Request, scans: Tensor) -> dict[str, Any]:
        """Figures of `scans` [N, 1, X, Y, Z] in [-1, 1], made for `request`, and of held-out real scans beside them."""
        synthetic = _labelled(self.train, request, scans)
        features = extract({"synthetic": synthetic}, CPU, _silent, self.masked)
        of = {space: {**self._real_features[space], **found} for space, found in features.items()}
        plan = fidelity.Plan(len(synthetic), self.resampling, derive(JUDGE_SEED, "diversity"))
        diversity = fidelity.diversity(synthetic.voxels, self.train.voxels, plan, CPU, _silent)
        return {
            "fidelity": self._fidelity(of, len(synthetic)),
            "privacy": self._privacy(of, synthetic),
            "diversity": asdict(diversity),
            "mask_overlap": self._mask_overlap(synthetic) if self.masked else None,
            "label": self._label(synthetic),
        }

    def _fidelity(self, features: Features, count: int) -> list[dict[str, Any]]:
        names = ("train", "synthetic", "held out")
        train, synthetic, held_out = ({space: sets[name] for space, sets in features.items()} for name in names)
        compared = min(len(self.held_out), count)
        plan = fidelity.Plan(compared, self.resampling, derive(JUDGE_SEED, "fidelity"))
        spaces = fidelity.compare_spaces(train, synthetic, held_out, plan, _silent)
        return [
            {"space": space.space, "compared": compared, "metrics": [asdict(metric) for metric in space.metrics]}
            for space in spaces
        ]

    def _privacy(self, features: Features, synthetic: LabelledVolumes) -> list[dict[str, Any]]:
        views = privacy.views_of(features, {**self._real, "synthetic": synthetic})
        patients = self.train.patients + self.held_out.patients
        found = []
        for space, view in views.items():
            seed = derive(JUDGE_SEED, "privacy", space)
            audit, _ = privacy.audit_space(space, view, patients, self.resampling, seed=seed)
            found.append({name: value for name, value in asdict(audit).items() if name not in PER_SCAN})
        return found

    @cached_property
    def _real(self) -> dict[str, LabelledVolumes]:
        seed = derive(JUDGE_SEED, "planted")
        planted = degradation.planted_copies(self.train, min(len(self.held_out), LADDER_SCANS), seed)
        return {"train": self.train, "held out": self.held_out, "planted": planted}

    @cached_property
    def _real_features(self) -> Features:
        return extract(self._real, CPU, _silent, self.masked)

    def _mask_overlap(self, synthetic: LabelledVolumes) -> dict[str, Any]:
        seed = derive(JUDGE_SEED, "masks")
        found = condition.mask_overlap(self._segmenter, self.held_out, synthetic, self.resampling, seed=seed)
        return {**asdict(found), "relative": found.on_synthetic.value / found.on_real.value}

    @cached_property
    def _segmenter(self) -> condition.Segmenter:
        steps, seed = self.settings.benefit.steps, derive(JUDGE_SEED, "masks")
        return condition.Segmenter.trained(self.train, steps=steps, seed=seed, device=CPU, advance=_silent)

    def _label(self, synthetic: LabelledVolumes) -> dict[str, Any]:
        """AUC of classifiers trained on real scans, on real test scans and on synthetic ones."""
        found: dict[str, Estimate] = {}
        for name, judged in (("real", self.test), ("synthetic", synthetic)):
            probabilities = np.stack([answer(judged.voxels) for answer in self._classifiers])
            seed = derive(JUDGE_SEED, "scores")
            found[name] = condition.classifier_scores(probabilities, judged, self.resampling, seed=seed, name=name).auc
        return {name: asdict(auc) for name, auc in found.items()}

    @cached_property
    def _classifiers(self) -> list[Any]:
        chosen = self.settings.benefit
        seeds = [derive(JUDGE_SEED, "classifier", number) for number in range(chosen.seeds)]
        return [fit_classifier(self.train, chosen, seed=seed, device=CPU) for seed in seeds]


def _labelled(train: LabelledVolumes, request: Request, scans: Tensor) -> LabelledVolumes:
    names = tuple(f"S{number}" for number in range(len(request)))
    asked = train.take(list(request.cases))
    return replace(asked, voxels=scans, masks=request.masks, patients=names, cases=names)


def _silent(done: int) -> None:
    """Progress that nobody watches."""
