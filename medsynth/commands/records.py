"""`medsynth reidentify` and `medsynth forget`: from a pseudonym back to a patient, and from a patient to all that is theirs."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medsynth.commands.options import DryRunOption, JsonOption, QuietOption, VerboseOption, show_result
from medsynth.errors import DataError, UsageError

KeyFile = Annotated[Path | None, typer.Option(help="Secret that the pseudonyms were made with.")]


def add_to(app: typer.Typer) -> None:
    """Put the verbs on the command."""
    app.command("reidentify")(_reidentify_verb)
    app.command("forget")(_forget_verb)


def _reidentify_verb(
    pseudonyms: Annotated[
        list[str] | None, typer.Argument(metavar="[PSEUDONYM]...", help="Pseudonyms, or new study UIDs.")
    ] = None,
    linking_table: Annotated[Path | None, typer.Option(help="Table that was kept when they were given.")] = None,
    key_file: KeyFile = None,
    patient: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="The other way: the pseudonym of a patient ID.")
    ] = None,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Who is behind a pseudonym: what the linking table says, on standard output and nowhere else."""
    show_result(reidentify(pseudonyms or [], patient or [], linking_table, key_file), json_)


def reidentify(
    pseudonyms: list[str], patients: list[str], linking_table: Path | None, key_file: Path | None
) -> dict[str, Any]:
    """Links of each pseudonym or study UID, and the pseudonym of each patient ID."""
    from medsynth.imaging.deidentify import Deidentifier, SecretKey
    from medsynth.imaging.deidentify.linking import LinkingTable

    if bool(pseudonyms) == bool(patients):
        raise UsageError("reidentify: expected either pseudonyms or --patient ID, found both or neither")
    if key_file is None:
        raise UsageError(
            "reidentify: expected --key-file FILE, the secret that the pseudonyms were made with, found none"
        )
    if not key_file.is_file():
        raise UsageError("reidentify: expected a secret key in --key-file, found no such file; check the path")
    key = SecretKey.load(key_file)
    if patients:
        deidentifier = Deidentifier(key)
        return {patient: deidentifier.patient(patient) for patient in patients}
    if linking_table is None:
        raise UsageError("reidentify: expected --linking-table FILE, found none; without a table there is no way back")
    table = LinkingTable.load(linking_table, key)
    found = {pseudonym: [asdict(link) for link in table.find(pseudonym)] for pseudonym in pseudonyms}
    unknown = [pseudonym for pseudonym, links in found.items() if not links]
    if unknown:
        raise DataError(
            f"expected pseudonyms or study UIDs of the linking table, found {len(unknown)} of {len(found)} that are not in it; "
            "check them, and that it is the table of that run"
        )
    return {
        pseudonym: {str(number): link for number, link in enumerate(links, start=1)}
        for pseudonym, links in found.items()
    }


def _forget_verb(
    workspace: Annotated[Path, typer.Option("--workspace", help="Folder of the experiment.")],
    patient: Annotated[
        str | None, typer.Option(metavar="ID", help="Patient ID as in the cohort or the headers.")
    ] = None,
    pseudonym: Annotated[str | None, typer.Option(help="The patient's pseudonym instead.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: DryRunOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Delete everything derived from a patient in a workspace, and name the models that were trained with them."""
    if (patient is None) == (pseudonym is None):
        raise UsageError("forget: expected either --patient ID or --pseudonym P, found both or neither")
    from medsynth.stages.forget import forget

    folder = workspace.resolve()
    if not dry_run and not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "forget: expected --yes where nobody can be asked, found none; --dry-run lists what would go"
            )
        planned = forget(folder, patient=patient, pseudonym=pseudonym, dry_run=True)
        show_result(planned, as_json=False)
        typer.confirm("Delete all this?", abort=True, err=True)
    show_result(forget(folder, patient=patient, pseudonym=pseudonym, dry_run=dry_run), json_, quiet)
