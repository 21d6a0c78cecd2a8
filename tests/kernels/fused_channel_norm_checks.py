"""The fused norm over channels against plain PyTorch. Run by `test_fused`, or by hand on a GPU.

Without a GPU, Triton has to be told before it is loaded that it interprets the kernels: TRITON_INTERPRET=1.
"""

from __future__ import annotations

import closeness
import pytest
import torch
from closeness import CLOSE, DEVICE, distance
from torch import Tensor
from torch.nn import functional as F

from medsynth.kernels import channel_norm as wrapper
from medsynth.kernels.channel_norm import can_fuse, fused_channel_norm
from medsynth.models.blocks import ChannelNorm
from medsynth.seeding import torch_generator

pytest.importorskip("triton", reason="the kernels are written in Triton")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def norm_inputs(
    shape: tuple[int, ...] = (2, 3, 5, 4, 24), dtype: torch.dtype = torch.float32, offset: float = 0.0
) -> Inputs:
    """x, gain, and scale and shift as a network makes them: two halves of one row."""
    generator = torch_generator(0, "fused norm")
    channels = shape[-1]
    x = offset + torch.randn(shape, generator=generator)
    gain = 1 + 0.3 * torch.randn(channels, generator=generator)
    scale, shift = (0.5 * torch.randn(shape[0], 2 * channels, generator=generator)).to(DEVICE, dtype).chunk(2, -1)
    leaves = x.to(DEVICE, dtype).requires_grad_(), gain.to(DEVICE).requires_grad_()
    return *leaves, scale.requires_grad_(), shift.requires_grad_()


def exact(x: Tensor, gain: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """In float64."""
    normed = F.layer_norm(x.double(), gain.shape, gain.double(), eps=wrapper.EPS)
    if scale is None or shift is None:
        return normed
    scale, shift = (row.double().view(len(x), *[1] * (x.ndim - 2), -1) for row in (scale, shift))
    return normed * (1 + scale) + shift


def check(inputs: tuple[Tensor, ...]) -> None:
    x = inputs[0]
    assert can_fuse(*inputs, *[None] * (4 - len(inputs)))
    fused, truth = fused_channel_norm(*inputs), exact(*inputs)
    assert fused.dtype == x.dtype
    closeness.check(fused, truth, inputs, torch.randn(truth.shape, generator=torch_generator(1, "upstream")))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4, 24), (1, 2, 2, 2, 128), (3, 7, 96), (2, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", list(CLOSE), ids=str)
def test_values_and_gradients_are_exact_to_rounding(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = norm_inputs(shape, dtype)
    if shape[-1] == 1:  # one channel is its own mean: nothing is left but the shift, and a distance from zero is none
        assert torch.equal(fused_channel_norm(*inputs), inputs[3].view(2, 1, 1))
        return
    check(inputs)
    check(inputs[:2])


@pytest.mark.usefixtures("programs_of_many_blocks")
def test_programs_of_many_blocks() -> None:
    inputs = norm_inputs((2, 5, 6, 7, 24))
    check(inputs)
    check(inputs[:2])


def test_a_mean_that_drowns_the_rest() -> None:
    """A thousand times the deviation: the square of the mean taken from the mean square would leave no digit."""
    inputs = norm_inputs(offset=1000.0)
    fused, truth = fused_channel_norm(*inputs), exact(*inputs)
    assert distance(fused, truth) < 1e-4


def test_a_voxel_of_equal_channels_is_the_shift() -> None:
    x, gain, scale, shift = norm_inputs((2, 3, 3, 3, 32))
    out = fused_channel_norm(torch.full_like(x, 7.0), gain, scale, shift)
    torch.testing.assert_close(out, shift.view(2, 1, 1, 1, 32).expand_as(out))


def test_upstream_without_memory_of_its_own() -> None:
    inputs = norm_inputs()
    got = torch.autograd.grad(fused_channel_norm(*inputs).sum(), inputs[0])[0]
    assert distance(got, torch.autograd.grad(exact(*inputs).sum(), inputs[0])[0]) < 1e-5


def test_nan_stays_in_its_voxel() -> None:
    x, *rest = norm_inputs()
    hole = torch.zeros_like(x)
    hole[0, 1, 2, 3, 5] = torch.nan
    found = fused_channel_norm(x + hole, *rest).isnan().any(-1)
    assert found[0, 1, 2, 3]
    assert found.sum() == 1


def test_the_module_takes_the_fused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gain, scale, shift = norm_inputs()
    norm = ChannelNorm(24).to(DEVICE)
    norm.weight.data.copy_(gain)
    fused = norm(x, scale, shift), norm(x)
    assert torch.equal(fused[0], fused_channel_norm(x, gain, scale, shift))
    monkeypatch.setattr("medsynth.models.blocks.can_fuse", lambda *_: False)
    for ours, plain in zip(fused, (norm(x, scale, shift), norm(x)), strict=True):
        assert distance(ours, plain) < CLOSE[torch.float32]


def test_torch_knows_the_operators() -> None:
    """Schemas, fakes, and derivatives under tracing."""
    inputs = norm_inputs((2, 2, 3, 8))
    for each in (inputs, (*inputs[:2], None, None)):
        torch.library.opcheck(torch.ops.medsynth.channel_norm.default, each)
        x, gain, scale, _ = (None if y is None else y.detach() for y in each)
        torch.library.opcheck(torch.ops.medsynth.channel_norm_backward.default, (x, x, gain, scale))


def test_what_is_not_fused() -> None:
    x, gain, scale, shift = norm_inputs()
    assert can_fuse(x, gain, scale, shift)
    assert can_fuse(x, gain, None, None)
    assert not can_fuse(x, gain, scale, None)
    assert not can_fuse(x.double(), gain, scale, shift)
    assert not can_fuse(x.movedim(1, 2), gain, scale, shift)
    assert not can_fuse(x[:0], gain, scale[:0], shift[:0])
    assert not can_fuse(x, gain, scale[:1], shift[:1])
    assert not can_fuse(x[..., None].expand(*x.shape, 2000).contiguous(), gain.new_ones(2000), None, None)
