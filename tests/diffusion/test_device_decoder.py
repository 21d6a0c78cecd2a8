"""Decoding in half precision is decoding, within its rounding, and whatever leaves its range is decoded in full."""

from __future__ import annotations

import pytest
import torch

from medsynth.diffusion.batch_size import BatchSizes
from medsynth.diffusion.device_decoder import DeviceDecoder
from medsynth.seeding import torch_generator

VOXELS = 16 * 24 * 16


@pytest.fixture
def autoencoder(pipeline):
    """Of random weights as large as trained ones are, so that every layer counts."""
    generator = torch_generator(1, "weights")
    with torch.no_grad():
        for weight in pipeline.autoencoder.decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight[0].numel() ** -0.5, generator=generator)
    return pipeline.autoencoder


def decoder(autoencoder, *, half, most=VOXELS):
    return DeviceDecoder(autoencoder, most, half=half, sizes=BatchSizes(), forget=lambda: False)


def latent(*sizes):
    return torch.randn(3, *sizes, generator=torch_generator(2, "latent"))


@torch.no_grad()
def test_half_precision_is_off_by_a_thousandth_where_bf16_is_by_a_hundredth(autoencoder):
    z = latent(4, 6, 4)
    exact, half = (decoder(autoencoder, half=half)(z) for half in (False, True))
    torch.testing.assert_close(exact, autoencoder.decode_latent(z[None])[0])
    assert half.shape == exact.shape == (1, 16, 24, 16)
    assert half.dtype == exact.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        coarse = autoencoder.decode_latent(z[None])[0].float()
    error, coarse_error = ((decoded - exact).std() / exact.std() for decoded in (half, coarse))
    assert 0 < error < 2e-3
    assert coarse_error > 4 * error


def test_half_precision_in_tiles_is_that_of_the_whole(autoencoder):
    z = latent(4, 40, 4)
    seen = []
    autoencoder.head.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    whole, tiled = (decoder(autoencoder, half=True, most=most)(z) for most in (16 * 160 * 16, 16 * 80 * 16))
    assert len(seen) > 2 and set(seen) == {torch.float16}
    assert (tiled - whole).abs().max() < 2e-3 * whole.std()


@pytest.mark.parametrize("scale", [1e6, -1e6])
def test_numbers_that_half_precision_cannot_hold_are_decoded_in_full(autoencoder, scale):
    """The last norm takes them back, so that the result itself is harmless."""
    autoencoder.from_latent.conv.weight.data *= scale
    z = latent(4, 6, 4)
    exact, half = (decoder(autoencoder, half=half)(z) for half in (False, True))
    assert exact.isfinite().all() and exact.std() > 0
    assert torch.equal(half, exact)


def test_a_latent_that_is_not_finite_is_not_decoded_into_numbers(autoencoder):
    z = latent(4, 6, 4)
    z[0, 2, 3, 2] = torch.nan
    assert decoder(autoencoder, half=True)(z).isnan().any()


def test_a_processor_decodes_in_full_whatever_the_denoiser_computes_in(pipeline):
    seen = []
    pipeline.autoencoder.head.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    for precision in ("auto", "fp32", "bf16"):
        pipeline.precision = precision
        pipeline.decode(latent(4, 6, 4))
    assert seen == [torch.float32] * 3


@pytest.mark.gpu
def test_a_gpu_decodes_in_half_precision(autoencoder, pipeline):
    seen = []
    pipeline.autoencoder.head.register_forward_hook(lambda layer, given, made: seen.append(made.dtype))
    pipe, made = pipeline.to("cuda"), {}
    for precision in ("fp32", "auto"):
        pipe.precision = precision
        made[precision] = pipe.decode(latent(4, 6, 4))
    assert seen == [torch.float32, torch.float16]
    error = (made["auto"] - made["fp32"]).std() / made["fp32"].std()
    assert 0 < error < 3e-3, "what both round: TF32 holds as many bits"
