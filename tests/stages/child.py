"""The command in a process of its own, in which something happens at a chosen moment.

The processes are forked from one that has imported everything and computes with one thread, so that each costs no more
than its work.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = [
    "medsynth.cli",
    "medsynth.verbs",
    "medsynth.stages.chain",
    "medsynth.stages.ask",
    "medsynth.tracking.mlflow_tracker",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.pyfunc",
]


@dataclass(frozen=True)
class Strike:
    """What befalls the process at the `call`-th call of a function, before its work or after it."""

    where: str
    """`module:name` or `module:Class.name`."""
    call: int = 1
    what: str = "SIGKILL"
    """The name of a signal, or of an error number that the function then raises."""
    after: bool = False


@dataclass(frozen=True)
class Ended:
    """How a process ended; `code` is negative for a signal."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("medsynth: ")]


class Children:
    """Starts the command in processes forked from a prepared one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED)
        self.number = 0

    def __call__(self, *arguments: object, strike: Strike | None = None) -> Ended:
        self.number += 1
        files = tuple(self.folder / f"{self.number}.{name}" for name in ("out", "err"))
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            process = self.context.Process(target=_command, args=([str(one) for one in arguments], files, strike))
            process.start()
        finally:
            del os.environ["OMP_NUM_THREADS"]
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, *(file.read_text(encoding="utf-8") for file in files))


def _command(arguments: list[str], files: tuple[Path, Path], strike: Strike | None) -> None:
    for number, file in enumerate(files, start=1):
        with file.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    if strike is not None:
        _lay(strike)
    from medsynth.cli import main

    main(arguments)


def _lay(strike: Strike) -> None:
    module, _, path = strike.where.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != strike.call:
            return original(*args, **kwargs)
        result = original(*args, **kwargs) if strike.after else None
        if strike.what.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[strike.what])
        else:
            raise OSError(getattr(errno, strike.what), "as a test wants it")
        return result if strike.after else original(*args, **kwargs)

    setattr(owner, name, struck)
