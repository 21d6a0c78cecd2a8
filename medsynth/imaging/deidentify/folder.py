"""A folder of DICOM in, a folder of de-identified DICOM out: resumable, checked, with an audit.

Transfer syntax and pixel bytes stay as they are. Files are named by pseudonym and new UIDs:
`<patient>/<series>/<instance>.dcm`. A journal in the output folder tells which source files are done; source files
stand in it under keyed digests, so that it names nobody.
"""

from __future__ import annotations

import filecmp
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import get_expected_length

from medsynth.errors import DataError, PrivacyError, UsageError
from medsynth.imaging.deidentify.driver import Deidentifier
from medsynth.imaging.deidentify.elements import DAMAGE
from medsynth.imaging.deidentify.journal import DRAFTS, Journal, Outcome
from medsynth.imaging.deidentify.keys import SecretKey
from medsynth.imaging.deidentify.quiet import quiet_pydicom
from medsynth.imaging.deidentify.residual import identifying_values, scan_bytes
from medsynth.progress import Progress, Silent

READ_ERRORS = (*DAMAGE, AttributeError, KeyError)
DUPLICATE = "same content as an earlier file"


@dataclass(frozen=True)
class LeftOut:
    """A source file that was not written."""

    number: int
    """Its place among the source files in the order of their paths, from 1: names of files may name patients."""
    path: Path
    kind: Literal["unreadable", "refused", "duplicate", "withheld"]
    reason: str


@dataclass(frozen=True)
class FolderReport:
    """What became of a folder."""

    found: int
    written: int
    patients: int
    left_out: tuple[LeftOut, ...]
    attributes: dict[str, dict[str, int]]
    audit: Path

    def count(self, kind: str) -> int:
        """How many files were left out for a kind of reason."""
        return sum(entry.kind == kind for entry in self.left_out)

    def summary(self) -> dict[str, Any]:
        """The figures alone, for a terminal or JSON; files left out by number and reason."""
        return {
            "files": self.found,
            "written": self.written,
            "patients": self.patients,
            "left_out": [{"file": entry.number, "kind": entry.kind, "reason": entry.reason} for entry in self.left_out],
            "audit": str(self.audit),
        }

    def raise_if_refused(self) -> None:
        """Raise PrivacyError if a privacy rule kept any file out; the others are written all the same."""
        refused = self.count("refused") + self.count("withheld")
        if refused:
            first = next(entry for entry in self.left_out if entry.kind in {"refused", "withheld"})
            raise PrivacyError(
                f"{refused} of {self.found} files were left out by a privacy rule, the first (number {first.number}): "
                f"{first.reason}"
            )


def deidentify_folder(
    source: Path, out: Path, key: SecretKey, *, workers: int = 1, progress: Progress | None = None
) -> FolderReport:
    """De-identify every DICOM file below `source` into `out`; the same call again continues an interrupted one.

    Raises UsageError if `out` overlaps `source` or holds something else, DataError if nothing could be written.
    Files that are no DICOM, damaged, refused by a privacy rule, twice there, or in whose result an identifying value
    was found are left out and reported.
    """
    _check_places(source, out)
    if workers > 1 and key.path is None:
        raise UsageError("expected a key that was loaded from a file when workers > 1; processes load it there again")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    journal = Journal.open(out, key)
    tokens = [journal.token(path.relative_to(source), path.stat()) for path in files]
    todo = [_Task(index, str(path), str(out)) for index, path in enumerate(files) if tokens[index] not in journal.done]
    listener = progress or Silent()
    with listener.task("de-identify", len(files)) as advance:
        advance(len(files) - len(todo))
        for task, outcome in zip(todo, _outcomes(todo, key, workers), strict=True):
            journal.record(tokens[task.index], _publish(task, outcome, out, journal))
            advance(1)
    report = _report(files, tokens, journal)
    journal.finish(report.found, report.written, report.patients, report.attributes)
    if not report.written:
        reason = report.left_out[0].reason if report.left_out else "the folder holds no file"
        if report.count("refused") + report.count("withheld"):
            report.raise_if_refused()
        raise DataError(f"expected CT or MR images in DICOM files, found none to write among {report.found}: {reason}")
    return report


@dataclass(frozen=True)
class _Task:
    index: int
    path: str
    out: str


def _check_places(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"expected a folder to de-identify, found none at {source}")
    here, there = source.resolve(), out.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(f"expected an output folder apart from the input, found {out}; originals are never mixed in")


