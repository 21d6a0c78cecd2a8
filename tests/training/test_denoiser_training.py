"""The denoiser's task: batches, withheld conditions, fixed validation, learning, exact resumption."""

import dataclasses
import itertools
import math
import os
import signal

import numpy as np
import pytest
import torch
from small_generator import (
    CPU,
    DECLARATION,
    denoiser_records,
    denoiser_settings,
    new_autoencoder,
    new_denoiser,
    stores,
    weights,
)

from medsynth.diffusion.angle import mix
from medsynth.diffusion.bound import HIGHEST, LOWEST
from medsynth.diffusion.objective import Denoiser
from medsynth.errors import CohortError, DataError, InterruptedRun
from medsynth.models.conditions import CONDITION
from medsynth.training.denoiser import DenoiserTask, train_denoiser
from medsynth.training.pool import Pool


def new_task(folder, *, declaration=None, seed=3, **changes):
    train, validation, statistics = stores(folder, new_autoencoder())
    denoiser = new_denoiser(declaration=declaration)
    return DenoiserTask(denoiser, train, validation, statistics, denoiser_settings(**changes), seed)


def test_a_batch_is_a_function_of_seed_and_number_and_splits_by_rows(tmp_path):
    task = new_task(tmp_path)
    whole, other = task.draw(5, slice(0, 4)), new_task(tmp_path, seed=4).draw(5, slice(0, 4))
    parts = [new_task(tmp_path).draw(5, slice(i, i + 2)) for i in (0, 2)]
    assert set(whole) == {"latents", "noise", "angles", *(CONDITION + name for name in DECLARATION)}
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, torch.cat([part[name] for part in parts]), rtol=0, atol=0, equal_nan=True)
    assert not torch.equal(whole["noise"], other["noise"])
    assert not torch.equal(whole["angles"], other["angles"])


def test_latents_are_normalised_and_go_with_their_own_conditions(tmp_path):
    untouched = {name: {**entry, "dropout": 0.0} for name, entry in DECLARATION.items()}
    task = new_task(tmp_path, declaration=untouched)
    batch, cases = task.draw(2, slice(0, 4)), task.order.batch(2)[1].tolist()
    train, _, statistics = stores(tmp_path / "again", new_autoencoder())
    expected = statistics.normalise(torch.from_numpy(np.array(train.latents))[cases])
    assert torch.equal(batch["latents"], expected)
    rows = [train.rows[i] for i in cases]
    assert batch[CONDITION + "kind_of"].tolist() == [["dark", "bright"].index(row["kind_of"]) for row in rows]
    assert batch[CONDITION + "size_mm"].tolist() == pytest.approx([row["size_mm"] for row in rows])
    assert np.array_equal(batch[CONDITION + "lesion"].numpy(), train.masks[cases])


def test_each_condition_is_withheld_as_often_as_declared(tmp_path):
    shares = {"kind_of": 0.1, "size_mm": 0.3, "lesion": 0.6}
    declared = {name: {**entry, "dropout": shares[name]} for name, entry in DECLARATION.items()}
    task = new_task(tmp_path, declaration=declared)
    counts = dict.fromkeys(declared, 0)
    batches = 250
    for number in range(batches):
        batch = task.draw(number, slice(0, 4))
        counts["kind_of"] += int((batch[CONDITION + "kind_of"] == -1).sum())
        counts["size_mm"] += int(batch[CONDITION + "size_mm"].isnan().sum())
        counts["lesion"] += int((batch[CONDITION + "lesion"].flatten(1) == 255).all(1).sum())
    for name, entry in declared.items():
        deviation = math.sqrt(entry["dropout"] * (1 - entry["dropout"]) / (4 * batches))
        assert counts[name] / (4 * batches) == pytest.approx(entry["dropout"], abs=4 * deviation)


def test_validation_is_the_same_every_time_and_whatever_the_batch_size(tmp_path):
    task = new_task(tmp_path)
    first = task.validate()
    assert task.validate() == first
    task.batch_size = 7
    assert task.validate()["loss"] == pytest.approx(first["loss"], rel=1e-4)
    # An untrained network answers zero, so its loss is the mean square of v, times the weight of the velocity's error.
    power = float(task.validation.take(torch.arange(5))[0].square().mean())
    objective = task.denoiser.objective
    angles = objective.sample_angles(10_000, torch.Generator().manual_seed(0), task.validation.grids[0].voxels)
    of_v = torch.cos(angles).square() + torch.sin(angles).square() * power
    assert first["loss"] == pytest.approx(float((objective.weight(angles) * of_v).mean()), rel=0.05)


def answer(task, denoise):
    """Let the task's denoiser give the clean latent that `denoise(x, angle)` gives."""
    task.denoiser = Answering(denoise, task.denoiser.objective)


class Answering(Denoiser):
    def __init__(self, denoise, objective):
        super().__init__(torch.nn.Identity(), objective)
        self.denoise = denoise

    def clean(self, x, angle, conditions):
        return self.denoise(x, angle)

    def loss(self, x0, conditions, angles, noise):
        return (self.denoise(mix(x0, noise, angles), angles) - x0).square().flatten(1).mean(1)


