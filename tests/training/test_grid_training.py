"""Training on volumes of two sizes: each batch of one, times shifted by its size, and resuming exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_generator import (
    BOX,
    CPU,
    autoencoder_settings,
    denoiser_settings,
    new_autoencoder,
    new_denoiser,
    volume_set,
    weights,
)

from medsynth.cohort.volumes import VolumeSet
from medsynth.config.grid import GRID, Grid
from medsynth.models.conditions import CONDITION, declare
from medsynth.progress import Silent
from medsynth.training.autoencoder import AutoencoderTask, train_autoencoder
from medsynth.training.denoiser import DenoiserTask, train_denoiser
from medsynth.training.latents import LatentStatistics, LatentStore, encode_latents, open_stores

LARGE = Grid(box=BOX, spacing_mm=(1.0, 1.0, 1.0))
SMALL = Grid(box=(8, 12, 4), spacing_mm=(1.0, 1.0, 2.0))
DECLARATION = declare({}, (LARGE, SMALL))


def on_two_grids(split: str, large: int, small: int) -> tuple[VolumeSet, VolumeSet]:
    """Volumes as they are, and a part of others: more of the background, so that their latents differ in mean."""
    sets = []
    for grid, count in ((LARGE, large), (SMALL, small)):
        found = volume_set(count, f"{split} {grid}")
        x, y, z = grid.box
        cases = tuple(replace(c, shape=grid.box, conditions={**c.conditions, GRID: str(grid)}) for c in found.cases)
        sets.append(VolumeSet(found.volumes[:, :, :x, :y, :z].contiguous(), None, cases))
    return sets[0], sets[1]


@pytest.fixture
def stores(tmp_path: Path) -> tuple[tuple[LatentStore, ...], tuple[LatentStore, ...]]:
    network = new_autoencoder()
    for split, counts in (("train", (6, 4)), ("validation", (2, 3))):
        for part in on_two_grids(split, *counts):
            encode_latents(network, part, tmp_path / split / str(part.cases[0].conditions[GRID]), CPU, Silent())
    return open_stores(tmp_path / "train"), open_stores(tmp_path / "validation")


def denoiser_task(stores: tuple[tuple[LatentStore, ...], ...], **changes: object) -> DenoiserTask:
    train, validation = stores
    statistics = LatentStatistics.of(train)
    denoiser = new_denoiser(declaration=DECLARATION)
    return DenoiserTask(denoiser, train, validation, statistics, denoiser_settings(**changes), 3)


def test_statistics_are_those_of_all_latents_of_all_grids(stores):
    train, _ = stores
    statistics = LatentStatistics.of(train)
    channels = [np.concatenate([np.array(s.latents, np.float64)[:, c].ravel() for s in train]) for c in range(3)]
    np.testing.assert_allclose(statistics.shift, [channel.mean() for channel in channels], rtol=1e-5)
    np.testing.assert_allclose(statistics.scale, [channel.std() for channel in channels], rtol=1e-5)
    apart = [LatentStatistics.of(store).shift for store in train]
    assert not torch.allclose(apart[0], apart[1], rtol=0.01)  # so that neither grid alone would have given them


def test_a_batch_is_of_one_grid_and_says_which(stores):
    task = denoiser_task(stores)
    shapes = set()
    for number in range(10):
        batch = task.draw(number, slice(0, 4))
        shape = tuple(batch["latents"].shape[2:])
        grid = LARGE if shape == (8, 6, 4) else SMALL
        assert shape == tuple(size // 2 for size in grid.box)
        assert batch["noise"].shape == batch["latents"].shape
        spacing = batch[CONDITION + GRID][:, :3].exp()
        torch.testing.assert_close(spacing, torch.tensor(grid.spacing_mm).expand(4, 3))
        shapes.add(shape)
    assert len(shapes) == 2


def test_times_are_shifted_by_the_size_of_the_batch_at_hand(stores, monkeypatch):
    monkeypatch.setattr("medsynth.diffusion.objective.BASE_VOXELS", 12)
    task = denoiser_task(stores, batch_size=64)
    logits: dict[int, list[torch.Tensor]] = {}
    for number in range(40):
        batch = task.draw(number, slice(0, 64))
        logits.setdefault(math.prod(batch["latents"].shape[2:]), []).append(batch["angles"].double().tan().log())
    assert set(logits) == {192, 48}  # 8 x 6 x 4 and 4 x 6 x 2 latent voxels
    for voxels, found in logits.items():
        values = torch.cat(found)
        expected = 0.5 * math.log(voxels / 12)
        assert float(values.mean()) == pytest.approx(expected, abs=4 / math.sqrt(len(values)))


def test_validation_counts_every_case_alike_whatever_its_grid(stores):
    task = denoiser_task(stores)
    assert task.validate() == task.validate()
    # An untrained network answers zero: its loss is the mean square of v = cos noise - sin x0 times the weight, averaged
    # over cases.
    expected, objective = [], task.denoiser.objective
    for store, pool in zip(stores[1], task.validation.grids, strict=True):
        angles = objective.sample_angles(10_000, torch.Generator().manual_seed(0), pool.voxels)
        of_noise, of_data = (
            objective.weight(angles) * part for part in (torch.cos(angles) ** 2, torch.sin(angles) ** 2)
        )
        powers = pool.take(torch.arange(len(store)))[0].square().flatten(1).mean(1)
        expected += (of_noise.mean() + of_data.mean() * powers).tolist()
    assert task.validate()["loss"] == pytest.approx(sum(expected) / len(expected), rel=0.05)


def test_a_resumed_training_equals_an_uninterrupted_one(stores, tmp_path):
    train, validation = stores

    def trained(folder: Path, stop: int | None = None) -> dict[str, torch.Tensor]:
        denoiser = new_denoiser(declaration=DECLARATION)
        settings = denoiser_settings(steps=8, checkpoint_minutes=1e-9)
        records = train_denoiser(
            denoiser,
            train,
            validation,
            settings,
            statistics=LatentStatistics.of(train),
            folder=folder,
            seed=3,
            device=CPU,
        )
        for record in records:
            if record.step == stop:
                records.close()
                return {}
        return weights(denoiser.network)

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop=3)
    assert list((tmp_path / "parts").iterdir())  # something to go on from
    again = trained(tmp_path / "parts")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_the_autoencoder_learns_from_both_and_is_judged_on_both(tmp_path):
    train, validation = on_two_grids("train", 6, 4), on_two_grids("validation", 2, 3)
    task = AutoencoderTask(
        new_autoencoder(), [p.volumes for p in train], [p.volumes for p in validation], autoencoder_settings(), 3
    )
    assert {tuple(task.draw(k, slice(0, 4))["volumes"].shape[2:]) for k in range(10)} == {LARGE.box, SMALL.box}
    alone = [
        AutoencoderTask(task.network, train[0].volumes, part.volumes, autoencoder_settings(), 3).validate()["psnr"]
        for part in validation
    ]
    assert task.validate()["psnr"] == pytest.approx((2 * alone[0] + 3 * alone[1]) / 5, rel=1e-5)
    plan = autoencoder_settings(steps=20)
    records = list(train_autoencoder(new_autoencoder(), train, validation, plan, folder=tmp_path, seed=3, device=CPU))
    losses = [record.validation["loss"] for record in records if record.validation]
    assert losses[-1] < 0.9 * losses[0]
