"""`medsynth deidentify`: DICOM to DICOM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsynth.commands.options import (
    JsonOption,
    QuietOption,
    SetOption,
    VerboseOption,
    screen_for,
    show_result,
)
from medsynth.errors import UsageError

if TYPE_CHECKING:
    from medsynth.config.deidentify import Deidentify
    from medsynth.console import Screen
    from medsynth.imaging.deidentify.folder import FolderReport, LeftOut


def add_to(app: typer.Typer) -> None:
    """Put the verb on the command."""
    app.command("deidentify")(_verb)


def _verb(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files.")],
    out: Annotated[Path, typer.Option(help="New folder for the de-identified files.")],
    profile: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="strict, longitudinal, research, or a settings file.")
    ] = "strict",
    set_: SetOption = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Secret for pseudonyms; created where it is missing [<out>.key].")
    ] = None,
    linking_table: Annotated[
        Path | None, typer.Option(help="Also keep who is who, encrypted under the key, in this file.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but write: tell what would become of the files.")
    ] = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """De-identify DICOM files, DICOM to DICOM, with a report for the privacy officer."""
    from medsynth.config.deidentify import Deidentify
    from medsynth.config.load import load_section

    settings = load_section(Deidentify, "deidentify", profile, set_ or [])
    screen = screen_for(quiet)
    if dry_run:
        report, facts = rehearse(folder, out, key_file, settings, workers, screen)
    else:
        report, facts = deidentify_scans(folder, out, key_file, settings, linking_table, workers, screen)
    for line in left_out_lines(report.left_out):
        screen.say(line)
    show_result(facts, json_, quiet)
    report.raise_if_incomplete()


def left_out_lines(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A line for each run of files that were left out for the same reason."""
    runs = groupby(enumerate(left_out), key=lambda pair: (pair[1].number - pair[0], pair[1].reason))
    for (_, reason), run in runs:
        numbers = [entry.number for _, entry in run]
        files = f"file {numbers[0]}" if len(numbers) == 1 else f"files {numbers[0]} to {numbers[-1]}"
        yield f"{files}: left out: {reason}"


def deidentify_scans(
    folder: Path,
    out: Path,
    key_file: Path | None,
    settings: Deidentify,
    linking_table: Path | None,
    workers: int,
    screen: Screen,
) -> tuple[FolderReport, dict[str, Any]]:
    """The report, and what of it is printed."""
    from medsynth.imaging.deidentify import SecretKey
    from medsynth.imaging.deidentify.folder import check_places, deidentify_folder
    from medsynth.imaging.deidentify.linking import LinkingTable

    check_places(folder, out)
    place = key_file or out.parent / f"{out.name}.key"
    for name, path in (("key file", place), ("linking table", linking_table)):
        if path is not None and out.resolve() in path.resolve().parents:
            raise UsageError(f"expected the {name} apart from the output folder, which is passed on; found it inside")
    key = SecretKey.load_or_create(place)
    table = None if linking_table is None else LinkingTable.open(linking_table, key)
    report = deidentify_folder(folder, out, key, settings, linking=table, workers=workers, progress=screen.progress())
    facts = {"out": out, "key": place, "key_fingerprint": key.fingerprint, "report": out / "deidentification.html"}
    if linking_table is not None:
        facts["linking_table"] = linking_table
    return report, {**facts, **report.summary()}


def rehearse(
    folder: Path, out: Path, key_file: Path | None, settings: Deidentify, workers: int, screen: Screen
) -> tuple[FolderReport, dict[str, Any]]:
    """The same without writing anything, not even a key: where there is none, one is made up and forgotten."""
    import secrets

    from medsynth.imaging.deidentify import SecretKey
    from medsynth.imaging.deidentify.folder import check_places, rehearse_folder
    from medsynth.imaging.deidentify.keys import KEY_BYTES

    check_places(folder, out)
    place = key_file or out.parent / f"{out.name}.key"
    key = SecretKey.load(place) if place.exists() else SecretKey(secrets.token_bytes(KEY_BYTES))
    report = rehearse_folder(folder, key, settings, workers=workers if key.path else 1, progress=screen.progress())
    return report, {"dry_run": True, **report.summary()}
