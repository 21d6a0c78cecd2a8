from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.config.evidence import Benefit as BenefitSettings
from medsynth.config.evidence import Evaluate, Gates
from medsynth.errors import DataError
from medsynth.evaluation.audit import collect_evidence
from medsynth.evaluation.condition import Segmenter, mask_overlap, no_masks
from medsynth.evaluation.evidence import Evidence
from medsynth.evaluation.gates import check_gates
from medsynth.evaluation.segmentation import dice_scores, label_values, train_segmenter
from medsynth.evaluation.statistics import Resampling
from medsynth.evaluation.volumes import LabelledVolumes

World = Callable[..., LabelledVolumes]
CPU = torch.device("cpu")
QUICK = Evaluate(benefit=BenefitSettings(steps=40, seeds=2, ratios=(1.0,), batch_size=8), bootstrap=150)


class _Bars:
    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    @contextmanager
    def task(self, label: str, total: int):
        self.seen[label] = [total, 0]

        def advance(done: int) -> None:
            self.seen[label][1] += done

        yield advance


@pytest.fixture(scope="module")
def bars() -> _Bars:
    return _Bars()


@pytest.fixture(scope="module")
def evidence(world: World, bars: _Bars) -> Evidence:
    sets = (world(30, 1, masks=True), world(8, 2, masks=True), world(16, 3, masks=True), world(30, 9, masks=True))
    return collect_evidence(*sets, QUICK, seed=5, device=CPU, progress=bars)


def test_every_section_is_measured_and_every_bar_reaches_its_end(evidence: Evidence, bars: _Bars) -> None:
    assert evidence.absent == {}
    assert evidence.counts == {"train": 30, "validation": 8, "test": 16, "synthetic": 30}
    assert evidence.fidelity is not None
    assert evidence.fidelity.compared == 24
    assert evidence.privacy is not None
    assert [space.space for space in evidence.privacy.spaces] == ["radiomics", "random networks", "image correlation"]
    assert len(evidence.privacy.closest) == 20
    assert evidence.condition is not None
    assert evidence.condition.on_synthetic is not None
    assert evidence.condition.masks is not None
    assert evidence.benefit is not None
    assert len(evidence.benefit.arms) == 5
    assert len(bars.seen) >= 6
    for label, (total, done) in bars.seen.items():
        assert done == total, label


def test_a_classifier_of_real_scans_recognises_fresh_scans_by_their_labels(evidence: Evidence) -> None:
    assert evidence.condition is not None
    assert evidence.condition.on_synthetic is not None
    assert evidence.condition.on_synthetic.auc.value > 0.8


def test_evidence_survives_json(evidence: Evidence) -> None:
    text = json.dumps(evidence.to_json(), allow_nan=False)
    assert Evidence.from_json(json.loads(text)) == evidence
    assert "anonym" not in text.lower()


def test_damaged_json_is_refused(evidence: Evidence) -> None:
    data = evidence.to_json()
    with pytest.raises(DataError, match="format version"):
        Evidence.from_json({**data, "format_version": 99})
    with pytest.raises(DataError, match="privacy"):
        Evidence.from_json({**data, "privacy": {"training": 3}})
    assert Evidence.from_json({**data, "privacy": None, "absent": {"privacy": "why"}}).privacy is None


