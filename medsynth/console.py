"""What the user sees while work is going on: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 20.0
SECONDS_OF_RESUMING = 1.0
"""What is reported this soon was done by an earlier run: it says nothing about the pace."""
LINES_OF_PACE = 15
"""The pace is that since so many lines ago: five minutes."""


class TerminalProgress:
    """A bar with the remaining time for each task."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=self.console) as bars:
            bar = bars.add_task(label, total=max(total, 1))
            yield lambda done: bars.advance(bar, done)


class LogProgress:
    """A line at the start, the end and every now and then between, each with the estimated time left."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    @contextmanager
    def task(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        start = last = time.monotonic()
        done = 0
        paces = deque([(start, 0)], LINES_OF_PACE)
        self.write(f"{label}: {total} to do")

        def advance(more: int) -> None:
            nonlocal done, last
            done += more
            now = time.monotonic()
            if now - start < SECONDS_OF_RESUMING:
                paces[0] = (now, done)
            since, earlier = paces[0]
            if done > earlier and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                left = (now - since) / (done - earlier) * max(total - done, 0)
                self.write(f"{label}: {done}/{total}, about {clock(left)} left")
                if since == start:
                    paces.clear()  # the first line may count what an earlier run did, however long that took to tell
                paces.append((now, done))

        yield advance
        self.write(f"{label}: {done}/{total} in {clock(time.monotonic() - start)}")


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Screen:
    """Everything goes to stderr, so that stdout is free for `--json` and for results."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """One line of information."""
        if not self.quiet:
            self.console.print(line, markup=False, soft_wrap=True)

    def progress(self) -> TerminalProgress | LogProgress:
        """A listener that fits where stderr goes."""
        if sys.stderr.isatty() and not self.quiet:
            return TerminalProgress(self.console)
        return LogProgress(self.say)


def as_lines(result: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A result for reading: `key: value`, nested by indentation."""
    for key, value in result.items():
        label = key.replace("_", " ") if key.isidentifier() else key
        if isinstance(value, dict):
            yield f"{indent}{label}:"
            yield from as_lines(value, indent + "  ")
        elif isinstance(value, list):
            yield f"{indent}{label}: {len(value)}"
            yield from (f"{indent}  {item}" for item in value)
        else:
            yield f"{indent}{label}: {_value(key, value)}"


def _value(key: str, value: Any) -> str:
    if key == "seconds":
        return clock(value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
