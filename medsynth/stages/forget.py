"""Forget a patient: find everything in a workspace that was derived from their scans, delete it, and say what cannot be.

Deleted are the prepared scans, whatever was computed from them and shows them (latents, reconstructions, evaluation and
its pictures, half-finished stages), synthetic datasets that copied one of their masks, and their links. A model cannot be
made to forget; it is named. The cohort itself is the hospital's: `forgotten.json` keeps the patient out from now on.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from medsynth.cohort.manifest import MANIFEST, Case, Manifest
from medsynth.cohort.source import read_sources
from medsynth.config.cohort import CsvCohort, FolderCohort, PhantomCohort
from medsynth.config.load import load_pipeline
from medsynth.config.pipeline import Pipeline
from medsynth.errors import DataError, PrivacyError, UsageError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import LinkingTable
from medsynth.imaging.nifti import read_nifti
from medsynth.stages.forgotten import FILE as FORGOTTEN
from medsynth.stages.forgotten import begin, finish, read_forgotten
from medsynth.stages.prepare import PHANTOM_FOLDER
from medsynth.stages.trained_with import models_of
from medsynth.stages.workspace import PIPELINE_FILE, Workspace

RECONSTRUCTIONS = "reconstructions.npy"
SHOWN_IN_ARTIFACTS = ("evidence.json", "report.html", "pictures/*")
"""What the evaluation leaves in MLflow's artifacts: pictures and figures of single real scans."""
VOXELS_AND_WEIGHTS = (".npy", ".safetensors", ".png", ".nii", ".gz", ".dcm")
"""Files that hold no name of a case, and all together may be too much to search."""


@dataclass(frozen=True)
class Traces:
    """What there is of a patient in a workspace."""

    pseudonym: str
    cases: tuple[Case, ...]
    paths: tuple[Path, ...]
    """Files and whole folders that go."""
    reconstructions: tuple[int, ...]
    """Places in the autoencoder's reconstructions of validation scans."""
    links: int
    models: tuple[str, ...]
    notes: tuple[str, ...]


def forget(folder: Path, *, patient: str | None, pseudonym: str | None, dry_run: bool) -> dict[str, object]:
    """Find and delete. Returns what was (or would be) deleted and which models are left.

    Raises UsageError where there is no workspace, DataError where the patient is not in it, WorkspaceBusyError where a run
    is at work, PrivacyError where something of the patient is left in the end.
    """
    settings = folder / PIPELINE_FILE
    if not settings.is_file():
        raise UsageError(f"expected a workspace at {folder}, found none; give its folder with --workspace")
    pipeline = load_pipeline(str(settings))
    workspace = Workspace(folder)
    with workspace.opened(pipeline):
        place = Path(pipeline.prepare.key_file) if pipeline.prepare.key_file else workspace.secrets / "deidentify.key"
        search = _Search(workspace, pipeline, SecretKey.load(place))
        traces = search.traces(search.pseudonyms(patient, pseudonym))
        shown = _names(traces, folder)
        if not dry_run:
            entry = begin(folder, traces.pseudonym, shown, traces.models)
            _delete(search, traces)
            _check_nothing_left(workspace, traces)
            finish(folder, entry)
    return {
        "patient": traces.pseudonym,
        "would delete" if dry_run else "deleted": list(shown),
        "trained with this patient": list(traces.models),
        "to do": [*traces.notes, *_advice(traces)],
    }


def _names(traces: Traces, folder: Path) -> tuple[str, ...]:
    names = [path.relative_to(folder).as_posix() + ("/" if path.is_dir() else "") for path in traces.paths]
    if traces.cases:
        names.append(f"prepare/{MANIFEST}: {len(traces.cases)} rows")
    if traces.reconstructions:
        names.append(f"autoencoder/{RECONSTRUCTIONS}: {len(traces.reconstructions)} scans")
    if traces.links:
        names.append(f"linking table: {traces.links} links")
    return tuple(names)


