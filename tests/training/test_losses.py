"""Each term against a twin that spells its definition out, and SSIM against MONAI's too."""

import math

import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from medsynth.training.losses import (
    WINDOW,
    gradient_difference,
    multi_scale_similarity,
    peak_signal_to_noise,
    scales,
    spectral_difference,
    structural_similarity,
)


def naive_ssim(a: torch.Tensor, b: torch.Tensor, luminance: bool = True) -> float:
    """One window after the other, in float64; without luminance: contrast and structure alone."""
    sizes = [min(WINDOW, n) for n in a.shape]
    c1, c2 = 0.02**2, 0.06**2
    values = []
    for i in range(a.shape[0] - sizes[0] + 1):
        for j in range(a.shape[1] - sizes[1] + 1):
            for k in range(a.shape[2] - sizes[2] + 1):
                box = slice(i, i + sizes[0]), slice(j, j + sizes[1]), slice(k, k + sizes[2])
                x, y = a[box].flatten(), b[box].flatten()
                mx, my = x.mean(), y.mean()
                vx, vy = ((x - mx) ** 2).mean(), ((y - my) ** 2).mean()
                cov = ((x - mx) * (y - my)).mean()
                value = (2 * cov + c2) / (vx + vy + c2)
                if luminance:
                    value = value * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
                values.append(float(value))
    return sum(values) / len(values)


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator) * 2 - 1
    return a, (a + 0.3 * torch.randn(shape, generator=generator)).clamp(-1, 1)


@pytest.mark.parametrize("shape", [(9, 11, 8), (5, 9, 7), (4, 4, 4)])
def test_ssim_equals_its_definition_also_in_small_boxes(shape):
    a, b = pair(2, 1, *shape)
    ours = structural_similarity(a.double(), b.double())
    twins = [naive_ssim(a[i, 0].double(), b[i, 0].double()) for i in range(2)]
    assert ours.tolist() == pytest.approx(twins, abs=1e-9)


def test_ssim_equals_monai():
    a, b = pair(2, 1, 16, 20, 14)
    theirs, _ = compute_ssim_and_cs(
        b, a, 3, data_range=2.0, kernel_type="uniform", kernel_size=(7, 7, 7), kernel_sigma=(1.5, 1.5, 1.5)
    )
    torch.testing.assert_close(structural_similarity(a, b), theirs.flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_ssim_of_constants_has_a_closed_form():
    low, high = torch.full((1, 1, 8, 8, 8), 0.2), torch.full((1, 1, 8, 8, 8), 0.6)
    expected = (2 * 0.2 * 0.6 + 0.02**2) / (0.2**2 + 0.6**2 + 0.02**2)
    assert float(structural_similarity(low, high)) == pytest.approx(expected, rel=1e-3)
    assert float(structural_similarity(low, low)) == pytest.approx(1.0, abs=1e-5)


def test_strided_windows_are_a_subset():
    a, b = pair(1, 1, 13, 13, 13)
    whole, strided = structural_similarity(a, b), structural_similarity(a, b, stride=2)
    assert float(strided) == pytest.approx(float(whole), abs=0.01)
    x = torch.zeros(1, 1, 8, 8, 8)
    x[..., 1:, 1:, 1:] = 0.5  # 8 = 7 + 1 windows: a stride of two keeps the first one alone
    y = x[..., :7, :7, :7] + 0.1
    padded = torch.nn.functional.pad(y, (0, 1, 0, 1, 0, 1), value=-0.9)
    first = structural_similarity(x[..., :7, :7, :7], y)
    torch.testing.assert_close(structural_similarity(x, padded, stride=2), first)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((4, 9, 9), 1), ((13, 13, 13), 1), ((32, 32, 16), 2), ((40, 56, 40), 3), ((112, 112, 111), 4), ((512,) * 3, 5)],
)
def test_scales_are_as_many_as_the_shortest_axis_has_room_for(shape, count):
    assert scales(shape) == count
    assert min(shape) // 2 ** (count - 1) >= min(WINDOW, *shape)


def test_multi_scale_ssim_equals_its_definition():
    a, b = (x.double() for x in pair(1, 1, 14, 15, 16))
    halves = [torch.nn.functional.avg_pool3d(x, 2)[0, 0] for x in (a, b)]
    fine, coarse = naive_ssim(a[0, 0], b[0, 0], luminance=False), naive_ssim(*halves)
    total = 0.0448 + 0.2856
    expected = fine ** (0.0448 / total) * coarse ** (0.2856 / total)
    assert float(multi_scale_similarity(a, b)) == pytest.approx(expected, rel=1e-9)


def test_multi_scale_ssim_of_one_scale_is_ssim():
    a, b = pair(2, 1, 12, 9, 13)
    assert torch.equal(multi_scale_similarity(a, b, stride=2), structural_similarity(a, b, stride=2))


