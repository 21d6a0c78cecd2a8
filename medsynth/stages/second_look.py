"""The second look of `prepare`: is anything of a patient in what was written or said? It stops the run if so.

De-identification does not rely on it. Each worker searches what it wrote of a case for everything that stood in the
case's headers. Here, names, identifiers, birth dates and accession numbers of all patients are sought in all the rest:
names and heads of files, tables, lines for the screen, the workspace's log and settings, MLflow's database and artifacts.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import yaml

from medsynth import errors
from medsynth.cohort.manifest import AFTER_CONDITIONS, BEFORE_CONDITIONS
from medsynth.cohort.source import SourceCase
from medsynth.config.base import plain
from medsynth.config.cohort import CsvCohort
from medsynth.config.pipeline import Pipeline
from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify.identifiers import occurs, patterns_of, unfolded
from medsynth.imaging.deidentify.written_dates import Date, dates_in
from medsynth.imaging.nifti import is_nifti
from medsynth.stages.witness import Seen

PATIENT_COLUMN, FILE_NAME = "the cohort's column patient", "a name in the cohort's paths"
SHORTEST_VALUE, SHORTEST_NAME_OF_FILE, SHORTEST_NUMBER, SHORTEST_WORD = 4, 5, 6, 6
"""Characters below which a value would be found by chance."""
NO_WORD = 1 << 30
"""Longer than any word: folders are called after their owners, who may be a patient's namesakes."""
NIFTI_HEAD = 352
PIECE = 1 << 22
"""Bytes that are looked at at once."""
ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")
BINARY = (".npy", ".png", ".safetensors")
PSEUDONYM = re.compile(r"[PC][0-9A-F]{12}")
PICTURE = re.compile(rb"base64,[A-Za-z0-9+/=]+")
OWN_WORDS = """
event started finished stopped skipped why error run running failed killed scheduled local active source reason reference row
nii code seconds yet random networks dice kid recall density coverage candidate champion passed legacy context manifest
"""


