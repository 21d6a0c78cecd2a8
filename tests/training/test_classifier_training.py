"""The classifier: finds a planted difference, finds none where there is none, and is a function of its arguments."""

import math

import pytest
import torch

from medsynth.errors import DataError, DivergenceError
from medsynth.seeding import torch_generator
from medsynth.training.classifier import class_weights, one_cycle, predict, train_classifier

CPU = torch.device("cpu")
SIDE = 16


def scans(count: int, seed: int, *, planted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise; every second volume holds a ball where planted."""
    generator = torch_generator(seed, "scans")
    volumes = torch.randn(count, 1, SIDE, SIDE, SIDE, generator=generator) * 0.3
    labels = torch.arange(count) % 2
    if planted:
        axis = torch.linspace(-1, 1, SIDE)
        ball = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 0.3
        volumes = volumes + torch.where(ball & (labels.view(-1, 1, 1, 1, 1) == 1), 0.6, 0.0)
    return volumes.clamp(-1, 1), labels


def trained(volumes, labels, **changes):
    options = {"classes": 2, "steps": 20, "batch_size": 8, "learning_rate": 3e-3, "seed": 0, "device": CPU}
    return train_classifier(volumes, labels, **{**options, **changes})


def accuracy(network, volumes, labels):
    return float((predict(network, volumes).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("augment", [False, True])
def test_finds_a_planted_difference_on_scans_it_has_not_seen(augment):
    network = trained(*scans(48, 0), augment=augment, steps=40)
    assert accuracy(network, *scans(60, 1)) > 0.9


def test_finds_nothing_where_there_is_nothing():
    network = trained(*scans(48, 0, planted=False), steps=40)
    assert 0.3 < accuracy(network, *scans(100, 1, planted=False)) < 0.7


def test_is_a_function_of_its_arguments():
    volumes, labels = scans(12, 0)
    before = torch.get_rng_state()
    a, b, c = (trained(volumes, labels, steps=4, seed=seed, augment=True) for seed in (1, 1, 2))
    assert torch.equal(predict(a, volumes), predict(b, volumes))
    assert not torch.equal(predict(a, volumes), predict(c, volumes))
    assert torch.equal(torch.get_rng_state(), before)


def test_predictions_are_probabilities_whatever_the_batch_size():
    volumes, labels = scans(11, 0)
    network = trained(volumes, labels, steps=2)
    whole, parts = predict(network, volumes), predict(network, volumes, batch_size=4)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole.sum(1), torch.ones(11))
    assert not network.training


def test_goes_on_from_a_network():
    volumes, labels = scans(24, 0)
    first = trained(volumes, labels, steps=40)
    reached = accuracy(first, volumes, labels)
    second = trained(volumes, labels, steps=3, learning_rate=1e-4, start=first)
    assert second is first
    assert accuracy(second, volumes, labels) >= reached - 0.1


def test_balance_undoes_the_prior():
    weights = class_weights(torch.tensor([0] * 9 + [1]), 2)
    assert weights.tolist() == pytest.approx([10 / 18, 5.0])
    assert class_weights(torch.tensor([0, 0, 2]), 3).tolist() == pytest.approx([0.75, 0.0, 1.5])
    volumes, labels = scans(60, 0, planted=False)
    labels = (torch.arange(60) % 6 == 0).long()  # nothing to learn but the prior of one sixth
    balanced = predict(trained(volumes, labels, steps=12), scans(40, 1, planted=False)[0])[:, 1].mean()
    plain = predict(trained(volumes, labels, steps=12, balance=False), scans(40, 1, planted=False)[0])[:, 1].mean()
    assert float(plain) < 0.3 < float(balanced) < 0.7


def test_the_rate_rises_then_falls():
    factors = [one_cycle(k, 100) for k in range(100)]
    assert factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.01
    assert one_cycle(0, 1) == 1.0


def test_labels_that_do_not_fit_are_refused():
    volumes, labels = scans(6, 0)
    with pytest.raises(DataError, match="one label per volume, found 5 for 6"):
        trained(volumes, labels[:5])
    with pytest.raises(DataError, match=r"at least two classes .*found \[1\]"):
        trained(volumes, torch.ones(6, dtype=torch.int64))
    with pytest.raises(DataError, match="labels 0 to 1"):
        trained(volumes, labels + 1)


def test_divergence_is_named():
    volumes, labels = scans(8, 0)
    volumes[3] = math.nan
    with pytest.raises(DivergenceError, match="diverged at step 1 of 20"):
        trained(volumes, labels)
