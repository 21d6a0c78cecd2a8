"""The average of the weights, judged by diffusers' own."""

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from medsynth.training.ema import Average


def test_equals_diffusers_at_every_step():
    network = nn.Linear(3, 4)
    ours, theirs = Average(network, 0.95), EMAModel(network.parameters(), decay=0.95)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):  # 300: past the warm-up, where the decay is capped
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator))
        ours.update()
        theirs.step(network.parameters())
        for mine, other in zip(ours.weights.values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_lending_is_undone_and_giving_is_not():
    network = nn.Linear(2, 2)
    average = Average(network, 0.9)
    with torch.no_grad():
        network.weight.add_(1.0)
    live, averaged = network.weight.detach().clone(), average.weights["weight"].clone()
    with average.lent():
        assert torch.equal(network.weight, averaged)
    assert torch.equal(network.weight, live)
    average.give()
    assert torch.equal(network.weight, averaged)


def test_frozen_weights_stay_out():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    assert set(Average(network, 0.9).weights) == {"1.weight", "1.bias"}
