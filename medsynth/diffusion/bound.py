"""The variational bound: how many bits per latent dimension a denoiser needs for latents that it has not seen.

Any function (x, angle) -> clean latent defines a generator whose likelihood has a bound in closed form, the continuous-time
bound of Kingma 2021 (Variational Diffusion Models). With r = cos^2 / sin^2, the ratio of signal to noise, in nats:

    prior            KL of cos x0 + sin noise at the highest angle from a standard normal         (eq. 11, first term)
    reconstruction   that of x / cos with deviation tan at the lowest angle, per dimension        (eq. 11, second term)
                     1/2 log(2 pi e tan^2)
    diffusion        1/2 integral of r |x0 - clean(x, angle)|^2 over log r                        (eq. 18 and 19)

It knows nothing of objectives and weights, so that models of all objectives can be compared, and it is never below the
entropy of the data; only the posterior mean reaches that, up to tan^2 of the lowest angle over twice the data's variance in nats.
That excess differs among schedules: for dimensions of deviation 0.1 it is 0.06 bits with `scaled_linear` and 0.02 with flow.

The integral is a mean over levels that lie evenly in u = log(1 + r) = -2 log sin. For unit white noise the integrand is
then the same at every level, so that an estimate varies little and a few levels do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medsynth.diffusion.angle import Denoise, mix, per_sample

LOWEST = math.atan(0.01)
HIGHEST = math.atan(100.0)
"""Where the bound ends unless training ended before: noise of a hundredth of the signal, and the other way round."""


def bound_angles(count: int, lowest: float, highest: float, generator: torch.Generator) -> Tensor:
    """Angles [count] float32 to estimate the bound at: one in each of `count` even steps of -log sin, in random order."""
    top, bottom = -math.log(math.sin(lowest)), -math.log(math.sin(highest))
    steps = torch.rand(count, generator=generator, dtype=torch.float64)
    steps += torch.randperm(count, generator=generator)
    return torch.asin(torch.exp(-(bottom + (top - bottom) * steps / count))).float()


@torch.no_grad()
def variational_bound(
    denoise: Denoise, x0: Tensor, noise: Tensor, angles: Tensor, lowest: float, highest: float
) -> Tensor:
    """Bits per dimension of each sample, [B] float32; their mean over samples and angles is the estimate.

    x0, noise: [B, ...] of unit scale; angles: [B] from `bound_angles` with the same ends, 0 < lowest < highest < pi/2.
    """
    x0, noise = x0.float(), noise.float()
    angles = angles.to(x0.device)
    error = (denoise(mix(x0, noise, angles), angles).float() - x0) / torch.sin(per_sample(angles, x0))
    span = 2 * math.log(math.sin(highest) / math.sin(lowest))
    diffusion = 0.5 * span * error.square().flatten(1).mean(1)  # r d(log r) = (1 + r) du = du / sin^2
    left, power = math.cos(highest) ** 2, math.sin(highest) ** 2
    prior = 0.5 * (left * x0.square().flatten(1).mean(1) + power - 1 - math.log(power))
    reconstruction = 0.5 * math.log(2 * math.pi * math.e * math.tan(lowest) ** 2)
    return (prior + diffusion + reconstruction) / math.log(2)
