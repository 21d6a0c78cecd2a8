"""The denoising network as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from network_inputs import DECLARATION, inputs, saved_values

from medsynth.errors import ConfigError, DataError
from medsynth.models.conditions import Declaration, drop
from medsynth.models.unet import LatentUNet
from medsynth.seeding import torch_generator


def lively(attention: tuple[str, ...] = ("linear",), conditions: Declaration | None = None) -> LatentUNet:
    """A small network in float64 in which no branch is silent."""
    declared = DECLARATION if conditions is None else conditions
    network = LatentUNet(3, 2, (16, 32), 2, attention, 8, 4, declared).double()
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.eval()


def test_a_fresh_network_predicts_zero_and_its_output_layer_learns() -> None:
    network = LatentUNet(3, 2, (16, 32), 1, ("linear",), 8, 4, DECLARATION)
    x, angle, conditions = inputs(2)
    out = network(x.float(), angle.float(), conditions)
    assert out.eq(0).all()
    assert out.shape == x.shape
    (out - 1).square().sum().backward()
    assert network.head.conv.weight.grad is not None
    assert network.head.conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("attention", [("linear",), ("softmax",), ("none",), ("none", "linear")])
def test_gradient_reaches_every_parameter(attention: tuple[str, ...]) -> None:
    network = lively(attention).train()
    x, angle, conditions = inputs(4)
    network(x, angle, conditions).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


@pytest.mark.parametrize("attention", ["linear", "softmax"])
def test_samples_do_not_see_each_other(attention: str) -> None:
    network = lively((attention,))
    x, angle, conditions = inputs(4)
    with torch.no_grad():
        together = network(x, angle, conditions)
        for i in range(4):
            one = {name: t[i : i + 1] for name, t in conditions.items()}
            torch.testing.assert_close(network(x[i : i + 1], angle[i : i + 1], one)[0], together[i])


def test_angle_and_every_condition_change_the_prediction() -> None:
    network = lively()
    x, angle, conditions = inputs(1)
    with torch.no_grad():
        base = network(x, angle, conditions)
        assert (network(x, angle + 0.3, conditions) - base).norm() > 0.01 * base.norm()
        for name in DECLARATION:
            assert (network(x, angle, drop(conditions, [name])) - base).norm() > 0.005 * base.norm(), name


def test_conditions_left_out_are_null() -> None:
    network = lively()
    x, angle, conditions = inputs(2)
    with torch.no_grad():
        torch.testing.assert_close(network(x, angle, {}), network(x, angle, drop(conditions, conditions)))


def test_small_angles_are_told_apart() -> None:
    """Fine samplers end in steps of a few thousandths of a radian; the embedding must resolve them."""
    network = lively()
    x, _, conditions = inputs(1)
    with torch.no_grad():
        near, nearer = (network(x, torch.tensor([a], dtype=torch.float64), conditions) for a in (0.004, 0.002))
    assert (near - nearer).norm() > 1e-3 * near.norm()


@pytest.mark.parametrize("grid", [(2, 2, 2), (8, 4, 10), (12, 6, 2)])
def test_other_volume_sizes_work(grid: tuple[int, int, int]) -> None:
    network = lively()
    x, angle, conditions = inputs(1, grid)
    with torch.no_grad():
        out = network(x, angle, conditions)
    assert out.shape == x.shape
    assert out.isfinite().all()


def test_attention_makes_the_field_of_view_global() -> None:
    x, angle, _ = inputs(1, (48, 2, 2))
    reached = {}
    for kind in ("linear", "none"):
        network = lively((kind,), {})
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, angle, {})[:, :, 0].sum(), leaf)
        reached[kind] = gradient[:, :, -1].abs().max().item()
    assert reached["linear"] > 0
    assert reached["none"] == 0


def test_without_attention_a_shift_shifts_the_prediction() -> None:
    network = lively(("none",), {})
    x, angle, _ = inputs(1, (64, 2, 2))
    with torch.no_grad():
        out, moved = network(x, angle, {}), network(x.roll(2, 2), angle, {})
    inside = slice(24, 40)
    torch.testing.assert_close(moved[:, :, inside], out.roll(2, 2)[:, :, inside])


def test_bfloat16_autocast_is_close_to_float32() -> None:
    network = lively().float()
    x, angle, conditions = inputs(2)
    with torch.no_grad():
        exact = network(x.float(), angle.float(), conditions)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x.float(), angle.float(), conditions)
    assert half.isfinite().all()
    assert (half.float() - exact).std() < 0.05 * exact.std()


def test_files_round_trip_with_the_declaration(tmp_path: Path) -> None:
    network = lively(("linear", "none")).float()
    network.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["conditions"] == DECLARATION
    loaded = LatentUNet.from_pretrained(tmp_path)
    x, angle, conditions = inputs(2)
    with torch.no_grad():
        expected = network(x.float(), angle.float(), conditions)
        assert torch.equal(loaded(x.float(), angle.float(), conditions), expected)


def test_a_single_level_is_a_network_too() -> None:
    network = LatentUNet(3, 2, (16,), 1, ("linear",), 8, 4, {})
    x, angle, _ = inputs(1, (3, 5, 7))
    assert network(x.float(), angle.float(), {}).shape == x.shape


def test_impossible_settings_and_grids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"one per level \(2\); found 3"):
        LatentUNet(3, 2, (16, 32), 1, ("linear", "none", "none"), 8, 4, {})
    x, angle, _ = inputs(1)
    with pytest.raises(DataError, match=r"multiples of 2, found \[4, 5, 4\]"):
        lively()(x[:, :, :, :5], angle, {})


def test_it_learns_to_tell_its_condition() -> None:
    """Two classes with opposite targets: nothing but the condition can tell them apart."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = LatentUNet(1, 2, (16,), 1, ("linear",), 8, 4, {"diagnosis": DECLARATION["diagnosis"]})
    conditions = {"diagnosis": torch.tensor([0, 1] * 4)}
    sign = torch.tensor([1.0, -1.0] * 4).view(8, 1, 1, 1, 1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch_generator(0, "training")
    for _ in range(60):
        x = torch.randn(8, 1, 4, 4, 4, generator=generator)
        loss = (network(x, torch.full((8,), 0.7), conditions) - sign).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05


def test_positions_tell_places_apart_and_travel_in_the_config(tmp_path: Path) -> None:
    """Without positions a constant input with periodic neighbours gives the same answer everywhere inside; with them not."""
    torch.manual_seed(0)
    network = LatentUNet(latent_channels=2, downsampling=2, widths=(16,), blocks=1, head_channels=8, positions=True)
    torch.nn.init.normal_(network.head.conv.weight)
    x, angle = torch.ones(1, 2, 24, 24, 24), torch.tensor([0.7])
    aware = network(x, angle, {})
    weights = network.place.weight.detach().clone()
    torch.nn.init.zeros_(network.place.weight)
    blind = network(x, angle, {})
    inside = (..., slice(8, 16), slice(8, 16), slice(8, 16))
    assert blind[inside].std((2, 3, 4)).max() < 1e-5
    assert aware[inside].std((2, 3, 4)).min() > 1e-3
    network.place.weight.data = weights
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(LatentUNet.from_pretrained(tmp_path)(x, angle, {}), aware)


def test_cross_attention_and_checkpointing_are_settings() -> None:
    declared = {"cross_attention": True}
    plain = LatentUNet(3, 2, (16, 32), 2, ("grouped_linear",), 8, 4, DECLARATION, **declared).double().train()
    again = LatentUNet(3, 2, (16, 32), 2, ("grouped_linear",), 8, 4, DECLARATION, **declared, checkpointing=True)
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    again = again.double().train()
    again.load_state_dict(plain.state_dict())
    x, angle, conditions = inputs(4)
    saved = [saved_values(network, x, angle, conditions) for network in (plain, again)]
    assert saved[1] < 0.7 * saved[0]
    for (name, one), other in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert one.grad is not None
        assert one.grad.abs().max() > 0, name
        torch.testing.assert_close(one.grad, other[1].grad, msg=name)