class SecondLook:
    """Takes in what workers saw of patients, then searches. Its values are never printed, logged or written."""

    def __init__(self, sources: Iterable[object], pipeline: Pipeline) -> None:
        """sources: the cohort's rows, whose patients and paths name people too."""
        self._declared = _declared_words(pipeline)
        cohort = pipeline.cohort
        rows = [source for source in sources if isinstance(source, SourceCase)]
        self._values = {
            **_of_one_patient(((row.patient, part) for row in rows for part in _path_parts(row, cohort)), FILE_NAME),
            **_of_one_patient(((row.patient, word) for row in rows for word in _words(row.patient)), PATIENT_COLUMN),
        }
        self._dates: dict[Date, str] = {}
        self._patterns: _Patterns | None = None

    def remember(self, seen: Seen) -> None:
        """Take in what a worker saw."""
        self._values.update(seen.values)
        self._dates.update(seen.dates)
        self._patterns = None

    def check_lines(self, lines: Sequence[str]) -> None:
        """Raise PrivacyError where a line for the user says something of a patient; before it is said."""
        self._stop(self._found("\n".join(lines).encode()), "a message")

    def check_stage(self, folder: Path) -> None:
        """Raise PrivacyError where a file of a stage, or its name, does; of images only the heads are read again."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = "\n".join(path.relative_to(folder).as_posix() for path in files)
        self._stop(self._found(names.encode("utf-8", "surrogateescape")), "a file's name")
        images = [path for path in files if is_nifti(path)]
        self._stop(self._found(b"\n".join(_start(path, NIFTI_HEAD) for path in images)), "an image's head")
        for path in files:
            if not is_nifti(path) and path.suffix not in BINARY:
                self._stop(self._found(path.read_bytes()), path.relative_to(folder).as_posix())

    def check_workspace(self, workspace: Path) -> None:
        """Raise PrivacyError where the workspace's settings, its log, MLflow's database or its artifacts do."""
        settings, paths = _settings_and_paths(workspace / "pipeline.yaml")
        self._stop(self._found(settings), "pipeline.yaml")
        self._stop(self._found(paths, shortest_word=NO_WORD), "a path in pipeline.yaml")
        events = _read(workspace / "events.jsonl")
        days = frozenset(dates_in(events.lower()))  # whoever was born on a day of work has no birthday to find
        self._stop(self._found(events, days=days), "events.jsonl")
        own, runs = _own_in_database(workspace / "mlflow.db")
        for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-journal"):
            data = _read(workspace / name)
            for run in runs:  # SQLite puts nothing between `mask` and the run that begins with 17
                data = data.replace(run, b"\n")
            self._stop(self._found(data, own=own, days=days), name)
        artifacts = sorted((workspace / "artifacts").rglob("*"))
        names = "\n".join(path.relative_to(workspace).as_posix() for path in artifacts)
        self._stop(
            self._found(names.encode("utf-8", "surrogateescape"), shortest_word=SHORTEST_WORD), "an artifact's name"
        )
        for path in artifacts:
            if path.is_file() and path.suffix not in BINARY:
                # A report holds scripts, full of short words, and numbers of versions that look like dates.
                found = self._found(PICTURE.sub(b"", _read(path)), shortest_word=SHORTEST_WORD, dated=False)
                self._stop(found, path.relative_to(workspace).as_posix())

    def _found(
        self,
        data: bytes,
        *,
        own: frozenset[str] = frozenset(),
        days: frozenset[Date] = frozenset(),
        shortest_word: int = 0,
        dated: bool = True,
    ) -> set[str]:
        """Attributes of which a value stands in `data`.

        A single word that the program writes itself (own) says nothing of a patient of that name, nor does one of fewer than
        `shortest_word` letters.
        """
        text = unfolded(_plainer(data))
        self._patterns = self._patterns or _Patterns(self._values)
        words = _own_words() | self._declared | own
        values = {
            value
            for value, pattern in self._patterns.possible(text)
            if not (value.isalpha() and (len(value) < shortest_word or value in words)) and occurs(pattern, value, text)
        }
        dates = (self._dates.keys() & dates_in(text)) - days if self._dates and dated else set()
        return {self._values[value] for value in values} | {self._dates[date] for date in dates}

    def _stop(self, keywords: set[str], where: str) -> None:
        if keywords:
            raise PrivacyError(
                f"expected nothing of a patient in what was written, found a value of {', '.join(sorted(keywords))} in "
                f"{where}; nothing was published: rename what you named after a patient, or report it"
            )


class _Patterns:
    """All values as bytes, and a quick look at which of them a text can hold: those whose every three bytes it holds."""

    def __init__(self, values: Iterable[str]) -> None:
        self._entries = [(value, pattern) for value in values for pattern in patterns_of(value) if len(pattern) >= 3]
        self._short = [(value, pattern) for value in values for pattern in patterns_of(value) if len(pattern) < 3]
        triples = [_triples(pattern) for _, pattern in self._entries]
        self._triples = np.concatenate(triples) if triples else np.empty(0, np.uint32)
        self._starts = np.cumsum([0, *(len(found) for found in triples)])[:-1]

    def possible(self, text: bytes) -> Iterator[tuple[str, bytes]]:
        """Values with the pattern that stands in `text`, maybe inside another word."""
        yield from ((value, pattern) for value, pattern in self._short if pattern in text)
        if not self._entries:
            return
        present = np.zeros(1 << 24, dtype=bool)
        for start in range(0, len(text), PIECE):
            present[_triples(text[start : start + PIECE + 2])] = True
        whole = np.logical_and.reduceat(present[self._triples], self._starts)
        for place in np.flatnonzero(whole):
            value, pattern = self._entries[place]
            if pattern in text:
                yield value, pattern


def _triples(data: bytes) -> np.ndarray:
    """Every three bytes in a row as one number: uint32 [len - 2]."""
    each = np.frombuffer(data, np.uint8).astype(np.uint32)
    return each[:-2] << 16 | each[1:-1] << 8 | each[2:]


def _of_one_patient(pairs: Iterable[tuple[str, str]], label: str) -> dict[str, str]:
    """Words that belong to one patient alone: what all share (`study`, `ct.nii.gz`) names nobody."""
    owners: dict[str, set[str]] = defaultdict(set)
    for patient, word in pairs:
        owners[word.lower()].add(patient)
    return {word: label for word, patients in owners.items() if len(patients) == 1}


def _words(patient: str) -> Iterator[str]:
    """An identifier as a whole, and words of it that could be names."""
    whole = " ".join(patient.split())
    if PSEUDONYM.fullmatch(whole):
        return
    if len(whole) >= (SHORTEST_NUMBER if whole.isdigit() else SHORTEST_VALUE):
        yield whole
    yield from (word for word in re.findall(r"[^\W\d_]+", whole) if len(word) >= SHORTEST_WORD)


def _path_parts(row: SourceCase, cohort: object) -> Iterator[str]:
    """Names of files and folders, without endings, from the folder on that the table's paths start at."""
    root = Path()
    if isinstance(cohort, CsvCohort):
        root = Path(cohort.root) if cohort.root else Path(cohort.csv).parent
    for path in (row.image, row.mask):
        if path is not None:
            parts = path.relative_to(root).parts if path.is_relative_to(root) else path.parts[-1:]
            stems = (part.split(".")[0] for part in parts)
            yield from (s for s in stems if len(s) >= SHORTEST_NAME_OF_FILE and not PSEUDONYM.fullmatch(s))


