"""The downstream classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsynth.errors import ConfigError
from medsynth.models.classifier import build_classifier
from medsynth.seeding import torch_generator


@pytest.mark.parametrize(("kind", "size"), [("small", 16), ("small", 28), ("resnet10", 28), ("densenet121", 32)])
def test_logits_per_class(kind: str, size: int) -> None:
    network = build_classifier(kind, 3, seed=0).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 1, size, size, size)).shape == (2, 3)


def test_small_has_a_few_hundred_thousand_parameters() -> None:
    assert 2e5 < sum(p.numel() for p in build_classifier("small", 2, seed=0).parameters()) < 7e5


@pytest.mark.parametrize("kind", ["small", "resnet10", "densenet121"])
def test_no_batch_statistics_are_left(kind: str) -> None:
    network = build_classifier(kind, 2, seed=0)
    assert not list(network.buffers())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_samples_do_not_see_each_other_even_in_training() -> None:
    network = build_classifier("small", 2, seed=0).train()
    x = torch.randn(4, 1, 16, 16, 16, generator=torch_generator(0, "x"))
    with torch.no_grad():
        torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-4, atol=1e-5)


def test_the_seed_alone_decides_and_global_randomness_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    one = build_classifier("small", 2, seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    two, three = (build_classifier("small", 2, seed=s).state_dict() for s in (5, 6))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv1.weight"], three["conv1.weight"])


def test_it_learns_a_planted_difference() -> None:
    """A bright ball against a bright cube shell: shape, at the same mean intensity."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij")
    radius = sum(a.square() for a in axes).sqrt()
    shapes = torch.stack([(radius < 0.6).float(), ((radius > 0.8) & (radius < 0.925)).float()])
    shapes = shapes / shapes.mean((1, 2, 3), keepdim=True)
    labels = torch.tensor([0, 1] * 8)
    generator = torch_generator(0, "noise")

    def batch() -> torch.Tensor:
        return shapes[labels][:, None] + torch.randn(16, 1, 16, 16, 16, generator=generator)

    network = build_classifier("small", 2, seed=0)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(batch()), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert (network.eval()(batch()).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(("kind", "classes"), [("vgg", 2), ("small", 1)])
def test_impossible_settings_are_refused(kind: str, classes: int) -> None:
    with pytest.raises(ConfigError, match="expected"):
        build_classifier(kind, classes, seed=0)
