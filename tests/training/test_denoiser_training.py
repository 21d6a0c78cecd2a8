"""The denoiser's task: batches, withheld conditions, fixed validation, learning, exact resumption."""

import dataclasses
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

from medsynth.errors import CohortError, DataError, InterruptedRun
from medsynth.training.denoiser import CONDITION, DenoiserTask, train_denoiser


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
    batch, cases = task.draw(2, slice(0, 4)), task.order.batch(2).tolist()
    expected = task.statistics.normalise(torch.from_numpy(np.array(task.store.latents))[cases])
    assert torch.equal(batch["latents"], expected)
    rows = [task.store.rows[i] for i in cases]
    assert batch[CONDITION + "kind_of"].tolist() == [["dark", "bright"].index(row["kind_of"]) for row in rows]
    assert batch[CONDITION + "size_mm"].tolist() == pytest.approx([row["size_mm"] for row in rows])
    assert np.array_equal(batch[CONDITION + "lesion"].numpy(), task.store.masks[cases])


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
    # an untrained network answers zero, so its loss is the target's mean square: that of noise minus clean latent
    validation = task.statistics.normalise(task.validation.take(range(5))[0])
    assert first["loss"] == pytest.approx(1 + float(validation.square().mean()), rel=0.05)


def test_it_learns_and_holds_the_average_of_the_last_step(tmp_path):
    denoiser = new_denoiser()
    records = denoiser_records(tmp_path, 90, denoiser, validate_every=30, log_every=25, batch_size=8)
    checks = [record.validation["loss"] for record in records if record.validation]
    assert checks[-1] < 0.8 * checks[0] < checks[0]
    train, validation, statistics = stores(tmp_path / "again", new_autoencoder())
    task = DenoiserTask(denoiser, train, validation, statistics, denoiser_settings(batch_size=8), 3)
    assert task.validate()["loss"] == pytest.approx(checks[-1], rel=1e-5)


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
