"""`medsynth index`: what scans a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsynth.commands.options import JsonOption, QuietOption, VerboseOption, screen_for, show_result
from medsynth.errors import UsageError

if TYPE_CHECKING:
    from medsynth.console import Screen


def add_to(app: typer.Typer) -> None:
    """Put the verb on the command."""
    app.command("index")(_verb)


def _verb(
    folder: Annotated[Path, typer.Argument(help="Folder to look through.")],
    out: Annotated[Path, typer.Option(help="CSV file to write.")] = Path("cohort.csv"),
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Find DICOM series and volumes in other files, one row each; fill in the labels yourself."""
    show_result(index_scans(folder, out, screen_for(quiet)), json_, quiet)


def index_scans(folder: Path, out: Path, screen: Screen) -> dict[str, Any]:
    """Write one row per series or NIfTI file."""
    from medsynth.imaging.index import index_folder, write_index

    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of scans, found none; check the path")
    if out.exists():
        raise UsageError(
            f"{out}: expected a new file, found one that exists; it may hold your labels, so choose another name"
        )
    if not out.parent.is_dir():
        raise UsageError(f"{out}: expected an existing folder to write into, found none; create it first")
    rows = index_folder(folder)
    write_index(rows, out)
    usable = sum(row.usable for row in rows)
    for line, row in enumerate(rows, start=2):
        if not row.usable:  # by its line, because names of files may be names of patients
            screen.say(f"line {line} of {out.name}: {row.reason.replace(row.image.name, 'the file')}")
        if row.notes:
            screen.say(f"line {line} of {out.name}: {row.notes}")
    return {"rows": len(rows), "usable": usable, "written": str(out)}