def test_the_same_seed_gives_the_same_evidence(world: World) -> None:
    settings = Evaluate(benefit=BenefitSettings(steps=2, seeds=1, ratios=(1.0,), batch_size=4), bootstrap=100)
    sets = [world(n, i, masks=True) for i, n in enumerate((12, 4, 10, 12))]
    first, again, other = (collect_evidence(*sets, settings, seed=seed, device=CPU) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def _without_labels(volumes: LabelledVolumes) -> LabelledVolumes:
    return replace(volumes, labels=None, classes=())


def test_sections_that_cannot_be_measured_say_why(world: World) -> None:
    settings = Evaluate(benefit=BenefitSettings(steps=2, seeds=1, ratios=(1.0,), batch_size=4), bootstrap=100)
    train, validation, test, made = (world(n, i) for i, n in enumerate((12, 4, 10, 8)))

    plain = collect_evidence(*map(_without_labels, (train, validation, test, made)), settings, seed=0, device=CPU)
    assert plain.benefit is None
    assert plain.condition is None
    assert plain.fidelity is not None
    assert "no category" in plain.absent["benefit"]
    assert "no masks" in plain.absent["condition"]

    one_class = test.take(np.flatnonzero(test.label_array()))
    found = collect_evidence(train, validation, one_class, made, settings, seed=0, device=CPU)
    assert found.benefit is None
    assert "one class" in found.absent["benefit"]

    asked_for_one = made.take(np.flatnonzero(made.label_array()))
    found = collect_evidence(train, validation, test, asked_for_one, settings, seed=0, device=CPU)
    assert found.benefit is not None
    assert any("one class" in note for note in found.benefit.notes)
    assert "one class" in found.absent["condition"]

    nothing = collect_evidence(train, validation, test, made.take([0]), settings, seed=0, device=CPU)
    assert nothing.fidelity is None
    assert "at least 3 synthetic scans; there are 1" in nothing.absent["privacy"]


def test_another_grid_or_other_classes_are_refused(world: World) -> None:
    train, validation, test = world(8, 0), world(4, 1), world(6, 2)
    with pytest.raises(DataError, match="one grid"):
        collect_evidence(train, validation, test, world(8, 3, size=8), QUICK, seed=0, device=CPU)
    with pytest.raises(DataError, match="same classes"):
        collect_evidence(train, validation, test, replace(world(8, 3), classes=("a", "b")), QUICK, seed=0, device=CPU)


def test_the_segmenter_finds_real_lesions_and_tells_where_a_mask_lies(world: World) -> None:
    train, held_out, honest = (world(n, i, contrast=1.4, masks=True) for i, n in enumerate((30, 10, 10)))
    lying = replace(honest, masks=honest.with_masks().flip(0))
    segmenter = Segmenter.trained(train, steps=100, seed=0, device=CPU, advance=lambda done: None)
    found = mask_overlap(segmenter, held_out, lying, Resampling(200, 0.95), seed=0)
    assert found.on_real.value > 0.6
    assert found.on_synthetic.high < found.on_real.low
    assert found.on_synthetic.value < 0.5


def test_dice_of_a_known_answer_and_of_an_empty_mask() -> None:
    class Half(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x, x], dim=1)  # label where the voxel is positive

    voxels = -torch.ones(2, 1, 6, 5, 4)
    voxels[:, :, :3] = 1
    masks = torch.zeros(2, 1, 6, 5, 4, dtype=torch.uint8)
    masks[0, :, 1:5] = 7  # 4 planes asked, 3 found, 2 shared
    scores = dice_scores(Half(), voxels, masks, (7,), device=CPU)
    assert scores[0] == pytest.approx(4 / 7)
    assert np.isnan(scores[1])
    assert label_values(masks) == (7,)


def test_the_segmenter_leaves_the_global_random_state_alone_and_takes_odd_boxes(world: World) -> None:
    volumes = world(4, 0, masks=True)
    odd = replace(volumes, voxels=volumes.voxels[..., :13, :, :9], masks=volumes.with_masks()[..., :13, :, :9])
    before = torch.get_rng_state()
    network = train_segmenter(
        odd.voxels, odd.with_masks(), (1,), steps=2, seed=0, device=CPU, advance=lambda done: None
    )
    torch.testing.assert_close(torch.get_rng_state(), before)
    assert dice_scores(network, odd.voxels, odd.with_masks(), (1,), device=CPU).shape == (4,)


def test_masks_without_a_common_label_have_no_overlap_to_measure(world: World) -> None:
    with_masks, without = world(4, 0, masks=True), world(4, 1)
    assert "no masks" in (no_masks(with_masks, with_masks, without) or "")
    other = replace(with_masks, masks=with_masks.with_masks() * 9)
    assert "no label" in (no_masks(with_masks, with_masks, other) or "")
    assert no_masks(with_masks, with_masks, with_masks) is None


def test_gates_pass_fail_and_say_why(evidence: Evidence) -> None:
    assert evidence.privacy is not None
    strict = Gates(max_closer_than_real=0.0, min_condition_auc=1.0, max_frechet_ratio=1e-6, require_benefit=True)
    loose = Gates(max_closer_than_real=1.0, min_condition_auc=0.0, max_frechet_ratio=1e6)
    found = check_gates(evidence, loose)
    assert [gate.name for gate in found] == ["max_closer_than_real", "min_condition_auc", "max_frechet_ratio"]
    assert all(gate.passed for gate in found)
    worst = max(space.closer.value for space in evidence.privacy.spaces)
    assert found[0].found == worst
    assert [gate.passed for gate in check_gates(evidence, strict)][2:] == [False, False]
    assert check_gates(evidence, Gates(max_closer_than_real=None, min_condition_auc=None, max_frechet_ratio=None)) == []

    empty = replace(evidence, fidelity=None, privacy=None, condition=None, benefit=None, absent={"privacy": "Too few."})
    for gate in check_gates(empty, strict):
        assert not gate.passed
        assert gate.found is None
    assert "Too few." in check_gates(empty, strict)[0].sentence
