"""The patch discriminator: how far it sees, and that it can tell."""

from __future__ import annotations

import torch

from medsynth.models.discriminator import PatchDiscriminator
from medsynth.seeding import torch_generator


def test_a_logit_sees_eighteen_voxels() -> None:
    network = PatchDiscriminator().double()
    x = torch.randn(1, 1, 40, 8, 4, generator=torch_generator(0, "x"), dtype=torch.float64).requires_grad_()
    logits = network(x)
    assert logits.shape == (1, 1, 10, 2, 1)
    (gradient,) = torch.autograd.grad(logits[0, 0, 5, 0, 0], x)
    seen = gradient.abs().amax((0, 1, 3, 4)).nonzero()[:, 0]
    assert seen.max() - seen.min() + 1 == 18


def test_sizes_need_not_divide_and_samples_do_not_see_each_other() -> None:
    network = PatchDiscriminator(width=8)
    x = torch.randn(3, 1, 14, 6, 9, generator=torch_generator(0, "x"))
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (3, 1, 3, 1, 2)
        torch.testing.assert_close(network(x[1:2]), logits[1:2])
