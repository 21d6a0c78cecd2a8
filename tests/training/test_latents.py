"""The latent store: the mean and never a draw, true statistics, whole or not there."""

import dataclasses
import json
import resource
import signal

import numpy as np
import pytest
import torch
from small_generator import BOX, CPU, new_autoencoder, volume_set

from medsynth.config.training import TILE_VOXELS
from medsynth.errors import DataError, UnreadableError
from medsynth.models.conditions import TURNED
from medsynth.progress import Silent
from medsynth.training.batches import Order
from medsynth.training.latents import LatentStatistics, LatentStore, encode_latents
from medsynth.training.pool import GridPool
from medsynth.training.variants import Variant, mirrored, turned, turned_labels


def encoded(folder, network=None, tile_voxels=TILE_VOXELS, **changes):
    volumes = volume_set(7, "train", **changes)
    return encode_latents(network or new_autoencoder(), volumes, folder, CPU, Silent(), tile_voxels=tile_voxels)


def test_holds_the_posterior_mean_of_every_volume(tmp_path):
    network, volumes = new_autoencoder(), volume_set(7, "train")
    store = encoded(tmp_path / "store", network, 3 * np.prod(BOX))  # batches of 3, the last one of 1
    with torch.no_grad():
        expected = network.encode(volumes.volumes).mean
    torch.testing.assert_close(torch.from_numpy(np.array(store.latents)), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(store.latents, np.memmap)
    assert len(store) == 7
    assert store.rows[3] == volumes.cases[3].conditions
    assert [c.sha256 for c in store.cases] == [c.sha256 for c in volumes.cases]
    taken, masks = store.take([5, 0])
    torch.testing.assert_close(taken, expected[[5, 0]], rtol=1e-4, atol=1e-5)
    assert torch.equal(masks, volumes.masks[[5, 0]])


def test_is_the_same_every_time_and_ignores_the_networks_statistics(tmp_path):
    network = new_autoencoder()
    first = encoded(tmp_path / "a", network)
    network.set_latent_statistics(torch.ones(3), torch.full((3,), 2.0))
    second = encoded(tmp_path / "b", network)
    assert np.array_equal(first.latents, second.latents)
    assert first.digest == second.digest


def test_large_volumes_are_encoded_in_tiles_with_the_same_result(tmp_path):
    whole = encoded(tmp_path / "a")
    network = new_autoencoder()
    network.set_latent_statistics(torch.ones(3), torch.full((3,), 2.0))
    tiled = encoded(tmp_path / "b", network, np.prod(BOX) - 1)
    np.testing.assert_allclose(tiled.latents, whole.latents, rtol=1e-3, atol=1e-4)


def test_statistics_are_those_of_the_whole_split_per_channel(tmp_path):
    store = encoded(tmp_path / "store")
    statistics = LatentStatistics.of(store)
    everything = np.array(store.latents, dtype=np.float64)
    np.testing.assert_allclose(statistics.shift, everything.mean((0, 2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(statistics.scale, everything.std((0, 2, 3, 4)), rtol=1e-5)
    normal = statistics.normalise(store.take(range(7))[0]).double()
    torch.testing.assert_close(normal.mean((0, 2, 3, 4)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3, 4), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    statistics.write(tmp_path / "statistics.json")
    again = LatentStatistics.read(tmp_path / "statistics.json")
    assert torch.equal(again.shift, statistics.shift)
    assert torch.equal(again.scale, statistics.scale)
    network = new_autoencoder()  # what the network calls normalised is the same thing
    network.set_latent_statistics(statistics.shift, statistics.scale)
    with torch.no_grad():
        theirs = network.encode_latent(volume_set(7, "train").volumes)
    torch.testing.assert_close(theirs, normal.float(), rtol=1e-3, atol=1e-4)


def test_a_constant_channel_becomes_zeros(tmp_path):
    network = new_autoencoder()
    with torch.no_grad():
        network.to_latent.conv.weight[1] = 0.0
        network.to_latent.conv.bias[1] = 0.25
    store = encoded(tmp_path / "store", network)
    normal = LatentStatistics.of(store).normalise(store.take(range(7))[0])
    assert float(normal[:, 1].abs().max()) < 0.1
    assert bool(normal.isfinite().all())


@pytest.mark.parametrize("name", ["latents.npy", "masks.npy", "store.json"])
@pytest.mark.parametrize("harm", ["altered", "missing"])
def test_what_was_altered_is_refused(tmp_path, name, harm):
    encoded(tmp_path / "store")
    path = tmp_path / "store" / name
    if harm == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-2] ^= 255
        path.write_bytes(data)
    with pytest.raises(UnreadableError, match=f"{name} is missing or .*encode again"):
        LatentStore.open(tmp_path / "store")


def test_a_newer_format_is_refused(tmp_path):
    encoded(tmp_path / "store")
    path = tmp_path / "store" / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(UnreadableError, match="expected format 1, found 2"):
        LatentStore.open(tmp_path / "store")


def test_broken_statistics_are_refused(tmp_path):
    path = tmp_path / "statistics.json"
    path.write_text('{"shift": [0.0]}')
    with pytest.raises(UnreadableError, match="no latent statistics"):
        LatentStatistics.read(path)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large|could not be written|requested and \d+ written"):
            encoded(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_a_leftover_is_replaced_and_so_is_an_older_store(tmp_path):
    (tmp_path / "store.partial").mkdir()
    (tmp_path / "store.partial" / "junk").write_text("x")
    encoded(tmp_path / "store")
    again = encoded(tmp_path / "store", masked=False)
    assert again.masks is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["latents.npy", "store.json"]


def test_latents_that_are_not_finite_are_refused(tmp_path):
    volumes = volume_set(3, "train")
    broken = volumes.volumes.clone()
    broken[1] = torch.nan
    with pytest.raises(DataError, match="expected finite latents"):
        encode_latents(
            new_autoencoder(), dataclasses.replace(volumes, volumes=broken), tmp_path / "store", CPU, Silent()
        )
    assert not (tmp_path / "store").exists()


VARIANTS = tuple(Variant(axes) for axes in ("", "x", "y", "xy"))
COPIES = (Variant(), Variant("", 1, 20.0), Variant("x", 2, 20.0))


def test_a_mirrored_variant_is_the_encoding_of_the_mirrored_volume(tmp_path):
    network, volumes = new_autoencoder(), volume_set(3, "train")
    store = encode_latents(network, volumes, tmp_path / "store", CPU, Silent(), variants=VARIANTS)
    assert len(store) == 12
    assert store.latents.shape[0] == store.masks.shape[0] == 12
    for number, variant in enumerate(VARIANTS):
        part = range(3 * number, 3 * number + 3)
        dims = [2 + "xyz".index(axis) for axis in variant.mirrored]
        with torch.no_grad():
            expected = network.encode(volumes.volumes.flip(dims)).mean
        latents, masks = store.take(part)
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(masks, volumes.masks.flip(dims))
        assert [store.cases[i].mirrored for i in part] == [variant.mirrored] * 3
        assert all(store.cases[i].turned is None for i in part)
        assert [store.cases[i].case for i in part] == [case.case for case in volumes.cases]
        assert [store.rows[i] for i in part] == [case.conditions for case in volumes.cases]
        if dims:  # and it is not the mirrored latent
            assert not torch.allclose(latents, store.take(range(3))[0].flip(dims), atol=1e-2)


def test_a_turned_copy_is_the_encoding_of_the_turned_volume_and_says_how_it_was_turned(tmp_path):
    network, volumes = new_autoencoder(), volume_set(3, "train")
    store = encode_latents(network, volumes, tmp_path / "store", CPU, Silent(), variants=COPIES, seed=4)
    assert LatentStore.open(tmp_path / "store").cases == store.cases
    plain = encode_latents(network, volumes, tmp_path / "plain", CPU, Silent())
    assert np.array_equal(store.latents[:3], plain.latents) and store.cases[:3] == plain.cases
    for number, variant in enumerate(COPIES):
        for row, case in enumerate(volumes.cases):
            degrees = store.cases[3 * number + row].turned
            assert degrees == variant.turn_of(case.case, 4)
            if degrees is None:
                continue
            scan, mask = (mirrored(each[[row]], variant.mirrored)[0] for each in (volumes.volumes, volumes.masks))
            with torch.no_grad():
                expected = network.encode(turned(scan, degrees, case.spacing_mm)[None]).mean
            latents, masks = store.take([3 * number + row])
            torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)
            assert torch.equal(masks[0], turned_labels(mask, degrees, case.spacing_mm))


def test_turned_copies_are_told_apart_from_scans_and_are_nobodys_first_scan(tmp_path):
    variants = (Variant("", 1, 20.0), Variant())
    store = encode_latents(new_autoencoder(), volume_set(3, "train"), tmp_path, CPU, Silent(), variants=variants)
    pool = GridPool(store, {}, LatentStatistics.of(store))
    assert pool.one_per_patient() == [3, 4, 5]
    _, conditions = pool.take(torch.tensor([0, 3]))
    told = conditions[TURNED]
    torch.testing.assert_close(told[0], torch.tensor([*(d / 10 for d in store.cases[0].turned), 1.0]))
    assert torch.equal(told[1], torch.zeros(4))


def test_every_variant_of_a_case_is_trained_on_as_often(tmp_path):
    store = encode_latents(new_autoencoder(), volume_set(3, "train"), tmp_path, CPU, Silent(), variants=VARIANTS)
    order = Order(len(store), 4, 0)
    seen = [store.cases[i] for number in range(6) for i in order.batch(number).tolist()]
    assert {(c.case, c.mirrored): seen.count(c) for c in seen} == {(c.case, c.mirrored): 2 for c in store.cases}
