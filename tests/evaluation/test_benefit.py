from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.config.evidence import Benefit as BenefitSettings
from medsynth.config.evidence import Evaluate
from medsynth.evaluation import benefit
from medsynth.evaluation.evidence import Arm, Benefit, Difference, Estimate
from medsynth.evaluation.verdict import verdict
from medsynth.evaluation.volumes import LabelledVolumes

World = Callable[..., LabelledVolumes]
SETTINGS = Evaluate(benefit=BenefitSettings(seeds=3, ratios=(0.5, 1.0), margin=0.02), bootstrap=400)


def _quiet(done: int) -> None:
    return None


def _quality(real: float, duplicated: float, synthetic: float, only: float) -> benefit.Fit:
    """A make-believe classifier: how well it tells the mask's sign depends on what it was trained on."""

    def fit(volumes: LabelledVolumes, seed: int, augment: bool) -> benefit.Predict:
        made = sum(case.startswith("C9") for case in volumes.cases)
        repeated = len(set(volumes.cases)) < len(volumes)
        skill = only if made == len(volumes) else synthetic if made else duplicated if repeated else real
        generator = np.random.default_rng(seed)

        def predict(voxels: torch.Tensor) -> np.ndarray:
            truth = (voxels.flatten(1).amax(1) - voxels.flatten(1).amin(1).abs()).sign().numpy()
            # The noise of a scan is its own, whatever the arm: arms differ by skill and a little luck.
            own = np.array(
                [np.random.default_rng(int(abs(v) * 1e6)).normal() for v in voxels.flatten(1).sum(1).tolist()]
            )
            p = 1 / (1 + np.exp(-(skill * truth + own + 0.1 * generator.normal(size=len(truth)))))
            return np.stack([1 - p, p], axis=1)

        return predict

    return fit


def _measure(
    world: World, fit: benefit.Fit, *, test_patients: int = 120, synthetic: int = 24, seed: int = 0
) -> Benefit:
    train, test, made = (world(n, i, contrast=2.5) for n, i in ((24, 1), (test_patients, 2), (synthetic, 9)))
    plans, primary, notes = benefit.plan_arms(24, made.label_array(), SETTINGS.benefit.ratios, seed)
    trained = benefit.run_arms(plans, train, test, made, fit, seeds=3, seed=seed, advance=_quiet)
    return benefit.measure_benefit(plans, primary, notes, trained, train, test, made, SETTINGS, seed=seed)


def test_a_planted_effect_is_a_benefit(world: World) -> None:
    found = _measure(world, _quality(0.3, 0.3, 2.0, 0.3))
    assert found.verdict.outcome == "benefit"
    assert found.primary == "real + 24 synthetic (x 1)"
    (against_real,) = (
        d for d in found.differences if d.measure == "auc" and d.arm == found.primary and d.against == "real"
    )
    assert against_real.corrected.low > 0
    assert against_real.p_holm < 0.05
    assert f"{against_real.difference.value:+.3f}" in found.verdict.reasons[0]


def test_a_gain_that_duplicates_give_too_is_no_benefit_of_synthetic_scans(world: World) -> None:
    found = _measure(world, _quality(0.3, 2.0, 2.0, 0.3))
    assert found.verdict.outcome == "no benefit"
    assert "duplicated" in found.verdict.reasons[1]


def test_harm_and_sameness_are_no_benefit(world: World) -> None:
    for synthetic in (0.2, 1.0):
        assert _measure(world, _quality(1.0, 1.0, synthetic, 0.3)).verdict.outcome == "no benefit"


def test_few_test_patients_are_inconclusive(world: World) -> None:
    found = _measure(world, _quality(0.3, 0.3, 2.0, 0.3), test_patients=8)
    assert found.verdict.outcome == "inconclusive"
    assert "only 4 test patients" in found.verdict.reasons[1]


def test_a_real_arm_without_room_above_it_is_inconclusive(world: World) -> None:
    found = _measure(world, _quality(9.0, 9.0, 9.0, 9.0))
    assert found.arms[0].auc.value > 0.98
    assert found.verdict.outcome == "inconclusive"
    assert "no room" in found.verdict.reasons[1]


def test_arms_controls_and_families(world: World) -> None:
    found = _measure(world, _quality(1.0, 1.0, 1.0, 1.0))
    kinds = {arm.name: (arm.kind, arm.real, arm.added) for arm in found.arms}
    assert kinds == {
        "real": ("real", 24, 0),
        "real + classical augmentation": ("classical", 24, 0),
        "real + duplicated real": ("duplicated", 24, 24),
        "real + 12 synthetic (x 0.5)": ("synthetic_added", 24, 12),
        "real + 24 synthetic (x 1)": ("synthetic_added", 24, 24),
        "synthetic only": ("synthetic_only", 0, 24),
    }
    auc = [d for d in found.differences if d.measure == "auc"]
    primary = {(d.arm, d.against) for d in auc if d.family == "primary"}
    assert primary == {("real + 24 synthetic (x 1)", "real"), ("real + 24 synthetic (x 1)", "real + duplicated real")}
    assert len(auc) == 7
    for d in auc:
        assert d.p_holm >= d.p_value
        assert d.corrected.low <= d.difference.low <= d.difference.high <= d.corrected.high
    assert all(len(arm.auc_per_seed) == 3 for arm in found.arms)
    assert [(b.name, b.trained_on) for b in found.baselines] == [
        ("radiomics of the scan", "real"),
        ("radiomics of the scan", "synthetic"),
    ]