def _advice(traces: Traces) -> list[str]:
    if not traces.models:
        return []
    return [
        "`medsynth run` with the same pipeline trains again without the patient; until then do not use these models, and "
        "withdraw copies of them and of what they generated elsewhere"
    ]


class _Search:
    def __init__(self, workspace: Workspace, pipeline: Pipeline, key: SecretKey) -> None:
        self.workspace = workspace
        self.pipeline = pipeline
        self.key = key
        self.table = _table(pipeline, key)
        self.manifest_path = workspace.stage("prepare") / MANIFEST
        self.manifest: Manifest | None = None
        if self.manifest_path.exists():
            self.manifest = Manifest.read(self.manifest_path, pipeline.conditions)

    def pseudonyms(self, patient: str | None, pseudonym: str | None) -> list[str]:
        """What the patient may be called here. A cohort of de-identified files has pseudonyms of pseudonyms."""
        first = pseudonym or self.key.pseudonym("patient", (patient or "").strip(), "P")
        return [first, self.key.pseudonym("patient", first, "P")]

    def traces(self, candidates: list[str]) -> Traces:
        """Everything of the first of `candidates` who is here. Raises DataError where none is."""
        known = self._known()
        pseudonym = next((name for name in candidates if name in known), None)
        if pseudonym is None:
            raise DataError(
                "expected a patient of this workspace, found none of that identifier; check it, and that the workspace has "
                "the key it was prepared with"
            )
        cases = tuple(case for case in self._cases() if case.patient == pseudonym)
        return Traces(
            pseudonym,
            cases,
            tuple(self._paths(cases)),
            self._reconstructions(pseudonym),
            len(self.table.find(pseudonym)) if self.table is not None else 0,
            models_of(self.workspace, self.pipeline, {case.split for case in cases}),
            tuple(self._notes(cases)),
        )

    def _cases(self) -> tuple[Case, ...]:
        return self.manifest.cases if self.manifest is not None else ()

    def _known(self) -> set[str]:
        """Pseudonyms of all who are in the workspace, its cohort or its records."""
        found = {case.patient for case in self._cases()} | {
            entry.pseudonym for entry in read_forgotten(self.workspace.path)
        }
        found |= {link.pseudonym for link in self.table} if self.table is not None else set()
        cohort = self.pipeline.cohort
        if isinstance(cohort, PhantomCohort):
            table = self.workspace.path / PHANTOM_FOLDER / "cohort.csv"
            cohort = CsvCohort(kind="csv", csv=str(table))
        if isinstance(cohort, CsvCohort | FolderCohort):
            try:
                sources = read_sources(cohort, self.pipeline.conditions)
            except DataError:
                return found  # a cohort that is gone or changed is no reason to keep what was made of it
            found |= {self.key.pseudonym("patient", source.patient, "P") for source in sources}
        return found

    def _paths(self, cases: tuple[Case, ...]) -> Iterable[Path]:
        """Files and folders to delete: first what was computed, last the prepared scans."""
        path, stage = self.workspace.path, self.workspace.stage
        unfinished = [*path.glob(".*.partial"), *path.glob(".*.old")]
        yield from sorted(entry for entry in unfinished if entry.is_dir())
        if not cases:
            return
        yield from (folder for folder in (stage("evaluate"), stage("encode")) if folder.exists())
        if self._copies_of_masks(cases):
            yield stage("generate")
        for pattern in SHOWN_IN_ARTIFACTS:
            yield from sorted((path / "artifacts").rglob(pattern))
        if isinstance(self.pipeline.cohort, PhantomCohort):
            yield from (folder for folder in (path / PHANTOM_FOLDER,) if folder.exists())
        if len(cases) == len(self._cases()):
            yield stage("prepare")
            return
        files = (self.manifest_path.parent / name for case in cases for name in (case.image, case.mask) if name)
        yield from (file for file in files if file.exists())

    def _copies_of_masks(self, cases: tuple[Case, ...]) -> int:
        """Synthetic cases that stand on one of the patient's masks: a mask condition copies it, voxel for voxel."""
        dataset = self.workspace.stage("generate") / MANIFEST
        masks = [self.manifest_path.parent / case.mask for case in cases if case.mask and case.split == "train"]
        if not dataset.exists() or not masks:
            return 0
        wanted = {_voxels(path) for path in masks if path.exists()}
        synthetic = [case.mask for case in Manifest.read(dataset, self.pipeline.conditions).cases if case.mask]
        # A segmentation in DICOM is not compared: it counts as a copy, because it may be one.
        return sum(name.endswith(".dcm") or _voxels(dataset.parent / name) in wanted for name in synthetic)

    def _reconstructions(self, pseudonym: str) -> tuple[int, ...]:
        path = self.workspace.stage("autoencoder") / RECONSTRUCTIONS
        if not path.exists():
            return ()
        validation = [case.patient for case in self._cases() if case.split == "validation"]
        shown = len(np.load(path, mmap_mode="r", allow_pickle=False))
        return tuple(place for place, name in enumerate(validation[:shown]) if name == pseudonym)

    def _notes(self, cases: tuple[Case, ...]) -> Iterable[str]:
        copies = self._copies_of_masks(cases)
        if copies:
            yield f"{copies} synthetic scans stand on a mask of the patient; delete copies of the dataset made elsewhere"
        if cases and self.pipeline.tracking.uri is not None:
            yield "MLflow's server is not this workspace's: delete the evaluation runs' artifacts there"
        if self.pipeline.prepare.linking_table is not None and self.table is None:
            yield "the linking table was not there"


