from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth.evaluation import radiomics
from medsynth.evaluation.features import SPACES, Frame, extract, random_network_features
from medsynth.evaluation.structure import multiscale_ssim, shrink, window_and_scales
from medsynth.evaluation.volumes import NULL_MASK, LabelledVolumes

World = Callable[..., LabelledVolumes]
CPU = torch.device("cpu")


def _quiet(done: int) -> None:
    return None


def _volumes(voxels: torch.Tensor, masks: torch.Tensor | None = None) -> LabelledVolumes:
    names = tuple(str(i) for i in range(len(voxels)))
    return LabelledVolumes(voxels, masks, None, (), names, names)


def test_features_of_a_scan_do_not_depend_on_the_others(world: World) -> None:
    volumes = world(9, 0)
    for measure in (radiomics.scan_features, lambda v, a: random_network_features(v.voxels, CPU, a)):
        together, alone = measure(volumes, _quiet), measure(volumes.take([4]), _quiet)
        np.testing.assert_allclose(together[4], alone[0], rtol=1e-5, atol=1e-6)


def test_histogram_features_ignore_where_voxels_lie_and_texture_features_do_not(world: World) -> None:
    volume = world(1, 1).voxels
    mixed = volume.flatten()[torch.randperm(volume.numel(), generator=torch.Generator().manual_seed(0))]
    both = radiomics.scan_features(_volumes(torch.cat([volume, mixed.reshape(volume.shape)])), _quiet)
    np.testing.assert_allclose(both[0, :12], both[1, :12], rtol=1e-5, atol=1e-6)
    assert np.abs(both[0, 12:] - both[1, 12:]).min() > 1e-3


def test_moments_and_percentiles_of_known_values() -> None:
    ramp = torch.linspace(-1, 1, 16**3).reshape(1, 1, 16, 16, 16)
    row = radiomics.scan_features(_volumes(ramp), _quiet)[0]
    assert row[:3] == pytest.approx([0, 1 / np.sqrt(3), 0], abs=1e-3)
    assert np.exp(row[3]) - 1 == pytest.approx(1.8, abs=1e-2)  # kurtosis of a uniform distribution
    assert row[4:11] == pytest.approx([2 * p / 100 - 1 for p in radiomics.PERCENTILES], abs=1e-3)
    assert row[11] == pytest.approx(np.log2(radiomics.HISTOGRAM_BINS), abs=1e-3)


def test_a_wave_shows_in_its_axis_and_its_band() -> None:
    size = 32
    wave = torch.sin(2 * torch.pi * torch.arange(size) * 6 / size)  # 6 of 16 steps to Nyquist: third band
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = size
        power = radiomics._spectrum((wave.reshape(shape).expand(1, 1, size, size, size))[0, 0])
        assert power.argmax() == axis * len(radiomics.SPECTRUM_BANDS) + 2


def test_lesion_features_measure_the_mask_and_know_an_empty_or_withheld_one() -> None:
    voxels = torch.zeros(3, 1, 16, 16, 16)
    masks = torch.zeros(3, 1, 16, 16, 16, dtype=torch.uint8)
    masks[0, 0, 4:8, 5:8, 6:8] = 2
    voxels[0, 0, 4:8, 5:8, 6:8] = 0.5
    masks[2] = NULL_MASK
    rows = radiomics.lesion_features(_volumes(voxels, masks))
    assert rows is not None
    assert np.expm1(rows[0, :4]) == pytest.approx([24, 4, 3, 2])
    assert rows[0, 4] == pytest.approx(0.5)
    assert rows[0, -2:] == pytest.approx([0.5, 1.0])  # contrast to the shell, share of the bounding box
    np.testing.assert_array_equal(rows[1:], 0)
    assert radiomics.lesion_features(_volumes(voxels)) is None


