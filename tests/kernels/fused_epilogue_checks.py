"""A bias that joins SiLU or a residual, against plain PyTorch. Run by `test_fused`, or by hand on a GPU.

Without a GPU, Triton has to be told before it is loaded that it interprets the kernels: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import closeness
import pytest
import torch
from closeness import CLOSE, DEVICE, distance
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.kernels import epilogue
from medsynth.kernels.epilogue import fused_residual, fused_silu
from medsynth.models import blocks
from medsynth.models.attention import Attention3D, CrossAttention
from medsynth.models.blocks import ResidualBlock
from medsynth.seeding import torch_generator

pytest.importorskip("triton", reason="the kernels are written in Triton")

WHOLE = 2e-4 if DEVICE == "cuda" else 1e-5
"""Of the norm of what is compared, for a module: on a GPU its convolution, in float32, rounds to TF32."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, name: str = "x") -> Tensor:
    generator = torch_generator(0, "epilogue", name)
    return (2 * torch.randn(shape, generator=generator)).to(DEVICE, dtype).requires_grad_()


def check_silu(x: Tensor, bias: Tensor) -> None:
    check(fused_silu(x, bias), F.silu(x.double() + bias.double()), (x, bias), x.dtype)


def check_residual(x: Tensor, y: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
    check(fused_residual(x, y, bias), x.double() + y.double() + bias.double(), (x, y, bias), dtype)


def check(fused: Tensor, truth: Tensor, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    assert fused.dtype == dtype
    closeness.check(fused, truth, inputs, torch.randn(truth.shape, generator=torch_generator(1, "upstream")))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 24), (1, 2, 2, 2, 128), (3, 96), (7, 1)], ids=str)
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_values_and_gradients_are_exact_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, bias = drawn(*shape, dtype=dtype), drawn(shape[-1], name="bias")
    check_silu(x, bias)
    check_residual(x, drawn(*shape, dtype=dtype, name="y"), bias, dtype)


def test_the_wider_type_decides() -> None:
    x, y, bias = drawn(3, 5, 16), drawn(3, 5, 16, dtype=torch.bfloat16, name="y"), drawn(16, name="bias")
    check_residual(x, y, bias, torch.float32)
    check_residual(y, x, bias, torch.float32)


@pytest.mark.usefixtures("programs_of_many_blocks")
def test_programs_of_many_blocks() -> None:
    x, y, bias = drawn(2, 5, 6, 7, 24), drawn(2, 5, 6, 7, 24, name="y"), drawn(24, name="bias")
    check_silu(x, bias)
    check_residual(x, y, bias, torch.float32)


def test_any_order_in_memory() -> None:
    x, bias = drawn(2, 24, 5, 6).movedim(1, -1), drawn(24, name="bias")
    torch.testing.assert_close(fused_silu(x, bias), F.silu(x + bias))
    torch.testing.assert_close(fused_residual(x, x.flip(1), bias), x + x.flip(1) + bias)


def test_upstream_without_memory_of_its_own() -> None:
    x, bias = drawn(4, 5, 24), drawn(24, name="bias")
    got = torch.autograd.grad(fused_silu(x, bias).sum() + fused_residual(x, x, bias).sum(), (x, bias))
    expected = torch.autograd.grad(F.silu(x + bias).sum() + (2 * x + bias).sum(), (x, bias))
    torch.testing.assert_close(got, expected)


def test_nothing_is_something() -> None:
    x, bias = drawn(0, 4, 24), drawn(24, name="bias")
    for out in (fused_silu(x, bias), fused_residual(x, x, bias)):
        assert out.shape == x.shape
        assert torch.equal(torch.autograd.grad(out.sum(), bias)[0], torch.zeros_like(bias))


@pytest.mark.parametrize("group_width", [16, 32])
@pytest.mark.parametrize("vector_width", [None, 24])
def test_a_block_is_the_same_with_its_biases_joined_late(
    group_width: int, vector_width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = ResidualBlock(32, vector_width, group_width)
    vector = None if vector_width is None else drawn(2, vector_width, name="vector")
    same_without_late_biases(block, (drawn(2, 4, 3, 5, 32), vector), monkeypatch)


@pytest.mark.parametrize("kind", ["linear", "softmax", "grouped_linear"])
def test_attention_is_the_same_with_its_bias_joined_late(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same_without_late_biases(Attention3D(64, 16, kind), (drawn(2, 4, 3, 5, 64),), monkeypatch)
    same_without_late_biases(CrossAttention(64, 16, 24), (drawn(2, 4, 3, 5, 64), drawn(2, 3, 24)), monkeypatch)


def same_without_late_biases(module: nn.Module, inputs: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and the gradients of every weight, each drawn at random, biases too."""
    generator = torch_generator(3, "weights")
    for weight in module.parameters():
        weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    module.to(DEVICE)
    calls: list[bool] = []

    def run() -> list[Tensor]:
        out = module(*inputs)
        module.zero_grad()
        (out * torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape)).sum().backward()
        return [out, *(weight.grad for weight in module.parameters() if weight.grad is not None)]

    with monkeypatch.context() as patch:
        for name in ("fused_silu", "fused_residual"):
            real = getattr(epilogue, name)
            patch.setattr(epilogue, name, lambda *x, real=real: (calls.append(True), real(*x))[1])
        late = run()
    assert calls
    monkeypatch.setattr(blocks, "joins_late", lambda _: False)
    for ours, plain in zip(late, run(), strict=True):
        assert distance(ours, plain) < WHOLE
    monkeypatch.undo()


def test_torch_knows_the_operators() -> None:
    """Schemas, fakes, and derivatives under tracing."""
    x, y, bias = drawn(2, 3, 8), drawn(2, 3, 8, name="y", dtype=torch.bfloat16), drawn(8, name="bias")
    torch.library.opcheck(torch.ops.medsynth.biased_silu.default, (x, bias))
    torch.library.opcheck(torch.ops.medsynth.biased_residual.default, (x, y, bias))
    torch.library.opcheck(torch.ops.medsynth.biased_silu_backward.default, (x.detach(), x.detach(), bias.detach()))
    torch.library.opcheck(torch.ops.medsynth.voxel_sum.default, (x.detach(),))


def test_what_joins_late() -> None:
    bias = drawn(24)
    assert epilogue.can_fuse(bias)
    assert blocks.joins_late(bias)
    assert not blocks.joins_late(None)
    assert not epilogue.can_fuse(bias.double())
    assert not epilogue.can_fuse(drawn(5000))
    assert not epilogue.can_fuse(drawn(0))
