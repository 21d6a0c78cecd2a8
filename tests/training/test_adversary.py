"""The opponent: its pull has the size that was asked for, gradients stay on their side, and nothing else changes."""

import os
import signal

import pytest
import torch
from small_generator import (
    CPU,
    OPPOSED,
    autoencoder_records,
    autoencoder_settings,
    new_autoencoder,
    volume_set,
    weights,
)

from medsynth.config.autoencoder import AutoencoderLoss
from medsynth.errors import DivergenceError, InterruptedRun
from medsynth.seeding import torch_generator
from medsynth.training.adversary import Adversary
from medsynth.training.autoencoder import AutoencoderTask, train_autoencoder
from medsynth.training.loop import train


def noise(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name))


def contest(weight=0.5):
    adversary = Adversary(weight, torch_generator(0, "adversary"))
    real = noise("real", 2, 1, 12, 12, 12)
    made = (0.3 * noise("made", 2, 1, 12, 12, 12)).requires_grad_()
    optimiser = torch.optim.AdamW(adversary.parameters(), lr=1e-3)
    for _ in range(3):  # until it begins to tell
        adversary.contest(made, real, made.square().mean()).opponent.backward()
        optimiser.step()
        optimiser.zero_grad()
    distance = (made - real).abs().mean()
    return adversary, made, distance, adversary.contest(made, real, distance)


def test_the_pull_is_the_share_of_the_reconstructions_own_gradient_that_was_asked_for():
    for weight in (0.1, 0.5):
        adversary, made, distance, found = contest(weight)
        (own,) = torch.autograd.grad(distance, made, retain_graph=True)
        (pull,) = torch.autograd.grad(found.pull, made)
        assert found.pull.item() == 0
        decided = 1 - found.opponent.item()
        assert 0.05 < decided < 1
        assert pull.norm().item() == pytest.approx(weight * decided * own.norm().item(), rel=1e-5)
        with torch.no_grad():  # and it leads to where the discriminator is fooled more
            before, after = adversary.discriminator(made), adversary.discriminator(made - 5 * pull)
        assert after.mean() > before.mean()


def test_each_gradient_stays_on_its_side():
    adversary, made, distance, found = contest()
    (distance + found.pull).backward(retain_graph=True)
    assert all(weight.grad is None for weight in adversary.parameters())
    before = made.grad.clone()
    found.opponent.backward()
    assert torch.equal(made.grad, before)
    assert all(weight.grad.abs().sum() > 0 for weight in adversary.parameters() if weight.ndim > 1)


def test_an_undecided_discriminator_loses_one():
    adversary = Adversary(0.5, torch_generator(0, "adversary"))
    with torch.no_grad():
        adversary.discriminator.head.weight.zero_()
    made = torch.zeros(1, 1, 8, 8, 8, requires_grad=True)
    found = adversary.contest(made, torch.ones_like(made), made.sum())
    assert found.opponent.item() == 1.0
    assert found.adversarial.item() == 0.0
    assert torch.autograd.grad(found.pull, made)[0].eq(0).all()  # nothing to follow


def test_it_learns_to_tell_smooth_from_textured():
    adversary = Adversary(0.5, torch_generator(0, "adversary"))
    optimiser = torch.optim.AdamW(adversary.parameters(), lr=2e-3)
    for step in range(60):
        real = noise(f"real{step}", 2, 1, 12, 12, 12)
        made = torch.nn.functional.avg_pool3d(real.flip(0), 3, 1, 1).requires_grad_()
        optimiser.zero_grad()
        adversary.contest(made, real, made.square().mean()).opponent.backward()
        optimiser.step()
    with torch.no_grad():
        assert adversary.discriminator(noise("new", 4, 1, 12, 12, 12)).mean() > 0.5
        assert adversary.discriminator(made).mean() < -0.5


def test_at_rest_it_changes_nothing(tmp_path):
    plain = autoencoder_records(tmp_path / "plain", 4)
    resting = autoencoder_records(tmp_path / "resting", 4, loss=AutoencoderLoss(adversarial=0.5, adversarial_from=1.0))
    assert [r.losses["adversarial"] for r in resting] == [0.0] * 4
    for a, b in zip(plain, resting, strict=True):
        assert a.losses.items() <= b.losses.items()
        assert a.validation == b.validation


def test_it_comes_in_when_it_should_and_moves_the_network(tmp_path):
    records = autoencoder_records(tmp_path, 6, loss=OPPOSED)
    assert [r.losses["opponent"] > 0 for r in records] == [False] * 3 + [True] * 3  # from the step after 0.4 of six
    alone = autoencoder_records(tmp_path / "alone", 6, loss=AutoencoderLoss(frequency=0.3))
    assert [r.losses["l1"] == a.losses["l1"] for r, a in zip(records, alone, strict=True)] == [True] * 5 + [False]
    assert all(r.losses["frequency"] > 0 for r in records)


def test_interrupted_and_gone_on_with_equals_uninterrupted(tmp_path):
    whole = new_autoencoder()
    expected = autoencoder_records(tmp_path / "whole", 8, whole, loss=OPPOSED)
    plan = autoencoder_settings(steps=8, loss=OPPOSED)
    sets = volume_set(10, "train"), volume_set(5, "validation")
    with pytest.raises(InterruptedRun):
        folder = tmp_path / "parts" / "checkpoints"
        for record in train_autoencoder(new_autoencoder(), *sets, plan, folder=folder, seed=3, device=CPU):
            if record.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
    resumed = new_autoencoder()
    records = autoencoder_records(tmp_path / "parts", 8, resumed, loss=OPPOSED)
    assert [(r.losses, r.validation) for r in records] == [(r.losses, r.validation) for r in expected]
    for name, weight in weights(whole).items():
        assert torch.equal(weights(resumed)[name], weight)


def test_the_last_average_is_kept_and_never_the_discriminator(tmp_path):
    network = new_autoencoder()
    records = autoencoder_records(tmp_path, 6, network, loss=OPPOSED)
    sets = volume_set(10, "train"), volume_set(5, "validation")
    task = AutoencoderTask(network, sets[0].volumes, sets[1].volumes, autoencoder_settings(loss=OPPOSED), 3)
    assert task.validate() == pytest.approx(records[-1].validation)
    assert not [name for name in network.state_dict() if "discriminator" in name]


def test_an_opponent_that_breaks_stops_the_run(tmp_path):
    sets = volume_set(10, "train"), volume_set(5, "validation")
    plan = autoencoder_settings(steps=6, loss=OPPOSED)
    task = AutoencoderTask(new_autoencoder(), sets[0].volumes, sets[1].volumes, plan, 3)
    with torch.no_grad():
        task.opponent.discriminator.head.weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="step 4 of 6: expected a finite"):
        list(train(task, plan.training, folder=tmp_path, identity={}, device=CPU))
