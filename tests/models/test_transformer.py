"""The diffusion transformer: the same contract as the U-Net."""

from __future__ import annotations

import pytest
import torch
from network_inputs import DECLARATION, inputs, saved_values

from medsynth.errors import DataError
from medsynth.models.transformer import LatentTransformer, gated_residual
from medsynth.seeding import torch_generator


def lively(patch: int = 1, attention: str = "linear", **settings: bool) -> LatentTransformer:
    """A small network in float64 in which no branch is silent."""
    network = LatentTransformer(3, 2, 32, 2, patch, attention, 8, 4, DECLARATION, **settings).double()
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.eval()


def test_a_fresh_network_predicts_zero_and_its_output_layer_learns() -> None:
    network = LatentTransformer(3, 2, 32, 2, 2, "linear", 8, 4, DECLARATION)
    x, angle, conditions = inputs(2)
    out = network(x.float(), angle.float(), conditions)
    assert out.eq(0).all()
    assert out.shape == x.shape
    (out - 1).square().sum().backward()
    assert network.head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("attention", ["linear", "softmax", "grouped_linear", "grouped_softmax", "none"])
def test_gradient_reaches_every_parameter(attention: str) -> None:
    network = lively(1, attention, positions=True, cross_attention=True).train()
    x, angle, conditions = inputs(4)
    network(x, angle, conditions).square().sum().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


@pytest.mark.parametrize("patch", [1, 2])
def test_samples_do_not_see_each_other(patch: int) -> None:
    network = lively(patch, cross_attention=True)
    x, angle, conditions = inputs(4)
    with torch.no_grad():
        together = network(x, angle, conditions)
        for i in range(4):
            one = {name: t[i : i + 1] for name, t in conditions.items()}
            torch.testing.assert_close(network(x[i : i + 1], angle[i : i + 1], one)[0], together[i])


def test_angle_and_every_condition_change_the_prediction() -> None:
    network = lively()
    x, angle, conditions = inputs(1)
    base = network(x, angle, conditions)
    assert not torch.allclose(network(x, angle + 0.1, conditions), base)
    for name in DECLARATION:
        assert not torch.allclose(network(x, angle, {k: v for k, v in conditions.items() if k != name}), base), name


def test_every_voxel_reaches_every_other() -> None:
    """One block without the convolution's help: places at opposite corners of the grid."""
    network = lively()
    x, angle, conditions = inputs(1, (12, 4, 4))
    x.requires_grad_()
    out = network(x, angle, conditions)
    (gradient,) = torch.autograd.grad(out[0, 0, 0, 0, 0], x)
    assert gradient[0, :, -1, -1, -1].abs().max() > 0


@pytest.mark.parametrize("grid", [(2, 2, 2), (4, 6, 8), (10, 2, 4)])
def test_one_network_serves_every_grid_that_its_patches_divide(grid: tuple[int, int, int]) -> None:
    x, angle, conditions = inputs(1, grid)
    assert lively(2)(x, angle, conditions).shape == x.shape


def test_a_grid_that_the_patches_do_not_divide_is_refused() -> None:
    x, angle, conditions = inputs(1, (4, 5, 4))
    with pytest.raises(DataError, match="multiples of 2"):
        lively(2)(x, angle, conditions)


def test_a_checkpointed_network_has_the_same_values_and_gradients() -> None:
    plain, again = lively().train(), lively(checkpointing=True).train()
    again.load_state_dict(plain.state_dict())
    x, angle, conditions = inputs(2)
    saved = [saved_values(network, x, angle, conditions) for network in (plain, again)]
    assert saved[1] < 0.65 * saved[0]
    for (name, one), other in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_a_gate_in_the_matrix_is_a_gate_of_the_answer() -> None:
    generator = torch_generator(3, "gates")
    x, gate, h = (
        torch.randn(shape, generator=generator).double() for shape in ((2, 3, 4, 2, 6), (2, 6), (2, 3, 4, 2, 5))
    )
    for bias in (True, False):
        layer = torch.nn.Linear(5, 6, bias=bias).double()
        given = [value.requires_grad_() for value in (x, gate, h)] + [*layer.parameters()]
        plain = x + gate[:, None, None, None] * layer(h)
        merged = gated_residual(x, layer, gate, h)
        torch.testing.assert_close(merged, plain)
        gradients = (torch.autograd.grad(out.square().sum(), given) for out in (merged, plain))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)


def test_a_block_keeps_its_two_inputs_and_what_the_convolution_gave() -> None:
    """And nothing else as large as the volume."""
    x, angle, conditions = inputs(2, (8, 8, 8))
    networks = (LatentTransformer(3, 2, 32, depth, 1, "linear", 8, 4, DECLARATION) for depth in (1, 2))
    shallow, deep = (saved_values(network, x.float(), angle.float(), conditions) for network in networks)
    volume = 2 * 8**3 * 32
    assert 3 * volume <= deep - shallow < 3.1 * volume


def test_it_comes_back_from_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    network = lively(2, "grouped_linear", positions=True).float()
    network.save_pretrained(tmp_path)
    again = LatentTransformer.from_pretrained(tmp_path)
    x, angle, conditions = inputs(1)
    torch.testing.assert_close(
        again(x.float(), angle.float(), conditions), network(x.float(), angle.float(), conditions), rtol=0, atol=1e-5
    )
