"""`medsynth deidentify`: DICOM to DICOM."""

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
    app.command("deidentify")(_verb)


def _verb(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files.")],
    out: Annotated[Path, typer.Option(help="New folder for the de-identified files.")],
    key_file: Annotated[Path | None, typer.Option(help="Secret for pseudonyms; created where it is missing.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """De-identify DICOM files, DICOM to DICOM, with a report."""
    show_result(deidentify_scans(folder, out, key_file, workers, screen_for(quiet)), json_, quiet)


def deidentify_scans(folder: Path, out: Path, key_file: Path | None, workers: int, screen: Screen) -> dict[str, Any]:
    """DICOM to DICOM."""
    from medsynth.imaging.deidentify import SecretKey
    from medsynth.imaging.deidentify.folder import deidentify_folder

    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of DICOM files, found none; check the path")
    place = key_file or out.parent / f"{out.name}.key"
    key = SecretKey.load_or_create(place)
    report = deidentify_folder(folder, out, key, workers=workers, progress=screen.progress())
    for entry in report.left_out:
        screen.say(f"file {entry.number}: left out: {entry.reason}")
    report.raise_if_refused()
    facts = {
        "files": report.found,
        "written": report.written,
        "patients": report.patients,
        "left_out": len(report.left_out),
    }
    return {"out": str(out), "key": str(place), "key_fingerprint": key.fingerprint, "audit": str(report.audit), **facts}
