"""The same judge for every method: feature distances, the segmenter and the classifier, each beside its real value."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.data import Data, Request
from medsynth.config.evidence import Evaluate
from medsynth.evaluation import condition, fidelity
from medsynth.evaluation.classifiers import fit_classifier
from medsynth.evaluation.evidence import Estimate
from medsynth.evaluation.features import extract
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes, join
from medsynth.seeding import derive

JUDGE_SEED = 20264
"""Not the seed of any training: all methods meet the same segmenter, classifiers and resamples."""
RESAMPLES = 1000


def judge(data: Data, request: Request, scans: Tensor) -> dict[str, Any]:
    """Figures of `scans` [N, 1, X, Y, Z] in [-1, 1], made for `request`, and of held-out real scans beside them."""
    real = {
        name: LabelledVolumes.from_volume_set(split, data.label, data.classes) for name, split in data.splits.items()
    }
    synthetic = _labelled(real["train"], request, scans)
    held_out = join(real["validation"], real["test"])
    settings = data.pipeline.evaluate
    resampling = Resampling(RESAMPLES, settings.confidence)
    return {
        "fidelity": _fidelity(real["train"], held_out, synthetic, resampling),
        "diversity": _diversity(real["train"], synthetic, resampling),
        "mask_overlap": _mask_overlap(real["train"], held_out, synthetic, settings, resampling)
        if request.masks is not None
        else None,
        "label": _label(real["train"], real["test"], synthetic, settings, resampling),
    }


def _labelled(train: LabelledVolumes, request: Request, scans: Tensor) -> LabelledVolumes:
    names = tuple(f"S{number}" for number in range(len(request)))
    asked = train.take(list(request.cases))
    return replace(asked, voxels=scans, masks=request.masks, patients=names, cases=names)


def _fidelity(
    train: LabelledVolumes, held_out: LabelledVolumes, synthetic: LabelledVolumes, resampling: Resampling
) -> list[dict[str, Any]]:
    sets = {"train": train, "synthetic": synthetic, "held out": held_out}
    features = extract(sets, torch.device("cpu"), _silent, synthetic.masks is not None)
    of = {name: {space: found[name] for space, found in features.items()} for name in sets}
    compared = min(len(held_out), len(synthetic))
    plan = fidelity.Plan(compared, resampling, derive(JUDGE_SEED, "fidelity"))
    spaces = fidelity.compare_spaces(of["train"], of["synthetic"], of["held out"], plan, _silent)
    return [
        {"space": space.space, "compared": compared, "metrics": [asdict(metric) for metric in space.metrics]}
        for space in spaces
    ]


def _diversity(train: LabelledVolumes, synthetic: LabelledVolumes, resampling: Resampling) -> dict[str, Any]:
    plan = fidelity.Plan(len(synthetic), resampling, derive(JUDGE_SEED, "diversity"))
    return asdict(fidelity.diversity(synthetic.voxels, train.voxels, plan, torch.device("cpu"), _silent))


def _mask_overlap(
    train: LabelledVolumes,
    held_out: LabelledVolumes,
    synthetic: LabelledVolumes,
    settings: Evaluate,
    resampling: Resampling,
) -> dict[str, Any]:
    seed = derive(JUDGE_SEED, "masks")
    found = condition.mask_overlap(
        train,
        held_out,
        synthetic,
        resampling,
        steps=settings.benefit.steps,
        seed=seed,
        device=torch.device("cpu"),
        advance=_silent,
    )
    return {**asdict(found), "relative": found.on_synthetic.value / found.on_real.value}


def _label(
    train: LabelledVolumes,
    test: LabelledVolumes,
    synthetic: LabelledVolumes,
    settings: Evaluate,
    resampling: Resampling,
) -> dict[str, Any]:
    """AUC of classifiers trained on real scans, on real test scans and on synthetic ones."""
    chosen = settings.benefit
    on_test, on_synthetic = [], []
    for number in range(chosen.seeds):
        seed = derive(JUDGE_SEED, "classifier", number)
        answer = fit_classifier(train, chosen, seed=seed, device=torch.device("cpu"))
        on_test.append(answer(test.voxels))
        on_synthetic.append(answer(synthetic.voxels))
    found: dict[str, Estimate] = {}
    for name, probabilities, judged in (("real", on_test, test), ("synthetic", on_synthetic, synthetic)):
        seed = derive(JUDGE_SEED, "scores")
        found[name] = condition.classifier_scores(np.stack(probabilities), judged, resampling, seed=seed, name=name).auc
    return {name: asdict(auc) for name, auc in found.items()}


def _silent(done: int) -> None:
    """Progress that nobody watches."""
