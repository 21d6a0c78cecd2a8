"""Muon against the singular value decomposition that it approximates, and against what AdamW makes of the same task."""

import math

import pytest
import torch
from torch import nn

from medsynth.config.training import Training
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.training.learner import Learner
from medsynth.training.muon import ADAMW_STEP, Muon, directions, matrices, on_itself

CPU = torch.device("cpu")


def orthogonal(x):
    return directions({"x": x})["x"] if x.shape[1] <= x.shape[2] else orthogonal(x.mT).mT


def exactly(x):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def with_singular_values(values, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))[0]
    return left, right, (left * values) @ right.mT


@pytest.mark.parametrize(("rows", "columns"), [(16, 432), (192, 48), (5, 5), (1, 27)])
def test_singular_values_come_near_one_and_their_vectors_stay(rows, columns):
    rank = min(rows, columns)
    values = torch.logspace(0, -2, rank, dtype=torch.float64)
    left, right, x = with_singular_values(values, rows, columns)
    found = left.mT @ orthogonal(x[None])[0].double() @ right
    assert (found.diagonal() - 1).abs().max() < 0.15
    assert (found - torch.diag(found.diagonal())).abs().max() < 1e-3


def test_directions_without_gradient_get_no_step():
    left, right, x = with_singular_values(torch.ones(3, dtype=torch.float64), 24, 40)
    made = orthogonal(x[None])[0].double()
    assert (made - left @ (left.mT @ made @ right) @ right.mT).abs().max() < 1e-3
    assert torch.linalg.matrix_norm(made, 2) < 1.15


def test_singular_values_below_rounding_never_grow_past_one():
    values = torch.logspace(0, -12, 64, dtype=torch.float64)
    _, _, x = with_singular_values(values, 64, 256)
    assert torch.linalg.matrix_norm(orthogonal(x[None])[0].double(), 2) < 1.15


