"""The arithmetic of the benchmarks, and that they run from end to end."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

WHEEL = "benchmarks are part of a checkout, not of the wheel"
attention = pytest.importorskip("benchmarks.attention", reason=WHEEL)
autoencoder = pytest.importorskip("benchmarks.autoencoder", reason=WHEEL)
data = pytest.importorskip("benchmarks.autoencoder_data", reason=WHEEL)
denoiser = pytest.importorskip("benchmarks.denoiser", reason=WHEEL)
growth = pytest.importorskip("benchmarks.growth", reason=WHEEL)
harness = pytest.importorskip("benchmarks.harness", reason=WHEEL)
quality = pytest.importorskip("benchmarks.autoencoder_quality", reason=WHEEL)
scaling = pytest.importorskip("benchmarks.scaling", reason=WHEEL)


def test_the_exponent_is_that_of_a_power_law() -> None:
    sizes = [8.0, 64.0, 4096.0]
    for power in (0.0, 1.0, 1.5, 2.0):
        costs = [3 * size**power for size in sizes]
        assert growth.exponent(sizes, costs) == pytest.approx(power)
        assert growth.steps(sizes, costs)[1:] == pytest.approx([power, power])
    assert growth.exponent([8.0], [1.0]) is None
    assert growth.exponent([1.0, 10.0, 100.0], [1.0, 20.0, 100.0]) == pytest.approx(
        1.0
    )  # the middle one does not tilt it


def test_the_crossover_is_where_the_power_laws_meet() -> None:
    sizes = [10.0, 100.0, 1000.0, 10000.0]
    linear, quadratic = [300 * n for n in sizes], [n**2 for n in sizes]
    assert growth.crossover(sizes, linear, quadratic) == pytest.approx(300)
    assert growth.crossover(sizes, quadratic, linear) is None
    assert growth.crossover(sizes, [1.0] * 4, [2.0] * 4) == 10.0
    assert growth.crossover([1.0, 10.0, 100.0], [1.0, 4.0, 1.0], [2.0, 2.0, 2.0]) == pytest.approx(10**1.5)


def test_exponents_and_speedups_are_per_kind() -> None:
    rows = [
        {"kind": kind, "tokens": tokens, "pass_seconds": 1e-3 * tokens**power * (100 if kind == "linear" else 1)}
        for tokens in (10, 100, 1000)
        for kind, power in (("linear", 1), ("softmax", 2))
    ]
    found = attention.with_exponents(rows)
    slopes = [row["exponent"] for row in found]
    assert slopes[0] is slopes[3] is None
    assert [*slopes[1:3], *slopes[4:]] == pytest.approx([1, 1, 2, 2])
    summary = attention.summary(rows, 100)
    assert summary["linear_exponent"] == pytest.approx(1)
    assert summary["softmax_exponent"] == pytest.approx(2)
    assert summary["crossover_tokens"] == pytest.approx(100)
    assert summary["speedup"]["1000"] == pytest.approx(10)


def test_the_peak_is_that_of_the_work_alone() -> None:
    def take(mib: int) -> None:
        with mmap.mmap(-1, mib * 2**20) as block:  # from the system, and not from what malloc holds already
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1

    take(120)  # a peak of before, which is to be forgotten
    assert 39 < harness.peak_above(lambda: take(40), "cpu") < 60


def test_slow_work_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(harness, "SLOW_SECONDS", 0.0)
    harness.best_seconds(lambda: calls.append(1), "cpu")
    assert len(calls) == 1
    monkeypatch.setattr(harness, "SLOW_SECONDS", 100.0)
    harness.best_seconds(lambda: calls.append(1), "cpu", most=3)
    assert len(calls) == 1 + 4


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of which nothing is asked but to wait, and to say how much memory it used: 7 MiB, and 5 of them before."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7 * 2**20)


@pytest.mark.usefixtures("pretended_gpu")
def test_on_a_gpu_two_runs_warm_up_and_slow_work_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    harness.best_seconds(lambda: calls.append(1), "cuda", most=3)
    assert len(calls) == 2 + 3
    monkeypatch.setattr(harness, "GPU_SLOW_SECONDS", 0.0)
    harness.best_seconds(lambda: calls.append(1), "cuda", most=3)
    assert len(calls) == 2 + 3 + 1


@pytest.mark.usefixtures("pretended_gpu")
def test_a_work_that_does_not_fit_the_gpu_leaves_the_others_their_figures() -> None:
    def too_much() -> None:
        raise torch.OutOfMemoryError

    works = {"large": too_much, "small": lambda: None}
    row = harness.costs(lambda: ({"parameters": 3}, works), (), "cuda", peaks=["small"])
    assert row["out_of_memory"] is True
    assert row["parameters"] == 3
    assert row["small_peak_mib"] == 2
    assert row["small_seconds"] >= 0
    assert not {key for key in row if key.startswith("large")}
    assert harness.cell(row, "large_seconds", 15, 3).strip() == "out of memory"
    assert harness.cell({}, "large_seconds", 15, 3).strip() == "not seen"
    with pytest.raises(ZeroDivisionError):
        harness.costs(lambda: ({}, {"wrong": lambda: 1 // 0}), (), "cuda")


@pytest.mark.usefixtures("pretended_gpu")
def test_a_network_that_does_not_fit_the_gpu_is_a_row_of_its_own() -> None:
    def prepare() -> None:
        raise torch.OutOfMemoryError

    row = {"network": "medsynth", "side": 8, **harness.costs(prepare, (), "cuda")}
    assert row == {"network": "medsynth", "side": 8, "out_of_memory": True}
    assert denoiser.table([row]).count("out of memory") == 3


def test_a_kind_that_runs_out_of_memory_has_no_part_in_exponents() -> None:
    rows = [{"kind": "linear", "tokens": n, "pass_seconds": float(n)} for n in (10, 100, 1000)]
    rows += [{"kind": "softmax", "tokens": n, "pass_seconds": float(n**2)} for n in (10, 100)]
    rows += [{"kind": "softmax", "tokens": 1000, "out_of_memory": True}]
    assert attention.summary(rows, 10)["softmax_exponent"] == pytest.approx(2)
    found = attention.with_exponents(rows)
    assert [row["exponent"] for row in found][-1] is None
    assert attention.table(found).splitlines()[-1].split()[-3:] == ["out", "of", "memory"]


def test_only_a_gpu_has_room_for_ours_untiled_and_the_peer_never_takes_512_at_once() -> None:
    assert autoencoder.ways(128, "cuda", 256, 512) == [("medsynth", False), ("monai-maisi", False)]
    assert autoencoder.ways(256, "cuda", 256, 512) == [("medsynth", True), ("medsynth", False), ("monai-maisi", False)]
    assert autoencoder.ways(256, "cpu", 256, 128) == [("medsynth", True)]
    assert autoencoder.ways(512, "cuda", 256, 512) == [("medsynth", True), ("monai-maisi", True)]


def test_windows_of_the_peer_cover_the_volume() -> None:
    z = torch.randn(1, 1, 6, 7, 5)
    whole = torch.nn.functional.interpolate(z, scale_factor=4.0)
    seen: list[tuple[int, ...]] = []

    def decode(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape[2:]))
        return torch.nn.functional.interpolate(x, scale_factor=4.0)

    torch.testing.assert_close(autoencoder.decode_in_windows(decode, z, window=4), whole)
    assert set(seen) == {(4, 4, 4)}
    seen.clear()
    torch.testing.assert_close(autoencoder.decode_in_windows(decode, z, window=80), whole)
    assert seen == [(6, 7, 5)]


@pytest.mark.slow
def test_it_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    attention.main(["--sides", "4", "--softmax-up-to", "4", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["kind"], row["tokens"]) for row in rows] == [("linear", 64), ("softmax", 64)]
    assert all(row["pass_seconds"] > 0 and row["pass_peak_mib"] >= 0 for row in rows)
    assert "crossover_tokens" in capsys.readouterr().out


def test_ratios_are_over_ours_at_the_same_size() -> None:
    row = {
        "network": "medsynth",
        "side": 8,
        "parameters": 1,
        "step_seconds": 2.0,
        "forward_seconds": 1.0,
        "step_peak_mib": 4.0,
    }
    peer = {**row, "network": "monai-tutorial", "step_seconds": 6.0, "forward_seconds": 0.5}
    line = denoiser.table([row, peer]).splitlines()[-1].split()
    assert [line[4], line[6], line[8]] == ["3.00", "0.50", "1.00"]


@pytest.mark.slow
def test_the_softmax_network_is_measured_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    names = [denoiser.OURS, denoiser.EVERY_LEVEL]
    denoiser.main(["--sides", "8", "--widths", "32", "32", "32", "--networks", *names, "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [row["network"] for row in rows] == names
    assert all(row["step_seconds"] > row["forward_seconds"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(rows) + 1


@pytest.mark.slow
def test_the_networks_have_about_as_many_parameters() -> None:
    with torch.device("meta"):
        sizes = [denoiser.parameters(denoiser.build(name, (128, 256, 384))) for name in denoiser.NETWORKS]
    assert max(sizes) < 1.25 * min(sizes)


@pytest.mark.slow
def test_the_networks_run() -> None:
    cases = [(name, 8, (32, 32, 32), None, "cpu", "float32", 1) for name in denoiser.NETWORKS]
    for case in cases:
        facts, works = denoiser.prepare(*case)
        assert facts["parameters"] > 0
        for work in works.values():
            work()
    for name in (autoencoder.OURS, autoencoder.PEER):
        _, works = autoencoder.prepare(name, 16, 16, 1, name == autoencoder.OURS, "cpu", "float32", 1)
        for work in works.values():
            work()


def test_the_peer_is_shown_over_ours() -> None:
    ours = {
        "network": "medsynth",
        "side": 64,
        "tiled": False,
        "parameters": 1,
        "encode_seconds": 1.0,
        "decode_seconds": 2.0,
    }
    ours |= {"encode_peak_mib": 10.0, "decode_peak_mib": 20.0}
    peer = {**ours, "network": "monai-maisi", "encode_seconds": 9.0, "decode_peak_mib": 100.0}
    assert autoencoder.table([ours, peer]).splitlines()[-1].split()[-3:] == ["9.00", "1.00", "5.00"]


def test_a_planted_difference_in_quality_is_found_and_none_is_not() -> None:
    generator = np.random.default_rng(0)
    theirs = generator.normal(20, 3, (3, 24))
    better = theirs + generator.normal(1, 0.2, (3, 24))
    value, low, high = quality.difference(better.tolist(), theirs.tolist())
    assert 0.8 < low < value < high < 1.2
    value, low, high = quality.difference((theirs + generator.normal(0, 0.2, (3, 24))).tolist(), theirs.tolist())
    assert low < 0 < high


def test_blocks_share_no_voxel_and_leave_the_background_out() -> None:
    voxels = np.arange(11 * 9 * 8, dtype=np.float64).reshape(11, 9, 8)
    found = data.blocks(voxels, 4)
    assert len(found) == 2 * 2 * 2
    values = np.concatenate([cube.ravel() for cube in found])
    assert len(np.unique(values)) == len(values)
    voxels[:4] = 7.0
    assert len(data.blocks(voxels, 4)) == 4


def test_intensities_come_into_the_range() -> None:
    assert data.windowed(np.array([-3000.0, -1000.0, -300.0, 400.0, 9000.0])).tolist() == [-1, -1, 0, 1, 1]
    scan = np.concatenate([np.linspace(10, 20, 2001), [1e9]])
    scaled = data.between_percentiles(scan)
    assert scaled.min() == -1
    assert scaled[1000] == pytest.approx(0, abs=0.01)
    assert scaled.max() == 1


def test_growth_of_generation_is_over_voxels_and_leaves_small_sizes_out() -> None:
    rows = [
        {"side": side, **dict.fromkeys(scaling.VOLUME_FIGURES, 5.0 if side == 32 else 1e-6 * side**3)}
        for side in (32, 64, 128, 256)
    ]
    growth_found = scaling.exponents(rows, 64)
    assert list(growth_found.values()) == pytest.approx([1.0] * 4)
    assert scaling.volume_table(rows, growth_found).splitlines()[-1].split() == ["exponent", *["1.00"] * 4]


@pytest.mark.slow
@pytest.mark.parametrize("arm", quality.ARMS)
def test_every_arm_of_the_comparison_of_autoencoders_takes_a_crop(arm: str) -> None:
    network = quality.network_of(arm, 1)
    factor, channels = network.config["downsampling"], network.config["latent_channels"]
    crop, side = torch.zeros(1, 1, 16, 16, 16), 16 // factor
    with torch.no_grad():
        made, posterior = network(crop, torch.zeros(1, channels, side, side, side))
    assert made.shape == crop.shape
    assert posterior.mean.shape == (1, channels, side, side, side)