def test_plans_when_synthetic_scans_are_few_or_of_one_class() -> None:
    plans, primary, notes = benefit.plan_arms(20, np.array([0, 1, 0, 1]), (0.5, 1.0, 2.0), 0)
    assert [p.name for p in plans if p.kind == "synthetic_added"] == ["real + 4 synthetic (x 0.2)"] == [primary]
    assert len(notes) == 3
    (duplicated,) = (p for p in plans if p.kind == "duplicated")
    assert duplicated.added == 4
    plans, primary, notes = benefit.plan_arms(10, np.zeros(40, dtype=np.int64), (0.5, 3.0, 1.5), 0)
    assert "synthetic only" not in [p.name for p in plans]
    assert "one class" in notes[-1]
    assert primary == "real + 5 synthetic (x 0.5)"  # as near to 1 as 1.5, and smaller
    by_size = sorted((p for p in plans if p.kind == "synthetic_added"), key=lambda p: p.ratio)
    assert set(by_size[0].synthetic) < set(by_size[1].synthetic) < set(by_size[2].synthetic)


def test_duplicates_beyond_the_whole_set_are_spread_evenly() -> None:
    plans, _, _ = benefit.plan_arms(10, np.arange(25) % 2, (2.5,), 0)
    (duplicated,) = (p for p in plans if p.kind == "duplicated")
    counts = np.bincount(duplicated.real)
    assert len(duplicated.real) == 35
    assert set(counts.tolist()) == {3, 4}


def test_baselines_find_the_lesion_by_its_mask_but_not_by_its_volume(world: World) -> None:
    train, test, made = world(60, 1, masks=True), world(60, 2, masks=True), world(60, 9, masks=True)
    plans, primary, notes = benefit.plan_arms(60, made.label_array(), (1.0,), 0)
    fit = _quality(1.0, 1.0, 1.0, 1.0)
    trained = benefit.run_arms(plans, train, test, made, fit, seeds=3, seed=0, advance=_quiet)
    found = benefit.measure_benefit(plans, primary, notes, trained, train, test, made, SETTINGS, seed=0)
    real = {b.name: b.scores.auc.value for b in found.baselines if b.trained_on == "real"}
    assert real["radiomics in the mask"] > 0.99
    assert 0.3 < real["volume of the mask"] < 0.7


def _verdict(real: tuple[float, float, float], copies: tuple[float, float, float], of_real: float = 0.8) -> str:
    def difference(against: str, value: float, low: float, high: float) -> Difference:
        estimate = Estimate(value, low, high)
        return Difference("p", against, "auc", "primary", estimate, estimate, 0.01, 0.02)

    estimate = Estimate(of_real, of_real, of_real)
    arm = Arm("real", "real", 0.0, 10, 0, estimate, estimate, (of_real,))
    labels, patients = np.repeat([0, 1], 10), [str(i) for i in range(20)]
    differences = [difference("real", *real), difference("real + duplicated real", *copies)]
    return verdict([arm], differences, "p", 0.02, labels, patients).outcome


@pytest.mark.parametrize(
    ("real", "copies", "expected"),
    [
        ((0.05, 0.01, 0.09), (0.04, 0.005, 0.08), "benefit"),
        ((0.05, 0.01, 0.09), (0.04, -0.005, 0.08), "inconclusive"),
        ((0.05, 0.01, 0.09), (0.00, -0.01, 0.01), "no benefit"),
        ((0.01, 0.001, 0.015), (0.01, 0.001, 0.015), "no benefit"),  # surely above zero, surely below the margin
        ((0.01, 0.001, 0.05), (0.01, 0.001, 0.05), "inconclusive"),
        ((-0.05, -0.09, -0.01), (-0.05, -0.09, -0.01), "no benefit"),
        ((0.0, -0.1, 0.1), (0.0, -0.1, 0.1), "inconclusive"),
    ],
)
def test_the_verdict_by_its_definition(
    real: tuple[float, float, float], copies: tuple[float, float, float], expected: str
) -> None:
    assert _verdict(real, copies) == expected


def test_no_room_hides_a_gain_but_not_a_harm() -> None:
    assert _verdict((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), of_real=1.0) == "inconclusive"
    assert _verdict((-0.2, -0.3, -0.1), (-0.2, -0.3, -0.1), of_real=1.0) == "no benefit"


def test_labels_of_synthetic_scans_may_be_partly_unknown(world: World) -> None:
    made = world(10, 9)
    labels = made.label_array()
    labels[:3] = -1
    known = replace(made, labels=torch.from_numpy(labels)).labelled()
    assert known is not None
    assert len(known) == 7