def _plainer(data: bytes) -> bytes:
    """The data, and what JSON's and URLs' escapes in it stand for."""
    forms = [data]
    if b"\\u" in data:
        forms.append(ESCAPE.sub(lambda match: chr(int(match[1], 16)).encode("utf-8", "surrogatepass"), data))
    if b"%" in data:
        forms.append(unquote_to_bytes(data))
    return b"\n".join(forms)


def _settings_and_paths(path: Path) -> tuple[bytes, bytes]:
    """What stands in the resolved pipeline: everything but absolute paths, and those."""
    texts: list[str] = []

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                texts.append(str(key))
                gather(item)
        elif isinstance(value, list):
            for item in value:
                gather(item)
        else:
            texts.append(str(value))

    if path.exists():
        gather(yaml.safe_load(path.read_text(encoding="utf-8")))
    paths = [text for text in texts if Path(text).is_absolute()]
    return "\n".join(text for text in texts if text not in paths).encode(), "\n".join(paths).encode()


@cache
def _own_words() -> frozenset[str]:
    """Words that settings, tables and logs of every run hold, whoever the patients are."""
    texts = (
        json.dumps(Pipeline.model_json_schema()),
        " ".join([*BEFORE_CONDITIONS, *AFTER_CONDITIONS, *vars(errors)]),
        OWN_WORDS,
    )
    return frozenset(re.findall(r"[a-z]+", " ".join(texts).lower()))


def _declared_words(pipeline: Pipeline) -> frozenset[str]:
    """Words of the conditions and their values: many a disease is called after somebody."""
    texts = json.dumps({name: plain(condition) for name, condition in pipeline.conditions.items()})
    return frozenset(re.findall(r"[a-z]+", texts.lower()))


def _own_in_database(path: Path) -> tuple[frozenset[str], list[bytes]]:
    """Words of MLflow's tables and of the keys in them, and the runs' random identifiers."""
    if not path.is_file():
        return frozenset(), []
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        tables = dict(database.execute("SELECT name, sql FROM sqlite_master"))
        texts = [str(sql) for sql in tables.values()]
        found = database.execute("SELECT run_uuid FROM runs") if "runs" in tables else []
        runs = [str(row[0]).encode() for row in found]
    return frozenset(re.findall(r"[a-z]+", " ".join(texts).lower())), runs


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _start(path: Path, length: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(length)
