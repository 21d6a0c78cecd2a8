"""A patch discriminator as part of an autoencoder's loss: late, and never stronger than the reconstruction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.models.discriminator import PatchDiscriminator
from medsynth.training.devices import summed_over_processes

TINY = 1e-12
"""Of a squared norm of gradients; below it there is no direction to follow."""


class Contest(NamedTuple):
    """What a discriminator makes of a batch of reconstructions; scalars."""

    pull: Tensor
    """To be added to the network's loss: its value is zero, its gradient is toward what passes for real."""
    opponent: Tensor
    """The discriminator's own loss; its gradient reaches the discriminator alone."""
    adversarial: Tensor
    """Minus the mean logit of the reconstructions: below zero where they pass for real. To be looked at only."""


class Adversary(nn.Module):
    """Real against reconstructed patches, by hinge losses (Lim 2017, eqs. 11 and 12).

    The pull on the network is scaled to `weight` times the gradient that the reconstruction loss has at the same
    voxels, times how far the discriminator is from undecided: one that cannot tell has nothing to teach. That is the
    adaptive weight of Esser 2021, eq. 7, taken at the reconstruction instead of at the last layer's weights, whose
    gradient is linear in it: no layer needs to be named, and a discriminator that wins cannot pull harder.
    """

    def __init__(self, weight: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = weight
        self.discriminator = PatchDiscriminator()
        _draw_weights(self.discriminator, generator)

    def contest(self, reconstruction: Tensor, volumes: Tensor, distance: Tensor) -> Contest:
        """`distance`: the reconstruction loss as a scalar that hangs on `reconstruction` [B, C, X, Y, Z]."""
        made = reconstruction.detach().requires_grad_()
        logits, real = self.discriminator(made), self.discriminator(volumes)
        (toward_real,) = torch.autograd.grad(-logits.mean(), made, retain_graph=True)
        (toward_same,) = torch.autograd.grad(distance, reconstruction, retain_graph=True)
        opponent = (F.relu(1 - real).mean() + F.relu(1 + logits).mean()) / 2
        figures = torch.stack(
            [toward_same.square().sum(), toward_real.square().sum(), opponent, torch.ones_like(opponent)]
        )
        same, passing, losses, processes = summed_over_processes(figures)
        decided = (1 - losses / processes).clamp(0, 1)
        direction = self.weight * decided * torch.sqrt(same / passing.clamp_min(TINY)) * toward_real
        return Contest(
            pull=_with_gradient(reconstruction, direction),
            opponent=opponent,
            adversarial=-logits.mean().detach(),
        )

    def rest(self, like: Tensor) -> Contest:
        """The same before the contest begins: zeros, in which every weight takes part as several processes need it."""
        nothing = sum((0 * weight.sum() for weight in self.discriminator.parameters()), like.new_zeros(()))
        return Contest(like.new_zeros(()), nothing, like.new_zeros(()))


def _with_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """A scalar of value zero whose gradient by x is `gradient`."""
    product = (x * gradient.detach()).sum()
    return product - product.detach()


@torch.no_grad()
def _draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Convolutions N(0, 0.02^2) and no offset (Isola 2017, sec. 6.2), from `generator`."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            layer.weight.normal_(0.0, 0.02, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
