"""The autoencoder's task: its losses are what they say, training helps, and it resumes exactly."""

import dataclasses
import os
import signal

import pytest
import torch
from small_generator import (
    CPU,
    autoencoder_records,
    autoencoder_settings,
    new_autoencoder,
    volume_set,
    weights,
)

from medsynth.errors import CohortError, InterruptedRun
from medsynth.training.autoencoder import AutoencoderTask, train_autoencoder
from medsynth.training.losses import (
    gradient_difference,
    multi_scale_similarity,
    peak_signal_to_noise,
    structural_similarity,
)


def new_task(seed=3):
    sets = volume_set(10, "train"), volume_set(5, "validation")
    return AutoencoderTask(new_autoencoder(), sets[0].volumes, sets[1].volumes, autoencoder_settings(), seed)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    task = new_task()
    batch = task.draw(0, slice(0, 4))
    losses = task(batch)
    reconstruction, posterior = task.network(batch["volumes"], batch["noise"])
    expected = (
        1.0 * (reconstruction - batch["volumes"]).abs().mean()
        + 0.2 * (1 - multi_scale_similarity(reconstruction, batch["volumes"], stride=2).mean())
        + 0.5 * gradient_difference(reconstruction, batch["volumes"])
        + 1e-4 * posterior.kl().mean()
    )
    torch.testing.assert_close(losses["loss"], expected)
    assert set(losses) == {"loss", "l1", "structural", "gradient", "kl"}


def test_a_batch_is_a_function_of_seed_and_number_and_splits_by_rows():
    whole, again, other = (
        new_task().draw(7, slice(0, 4)),
        new_task().draw(7, slice(0, 4)),
        new_task(4).draw(7, slice(0, 4)),
    )
    parts = [new_task().draw(7, slice(i, i + 2)) for i in (0, 2)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))
        assert not torch.equal(tensor, other[name])


def test_validation_goes_through_the_mean_and_does_not_depend_on_the_batch_size():
    task = new_task()
    figures, (validation,) = task.validate(), task.validation
    with torch.no_grad():
        mean = task.network.decode(task.network.encode(validation).mean).clamp(-1, 1)
    assert figures["psnr"] == pytest.approx(float(peak_signal_to_noise(mean, validation).mean()), rel=1e-5)
    assert figures["ssim"] == pytest.approx(float(structural_similarity(mean, validation).mean()), rel=1e-4)
    task.batch_size = 2
    assert task.validate() == pytest.approx(figures, rel=1e-4)


def test_training_helps_on_volumes_it_has_not_seen(tmp_path):
    network = new_autoencoder()
    records = autoencoder_records(tmp_path, 120, network, validate_every=40, log_every=20)
    checks = [record.validation for record in records if record.validation]
    assert checks[-1]["psnr"] > checks[0]["psnr"] + 2
    assert checks[-1]["ssim"] > checks[0]["ssim"] + 0.05
    assert records[-1].losses["l1"] < 0.5 * records[0].losses["l1"]
    assert not network.training


def test_the_kept_weights_are_those_of_the_best_validation(tmp_path):
    network = new_autoencoder()
    wild = {"learning_rate": 0.3, "optimiser": "adamw", "warmup_steps": 0}
    records = autoencoder_records(tmp_path, 12, network, **wild, validate_every=2)
    sets = volume_set(10, "train"), volume_set(5, "validation")
    task = AutoencoderTask(network, sets[0].volumes, sets[1].volumes, autoencoder_settings(), 3)
    checks = [record.validation["loss"] for record in records if record.validation]
    assert min(checks) < 0.99 * checks[-1]
    assert task.validate()["loss"] == pytest.approx(min(checks), rel=1e-5)


def test_interrupted_and_gone_on_with_equals_uninterrupted(tmp_path):
    whole = new_autoencoder()
    expected = autoencoder_records(tmp_path / "whole", 8, whole)
    sets, plan = (volume_set(10, "train"), volume_set(5, "validation")), autoencoder_settings(steps=8)
    with pytest.raises(InterruptedRun):
        for record in train_autoencoder(
            new_autoencoder(), *sets, plan, folder=tmp_path / "parts" / "checkpoints", seed=3, device=CPU
        ):
            if record.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
    resumed = new_autoencoder()
    records = autoencoder_records(tmp_path / "parts", 8, resumed)
    assert [(r.losses, r.validation) for r in records] == [(r.losses, r.validation) for r in expected]
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight)


def test_other_scans_make_it_another_run(tmp_path):
    first = autoencoder_records(tmp_path, 3)
    plan, validation = autoencoder_settings(steps=3), volume_set(5, "validation")
    changed = volume_set(10, "train", seed=1)
    other = dataclasses.replace(changed.cases[0], sha256="0" * 64)
    changed = dataclasses.replace(changed, cases=(other, *changed.cases[1:]))
    folder = tmp_path / "checkpoints"
    second = list(train_autoencoder(new_autoencoder(), changed, validation, plan, folder=folder, seed=3, device=CPU))
    assert second[0].losses != first[0].losses


def test_an_empty_split_is_refused(tmp_path):
    full, empty = volume_set(4, "train"), volume_set(4, "validation")
    empty = dataclasses.replace(empty, volumes=empty.volumes[:0], cases=())
    with pytest.raises(CohortError, match="in the validation split, found none"):
        list(
            train_autoencoder(
                new_autoencoder(), full, empty, autoencoder_settings(), folder=tmp_path, seed=0, device=CPU
            )
        )
