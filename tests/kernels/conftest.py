"""What the checks of several kernels share."""

from __future__ import annotations

import pytest

from medsynth.kernels import rows


@pytest.fixture(params=[1, 3])
def programs_of_many_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of several blocks each, the last one shorter: what a volume of any size has on a GPU."""
    monkeypatch.setattr(rows, "PROGRAMS", request.param)
    monkeypatch.setattr(rows, "SUMMING_PROGRAMS", 2 * request.param)
    monkeypatch.setattr(rows, "BLOCK_NUMBERS", 64)
    monkeypatch.setattr(rows, "SUMMING_BLOCK_NUMBERS", 128)
