"""`medsynth pull` and `medsynth push`: scans from and to a PACS."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Put the verbs on the command."""
