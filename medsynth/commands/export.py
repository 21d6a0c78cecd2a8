"""`medsynth export`: a dataset in the layout of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medsynth.commands.options import JsonOption, QuietOption, VerboseOption, show_result


def add_to(app: typer.Typer) -> None:
    """Put the verb on the command."""
    app.command("export")(_verb)


def _verb(
    dataset: Annotated[
        Path, typer.Argument(help="Folder with manifest.csv: a synthetic dataset or a prepared cohort.")
    ],
    layout: Annotated[Literal["nnunet", "bids", "croissant"], typer.Option(help="nnunet, bids or croissant.")],
    out: Annotated[Path, typer.Option(help="New folder; for nnunet called DatasetNNN_NAME.")],
    real: Annotated[
        Path | None, typer.Option(help="Prepared cohort to train on together with the synthetic scans.")
    ] = None,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Write a dataset for nnU-Net, as a BIDS derivative or with Croissant metadata, with a datasheet."""
    from medsynth.stages.export.run import export

    show_result(export(dataset, layout, out, real=real), json_, quiet)
