"""`medsynth reidentify` and `medsynth forget`: from a pseudonym back to a patient, and from a patient to all that is theirs."""

from __future__ import annotations

import typer


def add_to(app: typer.Typer) -> None:
    """Put the verbs on the command."""
