"""Exact comparisons need the same arithmetic on every machine: `auto` is fp32 here, whatever the processor can do."""

from __future__ import annotations

import pytest

from medsynth import precision


@pytest.fixture(autouse=True)
def processor_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", frozenset)
