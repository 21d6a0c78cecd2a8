"""The arithmetic of the benchmarks, and that they run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

attention = pytest.importorskip("benchmarks.attention", reason="benchmarks are part of a checkout, not of the wheel")

autoencoder = pytest.importorskip(
    "benchmarks.autoencoder", reason="benchmarks are part of a checkout, not of the wheel"
)
denoiser = pytest.importorskip("benchmarks.denoiser", reason="benchmarks are part of a checkout, not of the wheel")


def test_exponents_are_slopes_per_kind() -> None:
    rows = [
        {"kind": "linear", "tokens": 10, "seconds": 1.0, "peak_mib": 1.0},
        {"kind": "linear", "tokens": 100, "seconds": 10.0, "peak_mib": 1.0},
        {"kind": "softmax", "tokens": 10, "seconds": 1.0, "peak_mib": 1.0},
        {"kind": "softmax", "tokens": 100, "seconds": 100.0, "peak_mib": 1.0},
    ]
    assert [row["exponent"] for row in attention.with_exponents(rows)] == [None, 1.0, None, 2.0]


@pytest.mark.slow
def test_it_measures_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    attention.main(["--sides", "4", "--softmax-up-to", "4", "--out", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert [(row["kind"], row["tokens"]) for row in rows] == [("linear", 64), ("softmax", 64)]
    assert all(row["seconds"] > 0 and row["peak_mib"] >= 0 for row in rows)
    assert capsys.readouterr().out.count("linear") == 1


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
def test_the_networks_are_measured_beside_their_peers() -> None:
    rows = [denoiser.measure(name, 8, (32, 32, 32), "cpu", "float32", 1) for name in denoiser.NETWORKS]
    assert all(row["step_seconds"] > 0 and row["forward_seconds"] > 0 for row in rows)
    assert len(denoiser.table(rows).splitlines()) == 1 + len(rows)
    rows = [autoencoder.measure(name, 16, 16, 1, True, "cpu", "float32", 1) for name in ("medsynth", "monai-maisi")]
    assert all(row["encode_seconds"] > 0 and row["decode_seconds"] > 0 for row in rows)
    assert "over ours" in autoencoder.table(rows)