def test_size_and_transposition_do_not_matter_and_zero_stays():
    x = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(1))
    made = orthogonal(x)
    for scale in (1e-8, 1e8):
        torch.testing.assert_close(orthogonal(scale * x), made, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(orthogonal(x.mT.contiguous()), made.mT, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.cat([orthogonal(each[None]) for each in x]), made, rtol=1e-4, atol=1e-5)
    assert torch.equal(orthogonal(torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))


@pytest.mark.parametrize(("rows", "columns"), [(16, 432), (48, 192), (64, 64)])
@pytest.mark.parametrize("lowest", [-1, -2])
def test_in_bf16_directions_turn_by_a_hundredth(rows, columns, lowest):
    """What a GPU computes, against the singular value decomposition."""
    values = torch.logspace(0, lowest, rows, dtype=torch.float64)
    left, right, x = with_singular_values(values, rows, columns)
    x = x.float()[None]
    found = on_itself(x)[0].double()
    inner = left.mT @ found @ right
    assert (inner.diagonal() - 1).abs().max() < 0.15
    assert (inner - torch.diag(inner.diagonal())).norm() / rows**0.5 < 0.025


def test_in_bf16_nothing_diverges():
    """Far more steps' worth of rounding than one weight sees: singular values down to nothing, and a zero matrix."""
    values = torch.logspace(0, -12, 64, dtype=torch.float64)
    _, _, x = with_singular_values(values, 64, 256)
    for size in (1e-8, 1.0, 1e8):
        assert torch.linalg.matrix_norm(on_itself(size * x.float()[None])[0].double(), 2) < 1.15
    assert torch.equal(on_itself(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_company_does_not_matter():
    """Matrices of one side are multiplied together, whatever their other side, and come back where they belong."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"a": (2, 8, 20), "b": (3, 8, 30), "c": (1, 8, 8), "d": (2, 5, 8), "e": (1, 5, 40)}
    stacks = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    together = directions(stacks)
    assert list(together) == list(stacks)
    for name, stack in stacks.items():
        torch.testing.assert_close(together[name], orthogonal(stack), rtol=1e-4, atol=1e-5)


def test_a_step_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(12, 30, generator=generator))
    start, gradients = weight.detach().clone(), torch.randn(2, 12, 30, generator=generator)
    optimiser = Muon({weight: 1}, lr=0.1, weight_decay=0.01, momentum=0.9)
    expected, kept = start, torch.zeros_like(start)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimiser.step()
        kept = 0.9 * kept + 0.1 * gradient
        direction = exactly(0.1 * gradient + 0.9 * kept)
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * ADAMW_STEP * math.sqrt(30) * direction
    moved = (weight.detach() - start).flatten()
    assert torch.cosine_similarity(moved, (expected - start).flatten(), dim=0) > 0.99
    assert moved.norm().item() == pytest.approx((expected - start).norm().item(), rel=0.1)


def test_groups_of_a_convolution_are_matrices_of_their_own():
    convolution = nn.Conv3d(8, 12, 3, groups=4)
    before = convolution.weight.detach().clone()
    scales = torch.tensor([1.0, 1e-3, 10.0, 1.0]).repeat_interleave(3).view(12, 1, 1, 1, 1)
    convolution.weight.grad = torch.randn(before.shape, generator=torch.Generator().manual_seed(3)) * scales
    Muon(matrices(convolution), lr=1.0, weight_decay=0.0).step()
    step = (convolution.weight.detach() - before).reshape(4, 3, 54)
    wanted = exactly(convolution.weight.grad.reshape(4, 3, 54))
    similar = torch.cosine_similarity(-step.flatten(1), wanted.flatten(1), dim=1)
    assert similar.min() > 0.99
    assert step.flatten(1).norm(dim=1).tolist() == pytest.approx(
        [ADAMW_STEP * math.sqrt(54) * math.sqrt(3)] * 4, rel=0.12
    )


@pytest.mark.parametrize(
    "network", [LatentUNet(widths=(32, 64)), LatentTransformer(width=32, depth=1)], ids=["unet", "dit"]
)
def test_every_weight_of_a_network_has_one_optimiser(network):
    learner = Learner("loss", network, Training(), CPU)
    held = [weight for each in learner.optimisers for group in each.param_groups for weight in group["params"]]
    assert len(held) == len(set(held)) == len(list(network.parameters()))
    muon, adamw = learner.optimisers
    assert all(weight.ndim > 1 for weight in muon.param_groups[0]["params"])
    assert all(weight.ndim <= 1 for weight in adamw.param_groups[1]["params"])
    learner.set_rate(0.5)
    assert {group["lr"] for each in learner.optimisers for group in each.param_groups} == {0.5}


def test_what_is_recorded_never_waits_for_its_device():
    made = directions({"0": torch.ones(2, 3, 8, device="meta"), "1": torch.ones(1, 9, 4, device="meta")})
    assert {name: tuple(x.shape) for name, x in made.items()} == {"0": (2, 3, 8), "1": (1, 9, 4)}


def stepped(device, record, recorder=None):
    generator = torch.Generator().manual_seed(5)
    weights = {nn.Parameter(torch.ones(shape, device=device)): 2 for shape in ((4, 6), (8, 3, 3, 3, 3), (4, 6))}
    optimiser = Muon(weights, lr=0.1, weight_decay=0.1, record=record)
    optimiser._recorder = recorder or optimiser._recorder
    for _ in range(6):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(device)
        optimiser.step()
    return [weight.detach().cpu() for weight in weights]


def test_where_recording_fails_steps_go_on_as_usual():
    asked = []

    def full(stacks):
        asked.append(len(stacks))
        raise torch.OutOfMemoryError("full")

    for found, expected in zip(stepped("cpu", False, full), stepped("cpu", False), strict=True):
        assert torch.equal(found, expected)
    assert asked == [2]


@pytest.mark.gpu
def test_recorded_steps_are_the_steps_themselves():
    for found, expected in zip(stepped("cuda", True), stepped("cuda", False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_frozen_weights_are_left_alone():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[0].requires_grad_(False)
    assert list(matrices(network)) == [network[1].weight]


def test_weak_directions_are_learned_sooner_than_by_adamw():
    """A linear map from inputs whose covariance, turned at random, spans four orders of magnitude."""

    def left_after(optimiser):
        generator = torch.Generator().manual_seed(4)
        turned = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0] * torch.logspace(0, -2, 32)
        inputs = torch.randn(512, 32, generator=generator) @ turned.mT
        wanted = torch.randn(32, 32, generator=generator) / 4
        network = nn.Linear(32, 32, bias=False)
        nn.init.zeros_(network.weight)
        learner = Learner("loss", network, Training(optimiser=optimiser, weight_decay=0.0, clip_norm=1e9), CPU)
        for step in range(200):
            learner.set_rate(0.05 * 0.5 * (1 + math.cos(math.pi * step / 200)))
            (network(inputs) - inputs @ wanted.mT).square().mean().backward()
            learner.step()
        return (network.weight.detach() - wanted).square().mean().item()

    assert left_after("muon") < 0.25 * left_after("adamw")
