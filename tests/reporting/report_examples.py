"""An invented evidence and invented scans, large enough to fill every part of a report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from medsynth.evaluation.evidence import (
    Arm,
    Baseline,
    Benefit,
    ClosePair,
    Condition,
    Difference,
    Estimate,
    Evidence,
    Fidelity,
    MaskOverlap,
    Metric,
    NeighbourAudit,
    Privacy,
    Rung,
    Scores,
    SpaceFidelity,
    Verdict,
)
from medsynth.reporting.pictures import Pair, Picture, View, Window, closest_pairs, reconstructions, side_by_side

SPACING = (1.0, 1.0, 1.5)
WINDOW = Window(-1000.0, 400.0, "HU")


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def example_evidence(outcome: Any = "inconclusive") -> Evidence:
    draws = np.random.default_rng(0)
    names = ("frechet", "kid", "precision", "recall", "density", "coverage")
    better = ("lower", "lower", "higher", "higher", "higher", "higher")
    spaces = tuple(
        SpaceFidelity(
            space,
            64,
            12,
            tuple(Metric(n, b, around(0.4 + i, 0.1), around(0.35, 0.1)) for n, b in zip(names, better, strict=True)),
        )
        for i, space in enumerate(("radiomics", "random networks"))
    )
    audits = tuple(
        NeighbourAudit(
            space,
            0.05,
            1.1,
            Estimate(0.06, 0.02, 0.11),
            0.7,
            Estimate(0.03, 0.0, 0.08),
            around(0.52, 0.06),
            0.95,
            tuple(draws.normal(2.0, 0.4, 64).tolist()),
            tuple(draws.uniform(0.7, 1.0, 64).tolist()),
            tuple(draws.normal(2.1, 0.45, 30).tolist()),
            tuple(draws.uniform(0.7, 1.0, 30).tolist()),
        )
        for space in ("radiomics", "random networks")
    )
    pairs = tuple(
        ClosePair(i, f"S{i:05d}", 2 * i, f"C{2 * i:05d}", "radiomics", 0.9 + 0.05 * i, 1.1, 0.6 + 0.02 * i)
        for i in range(20)
    )
    kinds = (
        ("real", "real", 0.0, 67, 0),
        ("real + classical augmentation", "classical", 0.0, 67, 0),
        ("real + duplicated real", "duplicated", 1.0, 67, 67),
        ("real + synthetic x 0.5", "synthetic_added", 0.5, 67, 34),
        ("real + synthetic x 1", "synthetic_added", 1.0, 67, 67),
        ("synthetic only", "synthetic_only", 1.0, 0, 67),
    )
    arms = tuple(
        Arm(
            name,
            kind,
            ratio,
            real,
            added,
            around(0.78 + 0.015 * i, 0.07),
            around(0.7 + 0.01 * i, 0.08),
            (0.76, 0.79, 0.8),
        )
        for i, (name, kind, ratio, real, added) in enumerate(kinds)
    )
    primary = "real + synthetic x 1"
    differences = tuple(
        Difference(primary, against, measure, family, around(0.03, 0.04), around(0.03, 0.05), 0.12, 0.24)
        for against, measure, family in (
            ("real", "auc", "primary"),
            ("real + duplicated real", "auc", "primary"),
            ("real", "balanced_accuracy", "secondary"),
        )
    )
    scores = Scores(around(0.8, 0.05), around(0.72, 0.05), 40)
    return Evidence(
        counts={"training": 67, "validation": 14, "test": 15, "synthetic": 64},
        confidence=0.95,
        bootstrap=1000,
        seed=7,
        fidelity=Fidelity(
            "Synthetic and held-out real scans are each compared with the 67 real training scans.",
            67,
            29,
            spaces,
            Metric("ms_ssim", "like real", around(0.61, 0.03), around(0.55, 0.03)),
            (Rung("noise", "radiomics", "frechet", 0.4, 2.2, True), Rung("blur", "radiomics", "kid", 0.4, 0.39, False)),
        ),
        privacy=Privacy(67, 29, 64, audits, pairs, replace(audits[0], space="masks", closer=Estimate(0.23, 0.14, 0.35))),
        condition=Condition(("benign", "malignant"), scores, scores, MaskOverlap(around(0.9, 0.02), around(0.85, 0.03), 200), {}),
        benefit=Benefit(
            ("benign", "malignant"), 300, 3, 0.02, 15, 15, primary, arms, differences,
            (Baseline("volume of the mask", "real", scores),),
            Verdict(outcome, ("The gain over real scans alone is +0.030.", "The corrected interval holds zero & <more>.")),
            ("There were fewer synthetic scans than the largest ratio asks for.",),
        ),
    )  # fmt: skip


def scan(radius: float, seed: int) -> View:
    """A body with a lung and a nodule of `radius` voxels in it, in HU, with its mask."""
    x, y, z = np.meshgrid(*(np.arange(n) for n in (48, 40, 32)), indexing="ij")
    lung = ((x - 24) / 20) ** 2 + ((y - 20) / 16) ** 2 < 1
    voxels = np.where(lung, -850.0, 30.0) + np.random.default_rng(seed).normal(0, 40, lung.shape)
    nodule = (x - 34) ** 2 + (y - 25) ** 2 + (1.5 * (z - 16)) ** 2 < radius**2
    voxels[nodule] = 60
    return View(voxels.astype(np.float32), nodule.astype(np.uint8))


def example_pictures() -> dict[str, Picture]:
    pairs = [
        Pair(scan(3 + i, i), scan(3 + i, 50 + i), f"diagnosis malignant, diameter {6 + 2 * i} mm") for i in range(4)
    ]
    twenty = [Pair(p.first, p.second, f"{0.8 + 0.02 * i:.2f} x threshold") for i, p in enumerate(pairs * 5)]
    return {
        "examples": side_by_side(pairs, SPACING, WINDOW, {"nodule": 1}),
        "reconstructions": reconstructions(pairs[:3], SPACING, WINDOW),
        "closest": closest_pairs(twenty, SPACING, WINDOW),
    }


def example_facts() -> dict[str, Any]:
    def records(scale: float) -> list[dict[str, Any]]:
        return [
            {
                "step": step,
                "losses": {
                    "loss": scale / step**0.5,
                    "l1": 0.8 * scale / step**0.5,
                    "structural": 0.2 * scale / step**0.5,
                },
                "validation": {"loss": 1.2 * scale / step**0.5, "psnr": 20 + step / 200} if step % 200 == 0 else None,
            }
            for step in range(25, 2001, 25)
        ]

    def kept(step: int, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**line, "kept": True} if line["step"] == step else line for line in lines]

    def look() -> dict[str, Any]:
        return {
            "step": 2000,
            "losses": {"loss": 0.5},
            "validation": {"loss": 0.6, "loss at 0-18 degrees": 0.9, "loss at 18-36 degrees": 0.4, "bits": 1.25},
            "waiting": 0.02,
            "watch": {
                "ms_ssim": 0.7,
                "ms_ssim_real": 0.6,
                "ms_ssim_p": 0.2,
                "nearest": 3.0,
                "nearest_real": 4.0,
                "copies": 0.25,
                "copies_p": 0.0001,
                "training_loss": 0.5,
                "validation_loss": 0.6,
                "gap_p": 0.3,
            },
            "unanswered": ["whether training scans are learned by heart"],
            "warnings": ["step 2000: 25% of the samples lie nearer to one training scan <than> others"],
        }

    return {
        "title": "lidc-nodules",
        "cohort": [
            {"split": "train", "patients": 67, "scans": 67, "diagnosis": "benign 40, malignant 27"},
            {"split": "validation", "patients": 14, "scans": 14, "diagnosis": "benign 8, malignant 6"},
            {"split": "test", "patients": 15, "scans": 15, "diagnosis": "benign 9, malignant 6"},
            {"split": "synthetic", "patients": 0, "scans": 64, "diagnosis": "benign 32, malignant 32"},
        ],
        "findings": ["1 series was left out: its slices are not evenly spaced."],
        "history": {"autoencoder": records(1.0), "denoiser": [*kept(1500, records(30.0)), look()]},
        "gates": [
            {"name": "max_closer_than_real", "required": 0.1, "found": 0.06, "passed": True, "sentence": "6 %, at most 10 %."},
            {"name": "min_condition_auc", "required": 0.9, "found": 0.8, "passed": False, "sentence": "0.80, at least 0.90."},
        ],
        "model": {"medsynth": "0.1.0", "seed": 7, "data_digest": "ab" * 32, "settings": {"autoencoder": {"steps": 2000}}},
        "settings": {"bootstrap": 1000},
        "sampling": {"sampler": "flow_heun", "evaluations": 30, "guidance": 1.5},
    }  # fmt: skip
