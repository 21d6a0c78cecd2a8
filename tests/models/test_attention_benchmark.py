"""The benchmark's arithmetic, and that it runs from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

attention = pytest.importorskip("benchmarks.attention", reason="benchmarks are part of a checkout, not of the wheel")


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
