"""The fused path of linear attention against its twin. Run by `test_fused_linear_attention`, or by hand on a GPU.

Without a GPU, Triton has to be told before it is loaded that it interprets the kernels: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from closeness import DEVICE, distance
from torch import Tensor

from medsynth.kernels import linear_attention as wrapper
from medsynth.kernels.linear_attention import can_fuse, fused_linear_attention
from medsynth.models.linear_attention import EPS, _LinearAttention, rotary_turns
from medsynth.seeding import torch_generator

pytest.importorskip("triton", reason="the kernels are written in Triton")

CLOSE = {torch.float32: 1e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-7}
"""Per dtype, of the norm of what is compared: a rounding, towards zero in the interpreter; for float16 those of TF32."""
CLOSE_GAINS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 1e-4}
"""Gradients of the gains are float32 sums: what they are off by comes from the matrix products alone."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]


def attention_inputs(
    *,
    batch: int = 1,
    groups: int = 2,
    shared: int = 1,
    grid: tuple[int, int, int] = (3, 5, 5),
    channels: int = 16,
    values: int = 0,
    turned: bool = False,
    scale: float = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Inputs]:
    """One buffer of tokens [B, N, C], and what the network makes of it: strided views, and two gains."""
    generator = torch_generator(0, "fused")
    shares = [groups * shared * channels, groups * channels, groups * (values or channels)]
    n = grid[0] * grid[1] * grid[2]
    tokens = scale * torch.randn(batch, n, sum(shares), generator=generator)
    tokens = tokens.to(DEVICE, dtype).requires_grad_()
    q, k, v = torch.split(tokens, shares, 2)
    q = q.view(batch, n, groups, shared, channels).permute(0, 2, 3, 1, 4)
    k, v = (x.view(batch, n, groups, 1, -1).permute(0, 2, 3, 1, 4) for x in (k, v))
    gains = [(1 + 0.3 * torch.randn(channels, generator=generator)).to(DEVICE).requires_grad_() for _ in range(2)]
    turns = rotary_turns(grid, channels, torch.device(DEVICE)) if turned else None
    return tokens, (q, k, v, turns, gains[0], gains[1])


def check_against_twin(inputs: Inputs, leaves: list[Tensor], dtype: torch.dtype) -> None:
    q, k, v, turns, *gains = inputs
    assert can_fuse(q, k, v, turns, (gains[0], gains[1]))
    fused, twin = fused_linear_attention(*inputs), _LinearAttention.apply(*inputs)
    assert fused.stride() == twin.stride()
    assert fused.dtype == twin.dtype
    assert distance(fused, twin) < CLOSE[dtype]
    upstream = torch.randn(twin.shape, generator=torch_generator(1, "upstream")).to(twin)
    got, expected = (torch.autograd.grad(y, [*leaves, *gains], upstream, retain_graph=True) for y in (fused, twin))
    for leaf, ours, theirs in zip([*leaves, *gains], got, expected, strict=True):
        assert ours.dtype == leaf.dtype
        assert distance(ours, theirs) < (CLOSE if leaf.ndim > 1 else CLOSE_GAINS)[dtype]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"turned": True},
        {"shared": 4, "channels": 32, "turned": True},
        {"batch": 2, "channels": 64, "turned": True, "groups": 1},
        {"batch": 2, "channels": 64, "grid": (4, 4, 4), "groups": 1},
        {"channels": 24, "values": 40, "grid": (7, 5, 5)},
        {"channels": 8, "grid": (1, 1, 3)},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients_equal_the_twin(settings: dict[str, object], dtype: torch.dtype) -> None:
    tokens, inputs = attention_inputs(dtype=dtype, **settings)
    check_against_twin(inputs, [tokens], dtype)