def test_the_bound_of_validation_is_that_of_its_denoiser(tmp_path):
    task = new_task(tmp_path)
    latents, _ = task.validation.take(torch.arange(5))
    power = float(latents.square().mean())
    answer(task, lambda x, angle: torch.zeros_like(x))
    # the integral of the ratio over its logarithm is the ratio itself: half of 1 / tan^2 between the ends, times the power
    expected = 0.5 * power * (1 / math.tan(LOWEST) ** 2 - 1 / math.tan(HIGHEST) ** 2)
    expected += 0.5 * (math.cos(HIGHEST) ** 2 * (power - 1) - 2 * math.log(math.sin(HIGHEST)))
    expected += 0.5 * math.log(2 * math.pi * math.e * math.tan(LOWEST) ** 2)
    assert task.validate()["bits"] == pytest.approx(expected / math.log(2), rel=0.15)


def test_the_loss_is_told_apart_by_noise_level(tmp_path):
    task = new_task(tmp_path)
    figures = task.validate()
    levels = {name: value for name, value in figures.items() if name.startswith("loss at ")}
    assert list(levels) == [f"loss at {low}-{low + 18} degrees" for low in (0, 18, 36, 54, 72)]
    # An untrained network answers zero, and v is of unit variance: what is left is the weight, the mean of 1 + sin 2 phi.
    edges = [math.pi * i / 5 for i in range(6)]  # of 2 phi
    means = [1 + (math.cos(low) - math.cos(high)) / (high - low) for low, high in itertools.pairwise(edges)]
    assert list(levels.values()) == pytest.approx(means, rel=0.1)
    record, wrong = task._losses, 3.0
    task._losses = lambda batch: record(batch) + wrong * (batch["angles"] > math.radians(72))
    worse = task.validate()
    changed = {name: worse[name] - value for name, value in levels.items()}
    assert list(changed.values()) == pytest.approx([0, 0, 0, 0, wrong], abs=1e-4)


@pytest.mark.parametrize(("keep", "expected"), [("best", 4), ("last", 6)])
def test_the_weights_that_the_settings_name_are_kept(tmp_path, monkeypatch, keep, expected):
    seen = {}

    def validate(task):
        seen[2 * len(seen) + 2] = weights(task.network)
        return {"loss": [3.0, 1.0, 2.0][len(seen) - 1]}

    monkeypatch.setattr(DenoiserTask, "validate", validate)
    denoiser = new_denoiser()
    denoiser_records(tmp_path, 6, denoiser, keep=keep, validate_every=2)
    kept = weights(denoiser.network)
    same = [step for step, held in seen.items() if all(torch.equal(held[name], kept[name]) for name in kept)]
    assert same == [expected]


def test_training_and_validation_are_measured_alike(tmp_path):
    task = new_task(tmp_path)
    every = torch.arange(len(task.validation))
    losses, (part,) = task.losses(task.validation, every), task.validation.grids
    assert float(losses.mean()) == task.validate()["loss"]
    assert torch.equal(losses, task.losses(Pool(part.store, task.declaration, part.statistics), every))


def test_it_learns_and_holds_the_average_of_the_best_step(tmp_path):
    denoiser = new_denoiser()
    records = denoiser_records(tmp_path, 120, denoiser, validate_every=30, log_every=25, batch_size=8)
    checks = [record.validation["loss"] for record in records if record.validation]
    assert checks[-1] < 0.8 * checks[0] < checks[0]
    train, validation, statistics = stores(tmp_path / "again", new_autoencoder())
    task = DenoiserTask(denoiser, train, validation, statistics, denoiser_settings(batch_size=8), 3)
    assert task.validate()["loss"] == pytest.approx(min(checks), rel=1e-5)


def test_interrupted_and_gone_on_with_equals_uninterrupted(tmp_path):
    whole = new_denoiser()
    expected = denoiser_records(tmp_path / "whole", 8, whole)
    train, validation, statistics = stores(tmp_path / "parts" / "latents0", new_autoencoder())
    with pytest.raises(InterruptedRun):
        for record in train_denoiser(
            new_denoiser(),
            train,
            validation,
            denoiser_settings(steps=8),
            statistics=statistics,
            folder=tmp_path / "parts" / "checkpoints",
            seed=3,
            device=CPU,
        ):
            if record.step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
    resumed = new_denoiser()
    records = denoiser_records(tmp_path / "parts", 8, resumed)
    assert [(r.losses, r.validation) for r in records] == [(r.losses, r.validation) for r in expected]
    for name, weight in weights(whole.network).items():
        assert torch.equal(weights(resumed.network)[name], weight)


def test_without_conditions(tmp_path):
    task = new_task(tmp_path, declaration={})
    assert set(task.draw(0, slice(0, 4))) == {"latents", "noise", "angles"}
    assert math.isfinite(task.validate()["loss"])


def test_missing_masks_and_empty_splits_are_refused(tmp_path):
    train, validation, statistics = stores(tmp_path, new_autoencoder())

    def attempt(train, validation):
        options = {"statistics": statistics, "folder": tmp_path / "c", "seed": 0, "device": CPU}
        list(train_denoiser(new_denoiser(), train, validation, denoiser_settings(), **options))

    with pytest.raises(DataError, match="condition lesion: expected a mask with every case of the train"):
        attempt(dataclasses.replace(train, masks=None), validation)
    with pytest.raises(CohortError, match="in the validation split, found none"):
        attempt(train, dataclasses.replace(validation, cases=()))
