"""Linear attention against its quadratic twin, at its limits, and inside its block."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medsynth.errors import ConfigError
from medsynth.models import linear_attention as linear_attention_module
from medsynth.models.attention import Attention3D, CrossAttention, softmax_attention
from medsynth.models.linear_attention import (
    linear_attention,
    quadratic_attention,
    rms_norm,
    rotary_turns,
    rotate,
)
from medsynth.seeding import torch_generator

BFLOAT16_ROUNDOFF = 2.0**-8


def features(n: int, m: int, d: int, e: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch_generator(seed, "features")
    q = torch.randn(2, 3, n, d, generator=generator, dtype=torch.float64).relu()
    k = torch.randn(2, 3, m, d, generator=generator, dtype=torch.float64).relu()
    v = torch.randn(2, 3, m, e, generator=generator, dtype=torch.float64)
    return q, k, v


def randomise(module: torch.nn.Module, std: float = 0.2) -> None:
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


@pytest.mark.parametrize(("n", "m", "d", "e"), [(1, 1, 1, 1), (7, 7, 3, 5), (13, 29, 8, 8), (101, 101, 5, 3)])
def test_values_and_gradients_equal_the_quadratic_twin(n: int, m: int, d: int, e: int) -> None:
    inputs = [x.requires_grad_() for x in features(n, m, d, e)]
    fast, naive = linear_attention(*inputs), quadratic_attention(*inputs)
    upstream = torch.randn(fast.shape, generator=torch_generator(0, "upstream"), dtype=torch.float64)
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)
    for got, expected in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(naive, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("piece", [1, 4, 100])
def test_normalised_pieces_equal_the_quadratic_twin(piece: int, turned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tokens at a time, queries that share keys, features made inside: values and every input's gradient."""
    monkeypatch.setattr(linear_attention_module, "CPU_TOKENS", piece)
    generator = torch_generator(0, "pieces")
    shapes = [(2, 3, 4, 15, 8), (2, 3, 1, 15, 8), (2, 3, 1, 15, 5), (8,), (8,)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    q, k, v, *gains = inputs
    turns = rotary_turns((3, 1, 5), 8, torch.device("cpu")).double() if turned else None
    fast, naive = (f(q, k, v, turns, (gains[0], gains[1])) for f in (linear_attention, quadratic_attention))
    upstream = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)
    for got, expected in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(naive, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_gradients_are_the_derivatives() -> None:
    q, k, v = (x[:1, :1].clone().requires_grad_() for x in features(5, 7, 3, 2))
    with torch.no_grad():
        q += 0.1  # off the kink of the clamp, where differences have no meaning
        k += 0.1
    assert torch.autograd.gradcheck(linear_attention, (q, k, v))


def test_every_output_is_an_average_of_the_values() -> None:
    q, k, v = features(31, 57, 8, 4)
    out = linear_attention(q + 0.01, k + 0.01, v)
    assert (out <= v.amax(-2, keepdim=True) + 1e-12).all()
    assert (out >= v.amin(-2, keepdim=True) - 1e-12).all()
    constant = torch.full_like(v, 3.5)
    torch.testing.assert_close(linear_attention(q + 0.01, k + 0.01, constant), torch.full_like(out, 3.5))


@pytest.mark.parametrize("silent", ["query", "keys", "both"])
def test_rows_without_features_give_zero_and_finite_gradients(silent: str) -> None:
    q, k, v = features(6, 9, 4, 4)
    if silent in ("query", "both"):
        q[:, :, 2] = 0
    if silent in ("keys", "both"):
        k.zero_()
    inputs = [x.float().requires_grad_() for x in (q, k, v)]
    out = linear_attention(*inputs)
    assert out[:, :, 2].eq(0).all() if silent != "keys" else out.eq(0).all()
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bfloat16_error_is_within_the_derived_bound() -> None:
    for seed in range(5):
        q, k, v = features(63, 511, 16, 16, seed)
        exact = linear_attention(q, k, v)
        rounded = linear_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert rounded.dtype == torch.bfloat16
        bound = 6 * BFLOAT16_ROUNDOFF * v.abs().amax((-2, -1))[..., None, None]
        assert ((rounded.double() - exact).abs() <= bound * (1 + 8 * BFLOAT16_ROUNDOFF)).all()


def test_sums_stay_in_float32_under_autocast() -> None:
    """Ones among 262 144 tokens: a bfloat16 running sum would stop at 256, a float16 one at infinity."""
    n = 262_144
    q = torch.ones(1, 1, n, 1)
    k = torch.ones(1, 1, n, 1)
    v = torch.linspace(0, 1, n).view(1, 1, n, 1)
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(q, k, v)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.full_like(out, 0.5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_large_activations_do_not_overflow_at_262144_tokens(dtype: torch.dtype) -> None:
    n = 262_144
    size = 60_000.0 if dtype == torch.float16 else 1e25
    generator = torch_generator(0, "large")
    q, k = (torch.rand(1, 1, n, 4, generator=generator).mul(1e4).to(dtype).requires_grad_() for _ in range(2))
    v = torch.full((1, 1, n, 4), size, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_attention(q, k, v)
    torch.testing.assert_close(out, v.detach(), rtol=0.01, atol=0)
    gradients = torch.autograd.grad((out.float() / size).sum(), (q, k, v))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("heads_of_keys", [4, 1])
def test_softmax_averages_262144_large_values_in_bfloat16(heads_of_keys: int) -> None:
    """16 queries instead of as many as keys, which would take a CPU minutes; they do not see each other."""
    n = 262_144
    generator = torch_generator(0, "softmax")
    q = (1e15 * torch.randn(1, 4, 16, 8, generator=generator)).bfloat16().requires_grad_()
    k = (1e15 * torch.randn(1, 1, 1, 8, generator=generator)).expand(1, heads_of_keys, n, 8).bfloat16()
    v = (1e25 * torch.linspace(0, 1, n))[:, None].expand(1, heads_of_keys, n, 8).bfloat16()
    k, v = k.requires_grad_(), v.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = softmax_attention(q, k, v, None, (torch.ones(8), torch.ones(8)))
    torch.testing.assert_close(out.float(), torch.full((1, 4, 16, 8), 0.5e25), rtol=0.01, atol=0)
    gradients = torch.autograd.grad((out.float() / 1e25).sum(), (q, k, v))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_cross_attention_stays_finite_at_262144_voxels_in_bfloat16() -> None:
    block = CrossAttention(8, 4, 6)
    randomise(block)
    generator = torch_generator(0, "x")
    x = (1e15 * torch.randn(1, 64, 64, 64, 8, generator=generator)).requires_grad_()
    tokens = (1e15 * torch.randn(1, 5, 6, generator=generator)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x, tokens)
    gradients = torch.autograd.grad(out.float().mean(), (x, tokens))
    assert all(found.isfinite().all() for found in (out, *gradients))


def test_rms_norm_makes_unit_rows_and_survives_zero() -> None:
    x = torch.randn(4, 8, generator=torch_generator(0, "rms")) * 1e6
    torch.testing.assert_close(rms_norm(x, torch.ones(8)).square().mean(-1), torch.ones(4))
    zero = torch.zeros(1, 8, requires_grad=True)
    rms_norm(zero, torch.ones(8)).sum().backward()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_attention_moves_with_the_order_of_voxels(kind: str) -> None:
    block = Attention3D(16, 8, kind).double()
    randomise(block)
    x = torch.randn(2, 3, 5, 4, 16, generator=torch_generator(0, "x"), dtype=torch.float64)
    flipped = x.flip(1).transpose(2, 3)
    torch.testing.assert_close(block(flipped), block(x).flip(1).transpose(2, 3))


def test_softmax_kind_is_scaled_dot_product_attention() -> None:
    block = Attention3D(8, 4, "softmax").double()
    randomise(block)
    x = torch.randn(1, 2, 3, 1, 8, generator=torch_generator(0, "x"), dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).view(6, 3, 2, 4).permute(1, 2, 0, 3)
    q, k = rms_norm(q, block.q_gain), rms_norm(k, block.k_gain)
    mixed = ((q @ k.mT) / math.sqrt(4)).softmax(-1) @ v
    expected = x + block.out(mixed.transpose(0, 1).reshape(1, 2, 3, 1, 8))
    torch.testing.assert_close(block(x), expected)


def test_linear_kind_is_the_twin_in_its_block() -> None:
    block = Attention3D(8, 4, "linear").double()
    randomise(block)
    x = torch.randn(1, 3, 3, 3, 8, generator=torch_generator(0, "x"), dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).view(1, 27, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q, k = (rms_norm(q, block.q_gain).relu(), rms_norm(k, block.k_gain).relu())
    expected = x + block.out(quadratic_attention(q, k, v).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_rotary_positions_turn_queries_and_keys_in_their_block(kind: str) -> None:
    block = Attention3D(16, 8, kind, rotary=True).double()
    randomise(block)
    x = torch.randn(1, 3, 2, 4, 16, generator=torch_generator(0, "x"), dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).view(1, 24, 3, 2, 8).permute(2, 0, 3, 1, 4)
    turns = rotary_turns((3, 2, 4), 8, torch.device("cpu")).double()
    q, k = rms_norm(q, block.q_gain), rms_norm(k, block.k_gain)
    if kind == "linear":
        mixed = quadratic_attention(q.relu(), k.relu(), v, turns)
    else:
        mixed = ((rotate(q, turns) @ rotate(k, turns).mT) / math.sqrt(8)).softmax(-1) @ v
    expected = x + block.out(mixed.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-6)  # the block's turns are float32
    assert not torch.allclose(block(x.flip(1)), block(x).flip(1), atol=1e-3), "places count, and not only their order"


def test_none_passes_the_volume_on() -> None:
    block = Attention3D(8, 8, "none")
    x = torch.randn(1, 2, 2, 2, 8, generator=torch_generator(0, "x"))
    assert block(x) is x
    assert not list(block.parameters())


def test_a_fresh_block_is_the_identity() -> None:
    x = torch.randn(1, 2, 3, 2, 8, generator=torch_generator(0, "x"))
    torch.testing.assert_close(Attention3D(8, 8, "linear")(x), x)


def test_64_cubed_voxels_in_bfloat16_stay_finite() -> None:
    block = Attention3D(8, 8, "linear")
    randomise(block)
    x = (1e15 * torch.randn(1, 64, 64, 64, 8, generator=torch_generator(0, "x"))).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    (gradient,) = torch.autograd.grad(out.float().mean(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("channels", "heads", "kind"), [(8, 3, "linear"), (9, 3, "linear"), (8, 8, "cosine")])
def test_impossible_settings_are_refused(channels: int, heads: int, kind: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Attention3D(channels, heads, kind)


@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 3, 5), (7, 1, 3)])
def test_rotated_values_and_gradients_equal_the_quadratic_twin(grid: tuple[int, int, int]) -> None:
    n = math.prod(grid)
    inputs = [x.requires_grad_() for x in features(n, n, 16, 5)]
    turns = rotary_turns(grid, 16, torch.device("cpu")).double()
    fast, naive = linear_attention(*inputs, turns), quadratic_attention(*inputs, turns)
    upstream = torch.randn(fast.shape, generator=torch_generator(0, "upstream"), dtype=torch.float64)
    torch.testing.assert_close(fast, naive, rtol=0, atol=1e-9)
    for got, expected in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(naive, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


def test_rotated_products_depend_on_the_difference_of_places_alone() -> None:
    grid = (4, 5, 6)
    turns = rotary_turns(grid, 32, torch.device("cpu")).double().view(*grid, 16)
    q, k = torch.randn(2, 32, generator=torch_generator(0, "pair"), dtype=torch.float64)

    def product(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
        return float(rotate(q[None], turns[a][None])[0] @ rotate(k[None], turns[b][None])[0])

    assert product((0, 1, 2), (1, 3, 3)) == pytest.approx(product((2, 2, 4), (3, 4, 5)), abs=1e-6)
    for other in ((2, 3, 3), (1, 4, 3), (1, 3, 4)):
        assert product((0, 1, 2), (1, 3, 3)) != pytest.approx(product((0, 1, 2), other), abs=1e-4)
    turned = rotate(q.expand(120, -1), turns.view(120, 16))
    torch.testing.assert_close(turned.norm(dim=-1), q.norm().expand(120))


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_grouped_kinds_equal_the_plain_ones_with_repeated_keys_and_values(kind: str, rotary: bool) -> None:
    grouped = Attention3D(32, 4, f"grouped_{kind}", rotary).double()
    randomise(grouped)
    plain = Attention3D(32, 4, kind, rotary).double()
    q, k, v = grouped.qkv.weight.detach().split([32, 8, 8])
    repeated = [rows.view(2, 1, 4, 32).expand(2, 4, 4, 32).reshape(32, 32) for rows in (k, v)]
    state = grouped.state_dict() | {"qkv.weight": torch.cat([q, *repeated])}
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 4, 2, 32, generator=torch_generator(0, "x"), dtype=torch.float64)
    torch.testing.assert_close(grouped(x), plain(x))


def test_cross_attention_is_softmax_over_the_tokens_and_blind_to_their_order() -> None:
    block = CrossAttention(8, 4, 6).double()
    x = torch.randn(2, 2, 3, 1, 8, generator=torch_generator(0, "x"), dtype=torch.float64)
    tokens = torch.randn(2, 3, 6, generator=torch_generator(0, "tokens"), dtype=torch.float64)
    assert torch.equal(block(x, tokens), x)
    randomise(block)
    q = rms_norm(block.q(block.norm(x)).view(2, 6, 2, 4), block.q_gain)
    k, v = block.kv(tokens).view(2, 3, 2, 2, 4).unbind(2)
    weights = (torch.einsum("bnhd,bthd->bhnt", q, rms_norm(k, block.k_gain)) / 2).softmax(-1)
    expected = x + block.out(torch.einsum("bhnt,bthd->bnhd", weights, v).reshape(2, 6, 8)).view(x.shape)
    torch.testing.assert_close(block(x, tokens), expected)
    torch.testing.assert_close(block(x, tokens.flip(1)), block(x, tokens))


@pytest.mark.parametrize("kind", ["linear", "grouped_linear"])
def test_rotated_attention_stays_finite_at_262144_tokens(kind: str) -> None:
    block = Attention3D(32, 8, kind, rotary=True)
    randomise(block)
    x = (1e4 * torch.randn(1, 64, 64, 64, 32, generator=torch_generator(0, "x"))).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    (gradient,) = torch.autograd.grad(out.float().mean(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