@pytest.mark.parametrize("shape", [(8, 8, 8), (2, 9, 16), (40, 24, 8)])
def test_features_are_finite_for_small_odd_and_flat_volumes(shape: tuple[int, int, int]) -> None:
    voxels = torch.rand(4, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    voxels[3] = -1  # nothing but background
    for space, sets in extract({"only": _volumes(voxels)}, CPU, _quiet, with_lesions=False).items():
        assert space in SPACES
        assert np.isfinite(sets["only"]).all()


def test_the_frame_comes_from_training_alone_and_keeps_a_tenth(world: World) -> None:
    generator = np.random.default_rng(0)
    training = generator.normal(3.0, 2.0, size=(47, 30))
    training[:, 5] = 1e6  # constant
    frame = Frame.fit(training)
    z = frame.standardise(training)
    assert z.shape == (47, 29)
    assert len(frame.axes) == 4
    np.testing.assert_allclose(frame.axes @ frame.axes.T, np.eye(4), atol=1e-12)
    assert abs(z.mean()) < 0.05
    assert z.std() == pytest.approx(1, abs=0.05)
    far = training[:1].copy()
    far[0, 0] += 1e9
    assert frame.standardise(far).max() < 150  # drawn in
    assert np.all(np.diff(frame.standardise(np.repeat(training[:1], 5, 0) * np.arange(1, 6)[:, None])[:, 0]) > 0)


def test_lesions_join_the_radiomics_only_when_asked(world: World) -> None:
    volumes = world(4, 3, masks=True)
    plain, more = (extract({"s": volumes}, CPU, _quiet, with_lesions=w)["radiomics"]["s"] for w in (False, True))
    assert more.shape[1] == plain.shape[1] + 13


@pytest.mark.parametrize("size", [3, 8, 10, 16, 28, 48])
def test_ms_ssim_of_equal_volumes_is_one_and_falls_with_noise(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 1, size, size, size, generator=generator) * 2 - 1
    noise = torch.randn(volume.shape, generator=generator)
    values = [multiscale_ssim(volume, volume + s * noise).mean().item() for s in (0.0, 0.1, 0.3, 1.0)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.8
    torch.testing.assert_close(multiscale_ssim(volume, noise), multiscale_ssim(noise, volume))


def test_single_scale_ssim_against_its_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    a, noise = torch.rand(2, 1, 1, 5, 5, 5, generator=generator, dtype=torch.float64)
    b = 0.7 * a + 0.3 * noise
    assert window_and_scales((5, 5, 5)) == (3, 1)
    g = torch.exp(-(torch.arange(-1.0, 2.0, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    g = g / g.sum()
    kernel = g[:, None, None] * g[None, :, None] * g[None, None, :]
    values = []
    for i, j, k in np.ndindex(3, 3, 3):
        x, y = (v[0, 0, i : i + 3, j : j + 3, k : k + 3] for v in (a, b))
        mx, my = (kernel * x).sum(), (kernel * y).sum()
        vx, vy, c = ((kernel * p * q).sum() - m for p, q, m in ((x, x, mx**2), (y, y, my**2), (x, y, mx * my)))
        c1, c2 = 0.02**2, 0.06**2
        values.append((2 * mx * my + c1) * (2 * c + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert multiscale_ssim(a, b).item() == pytest.approx(torch.stack(values).mean().item(), abs=1e-9)


def test_scales_follow_the_shortest_axis_and_large_volumes_are_pooled() -> None:
    assert window_and_scales((64, 64, 8)) == (5, 1)
    assert window_and_scales((28, 28, 28)) == (7, 3)
    assert shrink(torch.zeros(1, 1, 130, 64, 20)).shape[2:] == (43, 64, 20)


def test_labels_and_masks_are_checked_at_the_door(world: World) -> None:
    from medsynth.errors import DataError

    volumes = world(4, 0, masks=True)
    with pytest.raises(DataError, match="masks"):
        replace(volumes, masks=volumes.masks[:, :, :8])
    with pytest.raises(DataError, match="labels"):
        replace(volumes, labels=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(DataError, match="finite"):
        replace(volumes, voxels=volumes.voxels * torch.nan)
    half = replace(volumes, labels=torch.tensor([0, -1, 1, -1])).labelled()
    assert half is not None
    assert half.cases == (volumes.cases[0], volumes.cases[2])
    assert replace(volumes, labels=torch.full((4,), -1)).labelled() is None