def _table(pipeline: Pipeline, key: SecretKey) -> LinkingTable | None:
    place = pipeline.prepare.linking_table
    return LinkingTable.load(Path(place), key) if place is not None and Path(place).exists() else None


def _voxels(path: Path) -> str:
    mask = np.ascontiguousarray(np.asarray(read_nifti(path)).astype(np.uint8))
    return hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()


def _delete(search: _Search, traces: Traces) -> None:
    """In an order that can be cut anywhere: the manifest, which leads to all the rest, loses its rows after that is gone."""
    _drop_reconstructions(search.workspace.stage("autoencoder") / RECONSTRUCTIONS, traces.reconstructions)
    for path in traces.paths:
        if path.is_dir():
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    if traces.cases and search.manifest is not None and search.manifest_path.exists():
        kept = tuple(case for case in search.manifest.cases if case.patient != traces.pseudonym)
        replace(search.manifest, cases=kept).write(search.manifest_path)
    if search.table is not None:
        search.table.forget(traces.pseudonym)


def _remove_folder(path: Path) -> None:
    """Gone at once for whoever looks: a stage that is half deleted must not be taken for a whole one."""
    aside = path.with_name(f".{path.name.lstrip('.')}.old")
    if path != aside:
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    shutil.rmtree(aside)


def _drop_reconstructions(path: Path, places: tuple[int, ...]) -> None:
    if not places:
        return
    kept = np.delete(np.load(path, allow_pickle=False), places, axis=0)
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as stream:
        np.save(stream, kept, allow_pickle=False)
    draft.replace(path)


def _check_nothing_left(workspace: Workspace, traces: Traces) -> None:
    """Raise PrivacyError where a name of the patient or of a case still stands in the workspace."""
    names = [name.encode() for name in (traces.pseudonym, *(case.case for case in traces.cases))]
    for path in sorted(workspace.path.rglob("*")):
        inside = path.relative_to(workspace.path)
        if inside.parts[0] == workspace.secrets.name or inside.name == FORGOTTEN or not path.is_file():
            continue
        texts = [inside.as_posix().encode("utf-8", "surrogateescape")]
        if path.suffix not in VOXELS_AND_WEIGHTS:
            texts.append(path.read_bytes())
        if any(name in text for name in names for text in texts):
            raise PrivacyError(
                f"expected nothing of the patient in the workspace, found a trace in {inside.parts[0]}; delete what is yours "
                "there and run the command again"
            )
