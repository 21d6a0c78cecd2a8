"""Turned copies are the same anatomy seen from elsewhere, and a network that is told so does not learn to make them."""

import math

import numpy as np
import pytest
import torch
from small_generator import training

from medsynth.config.augment import Augment
from medsynth.config.denoiser import Denoiser as DenoiserSettings
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.models.unet import LatentUNet
from medsynth.training.denoiser import train_denoiser
from medsynth.training.latents import LatentCase, LatentStatistics, LatentStore
from medsynth.training.variants import Variant, turn_matrix, turned, turned_labels, variants_of

SPACING = (1.0, 0.5, 2.0)
SHAPE = (41, 61, 31)
ANYHOW = (12.0, -7.0, 20.0)
STEPS = {"steps": 240, "batch_size": 16, "learning_rate": 1e-2, "validate_every": 240, "log_every": 240}


def places() -> torch.Tensor:
    """[3, X, Y, Z] millimetres from the centre."""
    axes = [(torch.arange(n) - (n - 1) / 2) * step for n, step in zip(SHAPE, SPACING, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).float()


def inner(volume: torch.Tensor) -> torch.Tensor:
    """What no turn of these has filled from outside the box."""
    return volume[..., 16:25, 22:39, 12:19]


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("axis", range(3))
def test_a_quarter_turn_is_exact(axis):
    volume = torch.rand(1, 9, 9, 9, generator=torch.Generator().manual_seed(1)) - 0.5
    degrees = tuple(90.0 if each == axis else 0.0 for each in range(3))
    expected = np.rot90(volume[0].numpy(), axes=[each for each in range(3) if each != axis][:: 1 if axis != 1 else -1])
    found = turned(volume, degrees, (0.7, 0.7, 0.7))
    torch.testing.assert_close(found[0], torch.from_numpy(expected.copy()), rtol=0, atol=1e-5)


def test_turns_are_about_x_then_y_then_z_and_keep_lengths():
    x, y, z = (turn_matrix(tuple(a if i == axis else 0.0 for i, a in enumerate(ANYHOW))) for axis in range(3))
    whole = turn_matrix(ANYHOW)
    np.testing.assert_allclose(whole, z @ y @ x, atol=1e-12)
    np.testing.assert_allclose(whole @ whole.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(whole) == pytest.approx(1)
    np.testing.assert_allclose(z @ [1, 0, 0], [math.cos(math.radians(20)), math.sin(math.radians(20)), 0])


def test_a_ramp_is_turned_in_millimetres_whatever_the_voxels():
    slope = torch.tensor([0.01, -0.004, 0.008])
    volume = torch.einsum("i,ixyz->xyz", slope, places())[None]
    steeper = torch.from_numpy(turn_matrix(ANYHOW) @ slope.numpy()).float()
    expected = torch.einsum("i,ixyz->xyz", steeper, places())[None]
    torch.testing.assert_close(inner(turned(volume, ANYHOW, SPACING)), inner(expected), rtol=0, atol=2e-3)


def test_a_ball_stays_where_and_as_it_is():
    distance = places().square().sum(0).sqrt()[None]
    soft = torch.exp(-((distance / 6) ** 2))
    torch.testing.assert_close(inner(turned(soft, ANYHOW, SPACING)), inner(soft), rtol=0, atol=5e-3)
    ball = (distance < 12).to(torch.uint8)
    assert dice(turned_labels(ball, ANYHOW, SPACING) == 1, ball == 1) > 0.96


def test_grain_is_not_smoothed_away():
    """Trilinear interpolation halfway between voxels would leave an eighth of the variance, cubic splines most of it."""
    grain = 0.2 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    assert inner(turned(grain, ANYHOW, SPACING)).std() > 0.8 * inner(grain).std()


def test_labels_follow_their_scan_and_no_label_is_invented():
    at = places()
    scan = torch.exp(-((at[0] - 4) ** 2 + (at[1] - 3) ** 2 + at[2] ** 2) / 160)[None]
    labels = torch.where(scan > 0.7, 7, torch.where(scan > 0.4, 3, 0)).to(torch.uint8)
    moved, moved_labels = turned(scan, ANYHOW, SPACING), turned_labels(labels, ANYHOW, SPACING)
    expected = torch.where(moved > 0.7, 7, torch.where(moved > 0.4, 3, 0)).to(torch.uint8)
    assert moved_labels.dtype == torch.uint8 and set(moved_labels.unique().tolist()) == {0, 3, 7}
    for label in (3, 7):
        assert dice(moved_labels == label, expected == label) > 0.93
    null = torch.full_like(labels, 255)
    assert torch.equal(turned_labels(null, ANYHOW, SPACING), null)


def test_voxels_stay_in_range():
    volume = torch.where(places()[0] > 0, 1.0, -1.0)[None]
    assert turned(volume, ANYHOW, SPACING).abs().max() <= 1


def test_a_copy_is_turned_in_a_way_of_its_own_that_nothing_else_touches():
    variants = variants_of(Augment(mirror=("x",), turned_copies=2, turn_degrees=5))
    assert [(each.mirrored, each.copy) for each in variants] == [
        ("", 0),
        ("", 1),
        ("", 2),
        ("x", 0),
        ("x", 1),
        ("x", 2),
    ]
    assert len(variants) == Augment(mirror=("x",), turned_copies=2).variants == 6
    turns = {(each, case): each.turn_of(case, 3) for each in variants for case in ("a", "b")}
    assert all((turn is None) == (each.copy == 0) for (each, _), turn in turns.items())
    told = [turn for turn in turns.values() if turn is not None]
    assert len(set(told)) == len(told) == 8
    assert all(abs(angle) <= 5 for turn in told for angle in turn)
    assert Variant("x", 1, 5.0).turn_of("b", 3) == turns[variants[4], "b"] != Variant("x", 1, 5.0).turn_of("b", 4)


@pytest.mark.parametrize(("told", "sign"), [(True, 1), (False, -1)])
def test_what_only_turned_copies_have_does_not_leak_where_the_network_is_told(tmp_path, told, sign):
    """Scans are bright and their seven copies dark: a planted difference, of which the mean over all is dark."""
    copies = 7
    values = np.concatenate([np.ones(8), -np.ones(8 * copies)])
    latents = (values[:, None, None, None, None] * np.ones((1, 2, 4, 4, 4))).astype(np.float32)
    cases = tuple(
        LatentCase(f"c{i % 8}", f"p{i % 8}", "train", "0" * 64, "", None if i < 8 else (5.0, 0.0, -5.0))
        for i in range(len(values))
    )
    plain = LatentStatistics(torch.zeros(2), torch.ones(2))
    train = LatentStore(latents, None, ({},) * len(cases), cases, "t")
    validation = LatentStore(latents[:8], None, ({},) * 8, cases[:8], "v")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = LatentUNet(2, 4, [16], 1, ["none"], 8, turned=told)
    denoiser = Denoiser(network, Objective({"kind": "flow"}))
    settings = DenoiserSettings(training=training(**STEPS), keep="last")
    for _ in train_denoiser(
        denoiser, train, validation, settings, statistics=plain, folder=tmp_path, seed=1, device=torch.device("cpu")
    ):
        pass
    # From pure noise the best guess is the mean of what the network believes that it was asked for.
    noise = torch.randn(4, 2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        guess = denoiser.clean(noise, torch.full((4,), 1.55), {}).mean()
    assert float(guess) * sign > 0.5
