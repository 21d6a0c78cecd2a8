"""Data of which the ideal denoiser is known in closed form: every voxel from N(MEAN, STD^2)."""

import math
from functools import partial
from unittest import mock

import torch

from medsynth.diffusion.angle import per_sample
from medsynth.diffusion.samplers import STOCHASTIC, sample
from medsynth.seeding import torch_generator

MEAN, STD = 0.3, 0.5


def exact(x, angle, std=STD):
    """E[x0 | x] of which x = cos x0 + sin noise."""
    angle = per_sample(angle, x).double()
    cos, sin = torch.cos(angle), torch.sin(angle)
    gain = cos * std**2 / (cos**2 * std**2 + sin**2)
    return (MEAN + gain * (x - cos * MEAN)).to(x.dtype)


def generators(count, seed=0):
    return [torch_generator(seed, "sampler", i) for i in range(count)]


def law(sampler, evaluations, shift=1.0, std=STD):
    """Mean and standard deviation of the sampler's results for data of deviation `std`, without sampling error.

    With the exact score every step is affine in x and in the noise that is drawn on the way, so the result is
    N(b, sum of a_i^2), with a_0 for the noise at the start and one further a_i for each draw. They are read from a batch in
    which the first sample has no noise at all and each other one a single 1 in place of one normal number.
    """
    ideal = partial(exact, std=std)
    return law_of(lambda noise, made: sample(ideal, noise, sampler, evaluations, made, shift=shift),
                  evaluations if sampler in STOCHASTIC else 0)  # fmt: skip


def law_of(run, draws):
    """The same for any `run(noise, generators)` that draws at most `draws` times per sample."""
    batch = 2 + draws
    calls = 0

    def one_at_a_time(*shape, dtype=torch.float32, **kwargs):
        nonlocal calls
        draw, member = divmod(calls, batch)
        calls += 1
        return torch.full(torch.Size(*shape), float(member == 2 + draw), dtype=dtype)

    start = torch.zeros(batch, 1, 1, 1, 1)
    start[1] = 1
    with mock.patch("torch.randn", one_at_a_time):
        out = run(start, generators(batch)).flatten().double()
    assert calls <= draws * batch
    return out[0].item(), math.hypot(*(out[1:] - out[0]).tolist())
