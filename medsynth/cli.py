"""The command line: verbs, options and exit codes. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from medsynth import __version__
from medsynth.commands import deidentify, export, index, pacs, records, samplers
from medsynth.commands.options import (
    DeviceOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    PipelineName,
    QuietOption,
    SeedOption,
    SetOption,
    VerboseOption,
    WorkspaceOption,
    screen_for,
    show_result,
)
from medsynth.errors import DataError, UsageError
from medsynth.exits import guarded
from medsynth.memory import keep_freed_memory

app = typer.Typer(
    name="medsynth",
    help="Turn your own scans into a generator of labelled synthetic scans, and measure what those are worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

STAGE_VERBS = {
    "prepare": "Read, de-identify and prepare the scans.",
    "autoencoder": "Train the autoencoder.",
    "encode": "Encode the prepared scans into latents.",
    "denoiser": "Train the denoiser and save the model folder.",
    "evaluate": "Measure fidelity, privacy, condition and benefit, and write the report.",
    "register": "Register the model in MLflow, behind gates.",
}


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"medsynth {__version__}")
        raise typer.Exit


def _add_pipeline_verb(name: str, text: str, stage: str | None) -> None:
    def verb(
        pipeline: PipelineName,
        workspace: WorkspaceOption = None,
        set_: SetOption = None,
        seed: SeedOption = None,
        device: DeviceOption = None,
        dry_run: DryRunOption = False,
        force: ForceOption = False,
        json_: JsonOption = False,
        verbose: VerboseOption = 0,
        quiet: QuietOption = False,
    ) -> None:
        _execute(pipeline, stage, workspace, set_, seed, device, dry_run, force, json_, quiet)

    app.command(name, help=text)(verb)


_add_pipeline_verb("run", "Run every stage in order; stages that are done are skipped.", None)


@app.command()
def demo(
    workspace: WorkspaceOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The whole chain on a generated phantom cohort, in minutes on a CPU."""
    _execute("demo", None, workspace, set_, seed, device, dry_run, force, json_, quiet)


for _name, _text in STAGE_VERBS.items():
    _add_pipeline_verb(_name, _text, _name)


