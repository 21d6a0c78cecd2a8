"""Latents wait on the device, in memory or on disk, and are the same wherever they wait."""

import math
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from small_generator import CPU, DECLARATION, denoiser_records, new_autoencoder, new_denoiser, stores, weights

from medsynth.errors import ConfigError
from medsynth.models.conditions import encode, steering_values
from medsynth.seeding import torch_generator
from medsynth.training import pool as pools
from medsynth.training.latents import LatentCase, LatentStatistics, LatentStore
from medsynth.training.pool import GridPool, Pool, even_angles, place_for, spread

CUDA = torch.device("cuda")


def new_pool(folder, declaration=DECLARATION):
    train, _, statistics = stores(folder, new_autoencoder())
    return Pool(train, declaration, statistics)


def test_gives_normalised_latents_and_the_conditions_of_their_cases(tmp_path):
    pool, cases = new_pool(tmp_path), torch.tensor([7, 0, 7])
    latents, conditions = pool.take(cases)
    (grid,) = pool.grids
    store = grid.store
    assert torch.equal(latents, grid.statistics.normalise(torch.from_numpy(np.array(store.latents)))[cases])
    rows = [steering_values(DECLARATION, store.rows[case]) for case in cases.tolist()]
    expected = encode(DECLARATION, rows, torch.from_numpy(np.array(store.masks))[cases])
    assert conditions.keys() == expected.keys()
    assert all(torch.equal(conditions[name], value) for name, value in expected.items())


def test_is_the_same_from_disk_and_from_memory_and_cannot_be_spoilt(tmp_path):
    disk, memory, cases = new_pool(tmp_path / "a"), new_pool(tmp_path / "b"), torch.tensor([3, 1])
    memory.hold(CPU)
    for _ in range(2):
        (a, c), (b, d) = disk.take(cases), memory.take(cases)
        assert torch.equal(a, b)
        assert all(torch.equal(c[name], d[name]) for name in c)
        for tensor in (a, b, *c.values(), *d.values()):
            tensor.zero_()  # a copy: the next batch is whole


def test_training_is_the_same_wherever_latents_wait(tmp_path):
    networks = []
    for place in ("disk", "memory", "device"):
        denoiser = new_denoiser()
        denoiser_records(tmp_path / place, 3, denoiser, latents=place)
        networks.append(weights(denoiser.network))
    for other in networks[1:]:
        assert all(torch.equal(other[name], weight) for name, weight in networks[0].items())


def test_every_mask_is_checked_once_at_the_door(tmp_path, monkeypatch):
    narrow = {**DECLARATION, "lesion": {**DECLARATION["lesion"], "labels": {"lesion": 2}}}
    monkeypatch.setattr(pools, "AT_ONCE", 3)
    with pytest.raises(ConfigError, match="lesion"):
        new_pool(tmp_path / "a", narrow)
    pool = new_pool(tmp_path / "b")
    monkeypatch.setattr(pools, "encode", None)
    pool.take(torch.arange(10))


def test_without_a_declared_mask_none_is_read(tmp_path):
    pool = new_pool(tmp_path, {"kind_of": DECLARATION["kind_of"]})
    assert set(pool.take(torch.arange(2))[1]) == {"kind_of"}
    assert pool.nbytes == pool.grids[0].store.latents.nbytes


@pytest.mark.parametrize(
    ("nbytes", "device", "processes", "expected"),
    [
        (10, CUDA, 1, "device"),
        (300, CUDA, 1, "memory"),
        (180, CUDA, 2, "memory"),
        (900, CUDA, 1, "disk"),
        (10, CPU, 1, "memory"),
        (600, CPU, 1, "disk"),
        (400, CPU, 2, "disk"),
    ],
)
def test_auto_takes_the_fastest_place_that_they_fit(monkeypatch, nbytes, device, processes, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert place_for(nbytes, "auto", device, processes) == expected
    assert place_for(nbytes, "disk", device, processes) == "disk"
    assert place_for(nbytes, "device", device, processes) == "device"


def test_spread_visits_all_as_evenly_as_can_be():
    assert spread(4, 8).tolist() == [0, 2, 4, 6]
    counts = torch.bincount(spread(64, 5), minlength=5)
    assert int(counts.max() - counts.min()) <= 1


def test_even_angles_hold_one_per_step():
    angles = even_angles(6, 5, 0.1, math.pi / 2, torch_generator(0, "a")).double()
    assert torch.equal(((angles - 0.1) / (math.pi / 2 - 0.1) * 30).floor(), torch.arange(30).double())


def test_bringing_latents_to_a_place_takes_little_beside_them(monkeypatch):
    monkeypatch.setattr(pools, "AT_ONCE", 4)
    latents = torch.randn(11, 2, 4, 4, 4, generator=torch_generator(0, "held"))
    cases = tuple(LatentCase(f"c{i}", f"p{i}", "train", "") for i in range(11))
    statistics = LatentStatistics(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0]))
    pool = GridPool(LatentStore(latents.numpy(), None, ({},) * 11, cases, ""), {}, statistics)
    before = pool.take(torch.arange(11))[0]
    read, sizes = pool._read, []
    monkeypatch.setattr(pool, "_read", lambda numbers: sizes.append(len(numbers)) or read(numbers))
    pool.hold(torch.device("cpu"))
    assert sizes == [4, 4, 3]
    assert torch.equal(pool.take(torch.arange(11))[0], before)
    assert len(sizes) == 3
