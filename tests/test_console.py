"""What a log is told while work is going on."""

from __future__ import annotations

import pytest

from medsynth import console
from medsynth.console import LogProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, in the only place of a list."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_follows_from_the_pace(clock: list[float]) -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("counting", 10) as advance:
        for _ in range(10):
            clock[0] += 12
            advance(1)
    assert lines == [
        "counting: 10 to do",
        "counting: 2/10, about 1:36 left",
        "counting: 4/10, about 1:12 left",
        "counting: 6/10, about 0:48 left",
        "counting: 8/10, about 0:24 left",
        "counting: 10/10, about 0:00 left",
        "counting: 10/10 in 2:00",
    ]


def test_what_an_earlier_run_did_is_not_taken_for_pace(clock: list[float]) -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("counting", 1000) as advance:
        for _ in range(9):  # a resumed training tells its earlier records again, all at once
            clock[0] += 0.01
            advance(100)
        clock[0] += 20
        advance(50)
    assert lines[1] == "counting: 950/1000, about 0:20 left"


def test_nor_where_that_took_long_to_tell(clock: list[float]) -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("counting", 1000) as advance:
        clock[0] += 15
        advance(900)
        for _ in range(3):
            clock[0] += 20
            advance(10)
    assert lines[2:4] == ["counting: 920/1000, about 2:40 left", "counting: 930/1000, about 2:20 left"]


def test_the_pace_is_that_of_late(clock: list[float]) -> None:
    lines: list[str] = []
    with LogProgress(lines.append).task("counting", 1000) as advance:
        for seconds in [100] * 5 + [20] * console.LINES_OF_PACE:
            clock[0] += seconds
            advance(1)
    assert lines[-2] == f"counting: {5 + console.LINES_OF_PACE}/1000, about 5:26:40 left"
