"""Whole volumes beside MAISI's, and how much of a device a training step uses: what is compared, and that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

WHEEL = "benchmarks are part of a checkout, not of the wheel"
generation = pytest.importorskip("benchmarks.generation", reason=WHEEL)
harness = pytest.importorskip("benchmarks.harness", reason=WHEEL)
utilisation = pytest.importorskip("benchmarks.utilisation", reason=WHEEL)


@pytest.mark.parametrize("latent_side", [32, 64, 128])
def test_the_peer_walks_the_times_of_its_own_scheduler(latent_side: int) -> None:
    from monai.networks.schedulers.rectified_flow import RFlowScheduler

    scheduler = RFlowScheduler(
        use_discrete_timesteps=False, use_timestep_transform=True, sample_method="uniform", scale=1.4
    )
    scheduler.set_timesteps(30, input_img_size_numel=latent_side**3)
    times = generation.flow_times(30, latent_side)
    assert times[0] == 1
    assert times[-1] == 0
    torch.testing.assert_close(times[:-1], scheduler.timesteps.float() / 1000, rtol=1e-3, atol=0)  # kept in float16


def test_ratios_are_over_ours_of_the_same_side() -> None:
    ours = {"network": "medsynth", "side": 64, **dict.fromkeys(generation.FIGURES, 2.0)}
    peer = {"network": "maisi", "side": 64, "evaluation_seconds": 6.0, "out_of_memory": True}
    other = {**ours, "side": 128, "decode_seconds": 8.0}
    found = generation.ratios([ours, peer, other])
    assert found[0]["over_medsynth"] == dict.fromkeys(generation.FIGURES, 1.0)
    assert found[1]["over_medsynth"] == {"evaluation_seconds": 3.0}
    assert found[2]["over_medsynth"]["decode_seconds"] == 1.0
    assert generation.table(found).splitlines()[2].count("out of memory") == 3


@pytest.mark.parametrize("name", ["tiny", "transformer-tiny"])
def test_flops_are_those_that_a_real_pass_takes(name: str) -> None:
    network = harness.preset(name, utilisation.CHANNELS, utilisation.DOWNSAMPLING).eval()
    with torch.no_grad(), utilisation.plain_attention(), FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 4, 8, 8, 8), torch.rand(2), {})
    assert utilisation.forward_flops(name, 8, 2, "cpu") == counter.get_total_flops() > 0


def test_a_preset_is_the_network_of_its_file() -> None:
    network = harness.preset("tiny", 16, 8)
    assert list(network.config.widths) == [32, 64, 128]
    assert (network.config.latent_channels, network.config.downsampling) == (16, 8)


@pytest.mark.slow
def test_a_volume_that_takes_long_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    case = (generation.OURS, 32, "tiny", 3, "cpu", "float32", 1)
    row = generation.measure(*case)
    assert row["whole_measured"] is True
    assert row["whole_seconds"] > row["decode_seconds"] > 0
    monkeypatch.setattr(generation, "LONGEST_WHOLE_SECONDS", 0.0)
    row = generation.measure(*case)
    assert row["whole_measured"] is False
    assert row["whole_seconds"] == pytest.approx(3 * row["evaluation_seconds"] + row["decode_seconds"])


@pytest.mark.slow
def test_volumes_are_measured_beside_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    names = [generation.OURS, generation.PEER]
    arguments = ["--sides", "32", "--evaluations", "2", "--preset", "tiny", "--networks", *names, "--out", str(out)]
    generation.main(arguments)
    ours, peer = json.loads(out.read_text())["rows"]
    assert peer["denoiser_parameters"] > 1.7e8
    assert peer["decoder_parameters"] > ours["decoder_parameters"] > 0
    assert peer["over_medsynth"]["whole_seconds"] > 1
    assert len(capsys.readouterr().out.splitlines()) == 2 * 2 + 1


@pytest.mark.slow
def test_a_step_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    utilisation.main(["--presets", "tiny", "--side", "8", "--batch", "1", "--out", str(out)])
    record = json.loads(out.read_text())
    (row,) = record["rows"]
    assert row["variant"] == utilisation.EAGER
    assert row["tflop_per_second"] == pytest.approx(row["step_tflop"] / row["seconds"])
    assert row["share"] == pytest.approx(row["tflop_per_second"] / record["product_tflop_per_second"])