def _outcomes(tasks: list[_Task], key: SecretKey, workers: int) -> Iterator[Outcome]:
    """The outcome of each task, in their order whatever the number of workers."""
    if workers <= 1 or key.path is None:
        deidentifier = Deidentifier(key)
        yield from (_process(task, deidentifier) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (str(key.path),)) as pool:
        try:
            yield from pool.map(_process_in_worker, tasks, chunksize=8)
        finally:
            pool.shutdown(cancel_futures=True)


_worker: list[Deidentifier] = []


def _begin_worker(key_path: str) -> None:
    _worker[:] = [Deidentifier(SecretKey.load(Path(key_path)))]


def _process_in_worker(task: _Task) -> Outcome:
    return _process(task, _worker[0])


def _process(task: _Task, deidentifier: Deidentifier) -> Outcome:
    """One file: read, de-identify, look again, and leave the result as a draft."""
    with quiet_pydicom():
        try:
            original = pydicom.dcmread(task.path)
        except InvalidDicomError:
            return Outcome("unreadable", "no DICOM file (no DICM mark after the preamble)")
        except READ_ERRORS:
            return Outcome("unreadable", "a damaged or truncated DICOM file")
        try:
            clean = deidentifier.dataset(original)
            if _cut_short(clean):
                deidentifier.take_report()
                return Outcome("unreadable", "a DICOM file that ends before its pixels do")
            data = _to_bytes(clean)
            leaks = scan_bytes(identifying_values(original), data)
        except PrivacyError as error:
            deidentifier.take_report()
            return Outcome("refused", str(error))
        except DataError as error:
            deidentifier.take_report()
            return Outcome("unreadable", str(error))
        except READ_ERRORS:
            deidentifier.take_report()
            return Outcome("unreadable", "a DICOM file with damaged elements")
        counts = deidentifier.take_report()
        instance = str(clean.get("SOPInstanceUID") or "")
        if not instance:
            return Outcome("unreadable", "a DICOM file without a SOP Instance UID")
        if leaks:
            return Outcome("withheld", f"a value of {', '.join(sorted(leaks))} was still found in the result")
        series = str(clean.get("SeriesInstanceUID") or "no-series-uid")
        name = f"{clean.PatientID}/{series}/{instance}.dcm"
    draft = Path(task.out) / DRAFTS / f"{task.index}.dcm"
    draft.write_bytes(data)
    return Outcome("written", "", name, counts)


def _cut_short(dataset: pydicom.Dataset) -> bool:
    """Whether an image lacks pixels: pydicom takes the end of a file for the end of the dataset, wherever that is."""
    if "PixelData" not in dataset:
        return True
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    return not compressed and len(dataset.PixelData) < get_expected_length(dataset)


def _to_bytes(clean: pydicom.Dataset) -> bytes:
    """A DICOM file with a preamble of zeros and file meta information made from nothing but the result."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, clean, enforce_file_format=True)
    return buffer.getvalue()


def _publish(task: _Task, outcome: Outcome, out: Path, journal: Journal) -> Outcome:
    """Give a draft its name, unless an earlier file has it."""
    if outcome.kind != "written":
        return outcome
    draft, final = out / DRAFTS / f"{task.index}.dcm", out / outcome.name
    if outcome.name in journal.names:
        same = filecmp.cmp(draft, final, shallow=False)
        draft.unlink()
        if same:
            return Outcome("duplicate", DUPLICATE)
        return Outcome("unreadable", "another file has the same SOP Instance UID and other content")
    final.parent.mkdir(parents=True, exist_ok=True)
    draft.replace(final)
    return outcome


def _report(files: list[Path], tokens: list[str], journal: Journal) -> FolderReport:
    outcomes = [journal.done[token] for token in tokens]
    left_out = tuple(
        LeftOut(number, path, outcome.kind, outcome.reason)
        for number, (path, outcome) in enumerate(zip(files, outcomes, strict=True), start=1)
        if outcome.kind != "written"
    )
    attributes: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for name, counts in outcome.counts.items():
            entry = attributes.setdefault(name, {})
            for action, count in counts.items():
                entry[action] = entry.get(action, 0) + count
    names = [outcome.name for outcome in outcomes if outcome.kind == "written"]
    return FolderReport(
        found=len(files),
        written=len(names),
        patients=len({name.split("/")[0] for name in names}),
        left_out=left_out,
        attributes=dict(sorted(attributes.items())),
        audit=journal.audit,
    )
