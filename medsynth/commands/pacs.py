"""`medsynth pull` and `medsynth push`: scans from and to a PACS."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsynth.commands.options import (
    DryRunOption,
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
    from medsynth.config.pacs import Pacs
    from medsynth.console import Screen
    from medsynth.pacs.question import Question

STANDARD_INPUT = Path("-")


def add_to(app: typer.Typer) -> None:
    """Put the verbs on the command."""
    app.command("pull")(_pull)
    app.command("push")(_push)


def _pull(
    from_: Annotated[str, typer.Option("--from", metavar="PACS", help="Settings of the PACS (YAML).")],
    out: Annotated[Path, typer.Option(help="Folder for the de-identified files; the same command goes on in it.")],
    study: Annotated[list[str] | None, typer.Option(metavar="UID", help="A study; repeatable.")] = None,
    patient: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A patient; repeatable. Shells keep a history: prefer --patient-file."),
    ] = None,
    patient_file: Annotated[
        Path | None, typer.Option(help="Patient IDs, one per line; - reads standard input.", allow_dash=True)
    ] = None,
    study_file: Annotated[
        Path | None, typer.Option(help="Study UIDs, one per line; - reads standard input.", allow_dash=True)
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A DICOM keyword and what it must match; repeatable.")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="Only series of this modality: CT or MR.")] = None,
    date: Annotated[
        str | None, typer.Option(metavar="RANGE", help="Study date: YYYYMMDD or YYYYMMDD-YYYYMMDD.")
    ] = None,
    profile: Annotated[str, typer.Option(help="Settings of de-identification: a preset or a YAML file.")] = "strict",
    key_file: Annotated[Path | None, typer.Option(help="Secret for pseudonyms; created where it is missing.")] = None,
    linking_table: Annotated[
        Path | None,
        typer.Option(help="Encrypted table that leads from pseudonyms back to patients; none unless named."),
    ] = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Fetch scans from a PACS, de-identified before they touch the disk."""
    from medsynth.config.deidentify import Deidentify
    from medsynth.config.load import load_section
    from medsynth.pacs.question import questions

    asked = questions(
        patients=[*(patient or []), *_listed(patient_file)],
        studies=[*(study or []), *_listed(study_file)],
        query=query or [],
        modality=modality,
        date=date,
    )
    changes = [text for text in set_ or [] if not text.startswith("deidentify.")]
    settings = _settings(from_, changes)
    options = load_section(Deidentify, "deidentify", profile, [text for text in set_ or [] if text not in changes])
    screen = screen_for(quiet)
    if dry_run:
        from medsynth.pacs.pull import preview

        show_result(preview(settings, asked, screen.say).facts(), json_, quiet)
        return
    show_result(pull_scans(settings, asked, out, options, key_file, linking_table, screen), json_, quiet)


def pull_scans(
    settings: Pacs,
    asked: Sequence[Question],
    out: Path,
    profile: Deidentify,
    key_file: Path | None,
    linking_table: Path | None,
    screen: Screen,
) -> dict[str, Any]:
    """From a PACS into a folder."""
    from medsynth.imaging.deidentify import SecretKey
    from medsynth.imaging.deidentify.linking import LinkingTable
    from medsynth.pacs.pull import pull

    place = key_file or out.parent / f"{out.name}.key"
    key = SecretKey.load_or_create(place)
    linking = None if linking_table is None else LinkingTable.open(linking_table, key)
    report = pull(settings, asked, out, key, profile, linking=linking, progress=screen.progress(), say=screen.say)
    report.raise_if_incomplete()
    return {"out": str(out), "key": str(place), "key_fingerprint": key.fingerprint, **report.facts()}


def _push(
    folder: Annotated[Path, typer.Argument(help="Folder of synthetic DICOM files.")],
    to: Annotated[str, typer.Option("--to", metavar="PACS", help="Settings of the PACS (YAML).")],
    deidentified: Annotated[
        bool, typer.Option("--deidentified", help="Let files through that are marked as de-identified, too.")
    ] = False,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Send synthetic scans to a PACS; anything that is not marked as synthetic is refused."""
    from medsynth.pacs.push import parcels_of, push

    settings = _settings(to, set_)
    screen = screen_for(quiet)
    if dry_run:
        parcels = parcels_of(folder, deidentified=deidentified)
        show_result({"series": len({one.series for one in parcels}), "instances": len(parcels)}, json_, quiet)
        return
    report = push(settings, folder, deidentified=deidentified, progress=screen.progress(), say=screen.say)
    report.raise_if_incomplete()
    show_result(report.facts(), json_, quiet)


def _settings(name: str, overrides: Sequence[str] | None) -> Pacs:
    from medsynth.config.load import load_section
    from medsynth.config.pacs import Pacs

    return load_section(Pacs, "pacs", name, overrides or [])


def _listed(path: Path | None) -> list[str]:
    """The lines of a file of identifiers. None of them is ever shown."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UsageError(
            "expected a readable text file with one identifier per line, found none; check its name"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise UsageError("expected one identifier per line, found none; write them into the file")
    return [line for line in lines if line]
