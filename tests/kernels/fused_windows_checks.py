"""Convolutions from or to few channels as products of windows, against PyTorch's. Run by `test_fused`, or by hand on a GPU.

Without a GPU, Triton has to be told before it is loaded that it interprets the kernels: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from closeness import DEVICE, distance
from torch import Tensor
from torch.nn import functional as F

from medsynth.kernels import channel_norm, epilogue, linear_attention, windows
from medsynth.kernels.windows import can_fuse, convolve
from medsynth.models.blocks import Convolution
from medsynth.models.unet import LatentUNet
from medsynth.seeding import torch_generator

pytest.importorskip("triton", reason="the kernels are written in Triton")

SIZES = [(4, 108), (108, 4), (1, 27), (32, 1), (3, 96)]
"""Channels in and out."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, name: str = "x") -> Tensor:
    generator = torch_generator(0, "windows", name)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def twin(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x.movedim(-1, 1), weight, padding=1).movedim(1, -1)


@pytest.mark.parametrize("grid", [(2, 4, 3, 5), (1, 1, 1, 1), (1, 2, 7, 1)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_convolution(
    sizes: tuple[int, int], grid: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "BLOCK_NUMBERS", 512)  # programs of a few voxels, the last not full
    x, weight = drawn(*grid, sizes[0]), drawn(sizes[1], sizes[0], 3, 3, 3, name="weight")
    assert can_fuse(x, weight, 1)
    out, truth = convolve(x, weight), twin(x.double(), weight.double())
    assert distance(out, truth) < 1e-6
    upstream = drawn(*truth.shape, name="upstream").detach()
    got = torch.autograd.grad(out, (x, weight), upstream)
    for ours, theirs in zip(got, torch.autograd.grad(truth, (x, weight), upstream.double()), strict=True):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_in_bf16_it_is_as_close_as_the_convolution(sizes: tuple[int, int]) -> None:
    """Under autocast, from and to what the network has there: weights in float32."""
    dtype = torch.bfloat16 if sizes[0] > sizes[1] else torch.float32
    layer = Convolution(*sizes).to(DEVICE)
    x = drawn(2, 4, 5, 6, sizes[0], dtype=dtype)
    weight = layer.conv.weight.detach().clone().requires_grad_()
    truth = twin(x.double(), weight.double()) + layer.conv.bias.double()
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(x)
    upstream = drawn(*truth.shape, name="upstream").detach()
    got = torch.autograd.grad(out, (x, layer.conv.weight), upstream.to(out.dtype))
    expected = torch.autograd.grad(truth, (x, weight), upstream.double())
    for ours, theirs in zip((out, *got), (truth, *expected), strict=True):
        assert distance(ours, theirs) < 2.0**-7


def test_the_two_functions_are_adjoint() -> None:
    """<windows(x), y> = <x, overlapping_sum(y)>."""
    x, y = drawn(2, 3, 4, 5, 3).detach(), drawn(2, 3, 4, 5, 81, name="y").detach()
    left = (torch.ops.medsynth.windows(x).double() * y.double()).sum()
    right = (x.double() * torch.ops.medsynth.overlapping_sum(y).double()).sum()
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_a_network_on_kernels_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every kernel there is, and with none: values and the gradients of all weights and of the input."""
    network = LatentUNet(4, 2, (128, 160), 1, ("linear",), 32, 16).to(DEVICE)
    generator = torch_generator(2, "weights")
    for weight in network.parameters():
        weight.data += (0.05 * torch.randn(weight.shape, generator=generator)).to(DEVICE)
    x, angles = drawn(2, 4, 4, 2, 4), torch.tensor([0.2, 1.3], device=DEVICE)
    calls: list[bool] = []
    fused = windows.convolve
    monkeypatch.setattr(windows, "convolve", lambda *x: (calls.append(True), fused(*x))[1])

    def run() -> list[Tensor]:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return outcome()

    def outcome() -> list[Tensor]:
        out = network(x, angles, {})
        return [out, *torch.autograd.grad(out.square().sum(), (x, *network.parameters()), allow_unused=True)]

    ours = run()
    assert calls
    for module in (channel_norm, epilogue, linear_attention, windows):
        monkeypatch.setattr(module, "runs_on", lambda _: False)
    calls.clear()
    for one, other in zip(ours, run(), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert distance(one, other) < (1e-4 if DEVICE == "cuda" else 1e-5)
    assert not calls


def test_torch_knows_the_operators() -> None:
    """Schemas, fakes, and derivatives under tracing."""
    torch.library.opcheck(torch.ops.medsynth.windows.default, (drawn(1, 2, 3, 2, 2),))
    torch.library.opcheck(torch.ops.medsynth.overlapping_sum.default, (drawn(1, 2, 3, 2, 54),))


def test_what_is_not_fused() -> None:
    x, weight = drawn(1, 2, 2, 2, 4), drawn(108, 4, 3, 3, 3)
    assert can_fuse(x, weight, 1)
    assert not can_fuse(x, weight, 2)
    assert not can_fuse(x, drawn(107, 4, 3, 3, 3), 1)
    assert not can_fuse(x, drawn(108, 4, 1, 1, 1), 1)
    assert not can_fuse(x.double(), weight, 1)
    assert not can_fuse(x[:0], weight, 1)
    assert not can_fuse(x[0], weight, 1)
