"""What a stage can tell about itself, without knowing who keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """A run that is being recorded."""

    @property
    def run_id(self) -> str | None:
        """The run's name in the store; None where nothing is recorded."""
        ...

    def stage(self, name: str) -> AbstractContextManager[Tracker]:
        """Record a part of this run as a run of its own, ended as finished, failed or killed by how the block ends."""
        ...

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested or flat; nested keys are joined by dots."""
        ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures, at an optimiser step where they belong to one."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of everything in a folder, under `folder`."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Label the run."""
        ...

    def dataset(self, name: str, digest: str) -> None:
        """Record the data that went in, by the digest of its manifest."""
        ...


class NullTracker:
    """Records nothing: for processes that are not the first of a group, and for tests."""

    run_id: str | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[Tracker]:
        yield self

    def params(self, values: Mapping[str, Any]) -> None:
        """Forget them."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Forget them."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Forget it."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Forget them."""

    def dataset(self, name: str, digest: str) -> None:
        """Forget it."""
