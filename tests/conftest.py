"""The command line, called as a user calls it, but in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import pytest

from medsynth.cli import app
from medsynth.exits import guarded


@dataclass(frozen=True)
class Outcome:
    """What a call of the command left."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that say what is wrong; the others tell of progress."""
        return [line for line in self.err.splitlines() if line.startswith("medsynth: ")]


Medsynth = Callable[..., Outcome]


@pytest.fixture(scope="session")
def medsynth() -> Medsynth:
    """Call `medsynth ARGUMENTS`."""

    def call(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = guarded(lambda: app(args=[str(one) for one in arguments], standalone_mode=False), verbose=0)
        return Outcome(code, out.getvalue(), err.getvalue())

    return call
