"""Folding, features and the residual block."""

from __future__ import annotations

import math

import pytest
import torch

from medsynth.models.blocks import (
    ChannelNorm,
    Down,
    ResidualBlock,
    Up,
    fold,
    fourier_features,
    remade,
    unfold,
)
from medsynth.seeding import torch_generator


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_unfold_undoes_fold(factor: int) -> None:
    x = torch.randn(2, 8, 4, 12, 3, generator=torch_generator(0, "x"))
    folded = fold(x, factor)
    assert folded.shape == (2, 8 // factor, 4 // factor, 12 // factor, 3 * factor**3)
    assert torch.equal(unfold(folded, factor), x)


def test_fold_keeps_a_cell_together() -> None:
    x = torch.arange(4 * 4 * 4).view(1, 4, 4, 4, 1)
    cell = fold(x, 2)[0, 1, 0, 1]
    assert sorted(cell.tolist()) == sorted(x[0, 2:4, 0:2, 2:4, 0].flatten().tolist())


def test_fourier_features_are_sines_and_cosines() -> None:
    x = torch.tensor([0.3, 1.2], dtype=torch.float64)
    expected = [[f(x0 * w) for f in (math.sin, math.cos) for w in (1, 2, 4)] for x0 in x.tolist()]
    torch.testing.assert_close(fourier_features(x, 3), torch.tensor(expected, dtype=torch.float64))


def test_fourier_features_are_precise_for_half_formats() -> None:
    x = torch.tensor([1.1], dtype=torch.bfloat16)
    torch.testing.assert_close(fourier_features(x, 8).double(), fourier_features(x.double(), 8), rtol=0, atol=1e-4)


def test_channel_norm_looks_at_one_voxel_only() -> None:
    norm = ChannelNorm(6).double()
    x = torch.randn(1, 3, 3, 3, 6, generator=torch_generator(0, "x"), dtype=torch.float64)
    y = norm(x)
    torch.testing.assert_close(y.mean(-1), torch.zeros(1, 3, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(
        y.var(-1, unbiased=False), torch.ones(1, 3, 3, 3, dtype=torch.float64), atol=1e-3, rtol=0
    )
    changed = x.clone()
    changed[0, 0, 0, 0] += torch.arange(6)
    assert torch.equal(norm(changed)[0, 1:], y[0, 1:])


def test_what_is_made_again_is_not_kept_and_gives_the_same() -> None:
    block = ResidualBlock(16, vector_width=5)
    torch.nn.init.normal_(block.mix_out.weight, generator=torch_generator(0, "weights"))
    x = torch.randn(1, 4, 4, 4, 16, generator=torch_generator(0, "x")).requires_grad_()
    vector = torch.ones(1, 5)

    def run(again: bool) -> tuple[torch.Tensor, ...]:
        y = remade(block, x, vector) if again else block(x, vector)
        return (y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()]))

    for once, twice in zip(run(False), run(True), strict=True):
        assert torch.equal(once, twice)
    calls = []
    h = remade(lambda x: block.mix_in(calls.append("norm") or block.norm(x)), x)
    assert calls == ["norm"]
    h.sum().backward()
    assert calls == ["norm", "norm"]
    with torch.no_grad():
        assert torch.equal(remade(block, x, vector), block(x, vector))


def test_a_norm_is_scaled_and_shifted_per_sample() -> None:
    x, norm = torch.randn(2, 2, 2, 2, 4, generator=torch_generator(0, "x")), ChannelNorm(4)
    plain = norm(x)
    scale, shift = torch.tensor([[1.0] * 4 + [3.0] * 4, [0.0] * 8]).chunk(2, -1)
    torch.testing.assert_close(norm(x, scale, shift), torch.stack([2 * plain[0] + 3, plain[1]]))


@pytest.mark.parametrize("channels", [8, 16, 48])
def test_a_fresh_block_is_the_identity_and_learns(channels: int) -> None:
    block = ResidualBlock(channels, vector_width=5)
    x = torch.randn(1, 4, 4, 4, channels, generator=torch_generator(0, "x"))
    vector = torch.ones(1, 5)
    torch.testing.assert_close(block(x, vector), x)
    block(x, vector).square().sum().backward()
    assert block.mix_out.weight.grad is not None
    assert block.mix_out.weight.grad.abs().max() > 0


def test_down_and_up_start_from_their_shortcuts() -> None:
    x = torch.randn(1, 4, 4, 4, 8, generator=torch_generator(0, "x"))
    down, up = Down(8, 16), Up(16, 8)
    for layer in (down, up):
        torch.nn.init.zeros_(layer.mix.weight)
        torch.nn.init.zeros_(layer.mix.bias)
    coarse = down(x)
    assert coarse.shape == (1, 2, 2, 2, 16)
    torch.testing.assert_close(coarse.mean(), x.mean())
    fine = up(coarse)
    assert fine.shape == x.shape
    torch.testing.assert_close(fine.mean(), x.mean())


def test_widths_that_share_no_factor_still_change_grid() -> None:
    x = torch.randn(1, 2, 2, 2, 24, generator=torch_generator(0, "x"))
    assert Up(40, 24)(Down(24, 40)(x)).shape == x.shape