@pytest.mark.parametrize("programs", [1, 3])
def test_programs_of_many_blocks(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of several blocks each, the last one shorter: what a volume of any size has on a GPU."""
    monkeypatch.setattr(wrapper, "PROGRAMS", programs)
    tokens, inputs = attention_inputs(groups=1, grid=(5, 6, 7), turned=True)
    check_against_twin(inputs, [tokens], torch.float32)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1e4), (torch.bfloat16, 1e-4), (torch.float16, 1e3)])
def test_activations_of_any_size(dtype: torch.dtype, scale: float) -> None:
    tokens, inputs = attention_inputs(dtype=dtype, scale=scale, turned=True)
    q, k, v, *rest = inputs
    k = k + scale * 10 * torch.eye(16, device=DEVICE, dtype=dtype)[3]  # one channel that drowns the others
    check_against_twin((q, k, v / 100, *rest), [tokens], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_queries_that_meet_no_key(dtype: torch.dtype) -> None:
    """Zero vectors have no features; with a tiny gain no query reaches the clamp of the denominator."""
    tokens, inputs = attention_inputs(dtype=dtype, turned=True)
    q, k, v, turns, q_gain, k_gain = inputs
    some = torch.arange(q.shape[3], device=DEVICE)[:, None] % 3 > 0
    check_against_twin((q * some, k, v, turns, q_gain, k_gain), [tokens], dtype)
    check_against_twin((q, k, v, turns, (q_gain.detach() * EPS / 10).requires_grad_(), k_gain), [tokens], dtype)
    none = fused_linear_attention(q * 0, k, v, turns, q_gain, k_gain)
    grads = torch.autograd.grad(none.sum(), [tokens, q_gain, k_gain])
    assert not none.any()
    assert not any(grad.any() for grad in grads)


def test_heads_without_an_axis_for_shared_keys() -> None:
    _, (q, k, v, turns, *gains) = attention_inputs(turned=True)
    flat = [x.squeeze(2).detach().contiguous().requires_grad_() for x in (q, k, v)]
    check_against_twin((*flat, turns, *gains), flat, torch.float32)


def test_upstream_without_memory_of_its_own() -> None:
    tokens, inputs = attention_inputs()
    got, expected = (
        torch.autograd.grad(f(*inputs).sum(), tokens)[0] for f in (fused_linear_attention, _LinearAttention.apply)
    )
    assert distance(got, expected) < 1e-5


def test_nan_is_not_hidden() -> None:
    _, (q, k, v, *rest) = attention_inputs()
    hole = torch.zeros_like(k)
    hole[0, 0, 0, 40, 3] = torch.nan
    out = fused_linear_attention(q, k + hole, v, *rest)
    assert out[0, 0].isnan().all()
    assert out[0, 1].isfinite().all()


def test_autocast_changes_nothing() -> None:
    _, inputs = attention_inputs()
    with torch.autocast(DEVICE, torch.bfloat16):
        inside = fused_linear_attention(*inputs)
    assert torch.equal(inside, fused_linear_attention(*inputs))


@pytest.mark.parametrize("turned", [False, True])
def test_torch_knows_the_operators(turned: bool) -> None:
    """Schemas, fakes with the strides of the real outputs, and derivatives under tracing."""
    _, (q, k, v, turns, *gains) = attention_inputs(turned=turned, grid=(1, 3, 5), groups=1, shared=2)
    inputs = (*(x.detach().requires_grad_() for x in (q, k, v)), turns, *gains)
    torch.library.opcheck(torch.ops.medsynth.linear_attention.default, inputs)
    plain = [None if x is None else x.detach() for x in inputs]
    out, *sums = torch.ops.medsynth.linear_attention(*plain)
    torch.library.opcheck(torch.ops.medsynth.linear_attention_backward.default, (out, *plain, *sums))


def test_compiled_equals_eager() -> None:
    tokens, inputs = attention_inputs(turned=True)

    def doubled(*inputs: Tensor) -> Tensor:
        assert can_fuse(*inputs[:4], inputs[4:])
        return 2 * fused_linear_attention(*inputs).transpose(-2, -3).contiguous()

    compiled = torch.compile(doubled, backend="aot_eager", fullgraph=True)
    outs = doubled(*inputs), compiled(*inputs)
    assert torch.equal(*outs)
    leaves = [tokens, *inputs[4:]]
    for eager, traced in zip(
        *(torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for y in outs), strict=True
    ):
        assert torch.equal(eager, traced)


def test_what_is_not_fused() -> None:
    _, (q, k, v, turns, *gains) = attention_inputs(turned=True)
    gains = (gains[0], gains[1])
    assert can_fuse(q, k, v, turns, gains)
    assert not can_fuse(q, k, v, turns, None)
    assert not can_fuse(q, k, v.mT.contiguous().mT, turns, gains)
    assert not can_fuse(q.double(), k.double(), v.double(), turns, gains)
    assert not can_fuse(q, k, v.bfloat16(), turns, gains)
    assert not can_fuse(q, k[..., :40, :], v[..., :40, :], turns, gains)
    assert can_fuse(q, k[..., :40, :], v[..., :40, :], None, gains)
    assert not can_fuse(q, k.expand_as(q.repeat(1, 1, 2, 1, 1)), v.repeat(1, 1, 2, 1, 1), None, gains)
    assert not can_fuse(q, k, v.repeat(1, 1, 1, 1, 5), turns, gains)
    assert not can_fuse(q[..., :12], k[..., :12], v, turns[:, :6], (gains[0][:12], gains[1][:12]))
