"""`medsynth samplers`: which sampler, and how many network evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medsynth.commands.options import (
    DeviceOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    SeedOption,
    VerboseOption,
    WorkspaceOption,
    screen_for,
    show_result,
)
from medsynth.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Put the verb on the command."""
    app.command("samplers")(_verb)


def _verb(
    model: Annotated[str, typer.Option(help="Model folder, or models:/NAME@ALIAS.")],
    real: Annotated[Path, typer.Option(help="Workspace, prepared folder or its manifest.csv.")],
    out: Annotated[Path, typer.Option(help="New folder for table, plot and settings.")],
    samplers: Annotated[
        list[str] | None, typer.Option(metavar="A,B,...", help="Samplers to compare; repeatable [all].")
    ] = None,
    evaluations: Annotated[
        list[str] | None, typer.Option(metavar="N,M,...", help="Network evaluations per scan [4,8,15,30,60].")
    ] = None,
    count: Annotated[int | None, typer.Option(min=3, help="Scans per choice [as held-out ones, 32 to 128].")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server that models:/ names are looked up in.")
    ] = None,
    workspace: WorkspaceOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Compare samplers by quality against held-out real scans, and recommend the cheapest good one."""
    numbers = _numbers(evaluations) if evaluations else None
    names = _parts(samplers) if samplers else None
    from medsynth.verbs import compare_samplers

    screen = screen_for(quiet)
    result = compare_samplers(
        model=model, real=real, out=out, samplers=names, evaluations=numbers, count=count, tracking_uri=tracking_uri,
        workspace=workspace, seed=seed, device=device or "auto", dry_run=dry_run, screen=screen,
    )  # fmt: skip
    if json_:
        show_result(result, as_json=True)
        return
    settings = result.pop("yaml", "")
    show_result(result, as_json=False, quiet=quiet and not dry_run)
    if settings and not quiet:
        typer.echo(f"\n{settings}", nl=False)


def _parts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part.strip() for text in texts for part in text.split(","))


def _numbers(texts: Sequence[str]) -> tuple[int, ...]:
    parts = _parts(texts)
    if not all(part.isdecimal() for part in parts):
        raise UsageError(
            f"--evaluations: expected whole numbers joined by commas, found {','.join(texts)!r}; for example 8,15,30"
        )
    return tuple(map(int, parts))