@app.command()
def generate(
    pipeline: Annotated[
        str | None, typer.Argument(metavar="[PIPELINE]", help="Generate as a pipeline's stage.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder, or models:/NAME@ALIAS.")] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the dataset.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many scans.")] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Fix a condition; NAME=VALUE:COUNT asks for a number of each."),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="64x64x48@1x1x2.5", help="Voxels and spacing in mm, for a model of several.")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of mask files (or a manifest.csv) to condition on.")
    ] = None,
    again: Annotated[Path | None, typer.Option(help="Make the scans of this manifest.csv again.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="With --again: only these cases.")] = None,
    format_: Annotated[
        Literal["nifti", "dicom", "both"] | None,
        typer.Option("--format", help="nifti, dicom or both; a pipeline needs its NIfTI files [nifti]."),
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow server that models:/ names are looked up in.")
    ] = None,
    workspace: WorkspaceOption = None,
    set_: SetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    force: ForceOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Generate synthetic scans, from a model or as a stage of a pipeline."""
    if (pipeline is None) == (model is None):
        raise UsageError(
            "generate: expected either a PIPELINE or --model, for example `medsynth generate --model DIR --out DIR`"
        )
    if pipeline is not None:
        if format_ == "dicom":
            raise UsageError(
                "generate: expected --format nifti or both with a PIPELINE, found dicom; `evaluate` reads the NIfTI files"
            )
        instead = {
            "--count": (count, "--set generate.count=N"),
            "--condition": (condition, "--set generate.conditions.NAME=VALUE, or generate.counts"),
            "--masks": (masks, "the masks of the training split are taken"),
            "--out": (out, "--workspace"),
            "--again": (again, "--model"),
            "--case": (case, "--model"),
            "--tracking-uri": (tracking_uri, "--set tracking.uri=URI"),
        }
        for option, (value, other) in instead.items():
            if value:
                raise UsageError(f"generate: expected {option} with --model alone, found a PIPELINE; instead: {other}")
        asked = {"format": format_, "grid": grid}
        changes = [*(set_ or []), *(f"generate.{key}={value}" for key, value in asked.items() if value)]
        _execute(pipeline, "generate", workspace, changes, seed, device, dry_run, force, json_, quiet)
        return
    if case and again is None:
        raise UsageError("generate: expected --case with --again MANIFEST, found it alone; leave it out")
    if force:
        raise UsageError("generate: expected no --force with --model, which never overwrites; choose another --out")
    from medsynth.verbs import generate_from_model

    summary = generate_from_model(
        model=str(model), out=out, count=count, conditions=condition or [], grid=grid, masks=masks, again=again,
        cases=case or [], tracking_uri=tracking_uri, workspace=workspace, overrides=set_ or [], seed=seed, device=device or "auto",
        dry_run=dry_run, screen=screen_for(quiet), form=format_,
    )  # fmt: skip
    show_result(summary, json_, quiet and not dry_run)


for _part in (index, deidentify, export, samplers, records, pacs):
    _part.add_to(app)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to copy the pipelines and presets into.")],
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Copy the shipped pipelines and presets into a folder, to change them."""
    from medsynth.config.shipped import copy_out

    written = [str(path) for path in copy_out(folder)]
    show_result({"written": written}, json_, quiet)


@app.command()
def doctor(
    workspace: WorkspaceOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """Versions, devices, free disk and memory, and whether anything would use the network."""
    from medsynth.doctor import examine

    show_result(examine(workspace or Path("runs")), json_)


@config_app.command("show")
def config_show(
    pipeline: PipelineName,
    set_: SetOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The pipeline with presets and defaults filled in."""
    from medsynth.config.load import load_pipeline
    from medsynth.config.resolved import resolved_yaml

    found = load_pipeline(pipeline, set_ or [])
    typer.echo(
        json.dumps(found.model_dump(mode="json", by_alias=True), indent=2) if json_ else resolved_yaml(found), nl=json_
    )


@config_app.command("schema")
def config_schema() -> None:
    """The JSON Schema of a pipeline file, for editors."""
    from medsynth.config.resolved import schema

    typer.echo(json.dumps(schema(), indent=2))


def _execute(
    pipeline: str,
    only: str | None,
    workspace: Path | None,
    overrides: list[str] | None,
    seed: int | None,
    device: str | None,
    dry_run: bool,
    force: bool,
    json_: bool,
    quiet: bool,
) -> None:
    from medsynth.config.load import load_pipeline

    changes = [*(overrides or [])]
    changes += [f"seed={seed}"] if seed is not None else []
    changes += [f"compute.device={device}"] if device is not None else []
    settings = load_pipeline(pipeline, changes)
    folder = (workspace or Path(settings.workspace or Path("runs") / settings.name)).resolve()
    screen = screen_for(quiet)
    from medsynth.verbs import run_pipeline, show_plan

    if dry_run:
        show_result(show_plan(settings, folder, only, force=force), json_)
        return
    summary = run_pipeline(settings, folder, only, force=force, screen=screen)
    show_result(summary, json_, quiet)
    refused = sum(stage["refused"] for stage in summary["stages"].values())
    if only is not None and refused:
        raise DataError(
            f"cases left out: {refused}; the others went through, and the reasons are in {folder / only / 'left_out.csv'}"
        )


def _interrupt(signal_number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point of the `medsynth` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = sum(a.count("v") if a.startswith("-v") and set(a[1:]) == {"v"} else a == "--verbose" for a in arguments)
    if verbose < 2:
        # Warnings of the DICOM libraries quote header values.
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGTERM, _interrupt)
    keep_freed_memory()
    sys.exit(guarded(lambda: app(args=arguments, standalone_mode=False), verbose=verbose))


if __name__ == "__main__":
    main()
