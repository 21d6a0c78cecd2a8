"""Every row of docs/faults.md: exit code, words, what is left on disk, and that nobody is named."""

from __future__ import annotations

import resource
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults.fault import Fault
from faults.scans import TELLING
from faults.table import PAGE, all_faults, page

ROWS_ASKED_FOR = 50
SMALL_DISK_BYTES = 400


@contextmanager
def small_disk() -> Iterator[None]:
    """No file of this process can grow beyond a few hundred bytes: the nearest thing to a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_DISK_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("fault", all_faults(), ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_fault_gets_what_the_page_says(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medsynth: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    fault.build(tmp_path)
    arguments = shlex.split(fault.command)[1:]
    if fault.small_disk:
        with small_disk():
            outcome = medsynth(*arguments)
    else:
        outcome = medsynth(*arguments)
    said = f"{outcome.err}\n{outcome.out}"
    assert outcome.code == fault.code, said
    assert fault.is_said_in(said), said
    assert fault.left.check(tmp_path) == ""
    assert [word for word in TELLING if word in said.lower()] == []
    assert len(outcome.errors) <= 2, said
    assert "a bug in medsynth" not in said


def test_the_page_has_every_row() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_there_are_enough_rows_and_each_is_another() -> None:
    faults = all_faults()
    assert len(faults) >= ROWS_ASKED_FOR
    assert len({(fault.name, fault.command) for fault in faults}) == len(faults)