def test_multi_scale_ssim_of_constants_has_a_closed_form_in_flat_boxes():
    low, high = torch.full((1, 1, 32, 32, 16), 0.2), torch.full((1, 1, 32, 32, 16), 0.6)
    luminance = (2 * 0.2 * 0.6 + 0.02**2) / (0.2**2 + 0.6**2 + 0.02**2)
    expected = luminance ** (0.2856 / (0.0448 + 0.2856))
    assert float(multi_scale_similarity(low, high)) == pytest.approx(expected, rel=1e-3)


def test_multi_scale_ssim_is_symmetric_and_knows_no_direction():
    a, b = (x.double() for x in pair(2, 1, 32, 28, 16))
    value = multi_scale_similarity(a, b)
    torch.testing.assert_close(multi_scale_similarity(a, a), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(multi_scale_similarity(b, a), value)
    torch.testing.assert_close(multi_scale_similarity(a.flip(2, 4), b.flip(2, 4)), value)
    turned = [x.permute(0, 1, 4, 2, 3) for x in (a, b)]
    torch.testing.assert_close(multi_scale_similarity(*turned), value)
    assert (value < 0.95).all()


def test_multi_scale_ssim_of_opposites_has_a_value_and_a_slope():
    a, _ = pair(1, 1, 16, 16, 16)
    b = (-a).requires_grad_()
    value = multi_scale_similarity(a, b).sum()
    value.backward()
    assert 0 < value.item() < 0.1
    assert b.grad.isfinite().all()


def test_spectrum_of_a_wave_has_a_closed_form():
    x = torch.arange(12) * (2 * math.pi * 3 / 12)
    wave = 0.4 * x.cos()[None, None, :, None, None].expand(1, 1, 12, 6, 8)
    bins = 12 * 6 * (8 // 2 + 1)
    expected = 2 * (0.4 / 2) * math.sqrt(12 * 6 * 8) / bins  # two peaks
    assert float(spectral_difference(wave, torch.zeros_like(wave))) == pytest.approx(expected, rel=1e-4)


def test_spectra_ignore_place_and_notice_lost_texture():
    a, _ = pair(1, 1, 16, 12, 14)
    moved = a.roll((3, -2, 5), (2, 3, 4))
    blurred = torch.nn.functional.avg_pool3d(a, 3, 1, 1)
    assert float(spectral_difference(a, moved)) < 1e-5
    assert float(spectral_difference(a, blurred)) > 0.2
    assert float((a - moved).abs().mean()) > float((a - blurred).abs().mean())  # by voxels it is the other way round


def test_spectra_are_computed_in_float32_under_autocast():
    a, b = pair(1, 1, 9, 8, 7)
    expected = spectral_difference(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        found = spectral_difference(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert spectral_difference(a.bfloat16(), b.bfloat16()).dtype == torch.float32


def test_gradient_difference_equals_its_definition_and_ignores_an_offset():
    a, b = pair(2, 1, 5, 6, 7)
    each = [(torch.diff(a, dim=d) - torch.diff(b, dim=d)).abs().mean() for d in (2, 3, 4)]
    torch.testing.assert_close(gradient_difference(a, b), sum(each) / 3)
    assert float(gradient_difference(a, a + 0.7)) == pytest.approx(0.0, abs=1e-6)


def test_blur_costs_more_in_edges_than_in_intensity():
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(1, 1, 16, 16, 16, generator=generator)
    blurred = torch.nn.functional.avg_pool3d(a, 3, 1, 1)
    shifted = a + (blurred - a).abs().mean()  # the same L1, no edge lost
    assert float(gradient_difference(a, blurred)) > 10 * float(gradient_difference(a, shifted))
    assert float(structural_similarity(a, blurred)) < float(structural_similarity(a, shifted))


def test_psnr_in_closed_form():
    a = torch.zeros(2, 1, 4, 4, 4)
    b = torch.stack([torch.full((1, 4, 4, 4), 0.2), torch.zeros(1, 4, 4, 4)])
    assert peak_signal_to_noise(a, b).tolist() == pytest.approx([20 * math.log10(2 / 0.2), 100.0], rel=1e-5)


def test_gradients_are_true():
    a, b = pair(1, 1, 8, 9, 7)
    a, b = a.double().requires_grad_(), b.double()
    assert torch.autograd.gradcheck(lambda x: structural_similarity(x, b, stride=2), a, eps=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: spectral_difference(x, b), a, eps=1e-6, atol=1e-6)
    a, b = pair(1, 1, 14, 14, 14)
    a, b = a.double().requires_grad_(), b.double()
    assert torch.autograd.gradcheck(
        lambda x: multi_scale_similarity(x, b, stride=2), a, eps=1e-6, atol=1e-6, fast_mode=True
    )
