"""Logistic regression on simple features: what a network must beat to be worth its trouble."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medsynth.evaluation import statistics
from medsynth.evaluation.evidence import Baseline, Scores
from medsynth.evaluation.radiomics import lesion_features, lesion_volumes, scan_features
from medsynth.evaluation.volumes import LabelledVolumes

Floats = NDArray[np.float64]

REGULARISATION = 0.1
"""Inverse strength of the L2 penalty: strong, as there are about as many features as scans."""


def baselines(
    train: LabelledVolumes, test: LabelledVolumes, synthetic: LabelledVolumes, weights: Floats, confidence: float
) -> tuple[Baseline, ...]:
    """Baselines trained on real and on synthetic scans, scored on real test scans under bootstrap `weights` [B, N].

    Whole-scan radiomics always; where there are masks, the volume alone and all features of the masked region.
    """

    def quiet_scan_features(volumes: LabelledVolumes) -> Floats | None:
        return scan_features(volumes, lambda done: None)

    spaces: dict[str, Callable[[LabelledVolumes], Floats | None]] = {
        "radiomics of the scan": quiet_scan_features,
        "volume of the mask": lesion_volumes,
        "radiomics in the mask": lesion_features,
    }
    out = []
    for name, measure in spaces.items():
        of_test = measure(test)
        for trained_on, volumes in (("real", train), ("synthetic", synthetic)):
            features = measure(volumes)
            if of_test is None or features is None or len(np.unique(volumes.label_array())) < 2:
                continue
            probabilities = fit_and_predict(features, volumes.label_array(), of_test, len(test.classes))
            scores = _scores(probabilities, test, weights, confidence)
            out.append(Baseline(name=name, trained_on=trained_on, scores=scores))
    return tuple(out)


def fit_and_predict(features: Floats, labels: NDArray[np.int64], judged: Floats, classes: int) -> Floats:
    """Class probabilities [N, classes] of `judged`; classes that never occurred in training get zero."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
    model.fit(features, labels)
    out = np.zeros((len(judged), classes))
    out[:, model.classes_] = model.predict_proba(judged)
    return out


def _scores(probabilities: Floats, test: LabelledVolumes, weights: Floats, confidence: float) -> Scores:
    labels = test.label_array()
    estimates = [
        statistics.percentile_estimate(float(function(probabilities, labels)[0]), draws, confidence)
        for function in (statistics.auc, statistics.balanced_accuracy)
        for draws in [function(probabilities, labels, weights)]
    ]
    return Scores(auc=estimates[0], balanced_accuracy=estimates[1], scans=len(test))
