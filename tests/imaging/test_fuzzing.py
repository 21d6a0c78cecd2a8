"""Mutants of DICOM and NIfTI files end in a result or in an error of ours, within bounds, and name nobody."""

from __future__ import annotations

import resource
import shutil
import warnings
from pathlib import Path

import pytest
from dicom_series import AsItIs
from fuzzing import MUTATIONS, NAMES, mutant, seeds

from medsynth.errors import MedsynthError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.index import index_folder, write_index
from medsynth.imaging.read import read_scan

MUTANTS = 300
ROOM = 3 << 30
"""Bytes of address space beyond what the process has: far more than reading may take, far less than lengths that lie claim."""


@pytest.fixture
def bounded():
    """The process may not take more than `ROOM` on top."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def deidentifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o700)
    return Deidentifier(SecretKey.load_or_create(folder / "key"))


def outcome(work, *given, **named):
    try:
        return work(*given, **named), ""
    except MedsynthError as error:
        return None, str(error)


def test_mutants_end_in_a_result_or_an_error_of_ours(tmp_path, bounded, deidentifier, capfd, caplog):
    refused = read = 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for number in range(MUTANTS):
            folder = tmp_path / "mutant"
            path, done = mutant(number, folder)
            rows, said = outcome(index_folder, folder, deidentifier=deidentifier)
            said += "".join(row.reason for row in rows or ())
            for by in (AsItIs(), deidentifier):
                scan, message = outcome(read_scan, path, deidentifier=by)
                said += message
                read += scan is not None
                refused += scan is None
            if rows:
                write_index(rows, tmp_path / "cohort.csv")
                said += (tmp_path / "cohort.csv").read_text()
            assert not any(name in said for name in NAMES), (number, done)
            shutil.rmtree(folder)
    printed = capfd.readouterr()
    told = printed.out + printed.err + caplog.text + "".join(str(one.message) for one in seen)
    assert not any(name in told for name in NAMES)
    assert read > MUTANTS // 10
    assert refused > MUTANTS // 2


def test_mutants_can_be_made_again_and_every_kind_occurs(tmp_path):
    kinds, ways = set(), set()
    for number in range(MUTANTS):
        _, done = mutant(number, tmp_path / str(number % 2))
        kind, way = done.split()
        kinds.add(kind)
        ways.add(way)
        shutil.rmtree(tmp_path / str(number % 2))
    assert kinds == set(seeds())
    assert ways == {mutation.__name__ for mutation in MUTATIONS}
    for name in ("a", "b"):
        mutant(7, tmp_path / name)
    first, second = ([p.read_bytes() for p in sorted((tmp_path / name).iterdir())] for name in ("a", "b"))
    assert first == second
