"""Options that verbs share, and what they do with their result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medsynth.console import Screen

PipelineName = Annotated[str, typer.Argument(metavar="PIPELINE", help="A pipeline file, or the name of a shipped one.")]
WorkspaceOption = Annotated[Path | None, typer.Option("--workspace", help="Folder of the experiment [runs/<name>].")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; repeatable.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything that is drawn.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show the plan and do nothing.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do stages again that are done.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
VerboseOption = Annotated[int, typer.Option("--verbose", "-v", count=True, help="-vv shows tracebacks and warnings.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]


def screen_for(quiet: bool) -> Screen:
    """Where progress and remarks of a verb go."""
    from medsynth.console import Screen

    return Screen(quiet=quiet)


def show_result(result: dict[str, Any], as_json: bool, quiet: bool = False) -> None:
    """Print the result of a verb, as JSON or in lines."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, default=str, allow_nan=False))
        return
    if quiet:
        return
    from medsynth.console import as_lines

    for line in as_lines(result):
        typer.echo(line)
