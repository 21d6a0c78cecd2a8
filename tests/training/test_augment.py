"""Augmentation: drawn then applied, and each number does what its name says."""

import dataclasses
import math

import pytest
import torch

from medsynth.training.augment import Augmentation, affine_matrices, apply_augmentation, draw_augmentation


def still(shape) -> Augmentation:
    b = shape[0]
    return Augmentation(
        flips=torch.ones(b, 3),
        turns=torch.zeros(b, 3),
        shifts=torch.zeros(b, 3),
        scales=torch.ones(b),
        gains=torch.ones(b),
        offsets=torch.zeros(b),
        noise=torch.zeros(shape),
    )


def volumes(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_nothing_drawn_changes_nothing():
    x = volumes(2, 1, 6, 8, 10)
    torch.testing.assert_close(apply_augmentation(x, still(x.shape)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_is_a_flip_of_its_axis_and_sample(axis):
    x = volumes(2, 1, 6, 8, 10)
    drawn = still(x.shape)
    drawn.flips[1, axis] = -1
    result = apply_augmentation(x, drawn)
    torch.testing.assert_close(result[0], x[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result[1], x[1].flip(axis + 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_quarter_turn_is_a_rotation_even_in_a_box_with_unequal_edges(axis):
    shape = [8, 8, 8]
    shape[axis] = 5  # the axis itself may differ
    x = volumes(1, 1, *shape)
    drawn = still(x.shape)
    drawn.turns[0, axis] = math.pi / 2
    planes = [2 + (axis + 1) % 3, 2 + (axis + 2) % 3]
    result = apply_augmentation(x, drawn)
    candidates = [torch.rot90(x, k, planes) for k in (1, 3)]
    assert min(float((result - c).abs().max()) for c in candidates) < 1e-4


def test_turning_an_uneven_box_keeps_angles_and_lengths():
    drawn = draw_augmentation(torch.Size([5, 1, 8, 12, 20]), torch.Generator().manual_seed(0), ())
    drawn = dataclasses.replace(drawn, scales=torch.ones(5))
    linear = affine_matrices(drawn, torch.Size([8, 12, 20]))[:, :, :3]
    edges = torch.tensor([20.0, 12.0, 8.0])  # X, Y, Z in affine_grid's order
    in_voxels = edges[None, :, None] * linear / edges[None, None, :]
    torch.testing.assert_close(in_voxels @ in_voxels.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_a_shift_moves_by_its_share_of_the_axis():
    x = volumes(1, 1, 10, 8, 6)
    drawn = still(x.shape)
    drawn.shifts[0, 0] = 0.2  # two of ten voxels
    result = apply_augmentation(x, drawn)
    torch.testing.assert_close(result[:, :, :8], x[:, :, 2:], atol=1e-4, rtol=0)


def test_scale_gain_offset_and_noise():
    ball = torch.linspace(-1, 1, 21)
    ball = (ball[:, None, None] ** 2 + ball[:, None] ** 2 + ball**2 < 0.3).float()[None, None]
    drawn = dataclasses.replace(still(ball.shape), scales=torch.tensor([1.1]))
    assert float(apply_augmentation(ball, drawn).sum() / ball.sum()) == pytest.approx(1.1**3, rel=0.05)
    drawn = dataclasses.replace(
        still(ball.shape), gains=torch.tensor([0.5]), offsets=torch.tensor([0.1]), noise=torch.full(ball.shape, 0.2)
    )
    torch.testing.assert_close(apply_augmentation(ball, drawn), ball * 0.5 + 0.3)


def test_draws_are_bounded_seeded_and_leave_axes_out():
    shape = torch.Size([400, 1, 4, 4, 4])
    a, b = (draw_augmentation(shape, torch.Generator().manual_seed(5), (1, 2)) for _ in range(2))
    assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    assert bool((a.flips[:, 0] == 1).all())
    assert 0.4 < float((a.flips[:, 1] < 0).float().mean()) < 0.6
    assert float(a.turns.abs().max()) <= math.radians(10)
    assert float(a.shifts.abs().max()) <= 0.05
    assert 0.9 <= float(a.scales.min()) < float(a.scales.max()) <= 1.1
    x = volumes(400, 1, 4, 4, 4)
    assert float(apply_augmentation(x, a).abs().max()) <= 1
