"""Pushing to a real PACS: only what is marked as synthetic, each once, and counted in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthanc import Orthanc
from pydicom.uid import RLELossless
from ward_scans import WARD, dataset_of, encoded, silent, synthetic

from medsynth.pacs.push_journal import PushJournal

pytestmark = pytest.mark.slow

Settings = Callable[..., Path]
Medsynth = Callable[..., Any]

SERIES, SLICES = 4, 50


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 synthetic slices, some of them compressed, and what else lies in a dataset's folder."""
    folder = tmp_path_factory.mktemp("generated") / "scans"
    for series in range(1, SERIES + 1):
        (folder / f"series-{series}").mkdir(parents=True)
        for number in range(1, SLICES + 1):
            made = synthetic(series, number)
            if series == SERIES:
                made.compress(RLELossless, generate_instance_uid=False)
            (folder / f"series-{series}" / f"{number:03}.dcm").write_bytes(encoded(made))
    (folder / "manifest.csv").write_text("case\n", encoding="utf-8")
    return folder


def folder_of(tmp_path: Path, *datasets: pydicom.Dataset) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for number, made in enumerate(datasets):
        (folder / f"{number}.dcm").write_bytes(encoded(made))
    return folder


def uids_in(server: Orthanc) -> list[str]:
    return sorted(entry["MainDicomTags"]["SOPInstanceUID"] for entry in server.ask("/instances?expand"))


def journals(beside: Path) -> list[Path]:
    return list(beside.parent.glob(".push-*.jsonl"))


def sends(monkeypatch: pytest.MonkeyPatch, at: int, then: Callable[[], None]) -> list[str]:
    """UIDs that the PACS took; `then` happens as it has taken number `at`."""
    taken: list[str] = []
    note = PushJournal.note

    def watched(self: PushJournal, uid: str, *, held: bool) -> None:
        note(self, uid, held=held)
        if held:
            taken.append(uid)
            if len(taken) == at:
                then()

    monkeypatch.setattr(PushJournal, "note", watched)
    return taken


@pytest.mark.parametrize("way", ["get", "web"])
def test_all_arrive_once_even_if_the_server_is_killed_in_the_middle(
    way: str, dataset: Path, new_pacs: Any, settings: Settings, medsynth: Medsynth, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_pacs()
    before = {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    taken = sends(monkeypatch, 75, server.kill)
    command = ("push", dataset, "--to", settings(server, way), "--json")
    broken = medsynth(*command)
    assert broken.code == 5, broken.err
    assert "the same command goes on" in broken.errors[-1]
    server.start()
    there = server.ask("/statistics")["CountInstances"]
    assert 75 <= there < SERIES * SLICES
    outcome = medsynth(*command)
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["instances"] == facts["held_by_the_pacs"] == SERIES * SLICES
    assert facts["sent_now"] == SERIES * SLICES - there
    assert len(taken) == len(set(taken)) == SERIES * SLICES
    assert len(uids_in(server)) == server.ask("/statistics")["CountInstances"] == SERIES * SLICES
    assert before == {path: path.read_bytes() for path in dataset.rglob("*") if path.is_file()}
    again = medsynth(*command)
    assert again.code == 0
    assert json.loads(again.out)["sent_now"] == 0
    silent(broken.err, outcome.out, outcome.err)


@pytest.mark.parametrize("way", ["get", "web"])
def test_nothing_that_may_be_a_patient_leaves(
    way: str, new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    server = new_pacs()
    real = dataset_of(WARD[0], 1)
    folder = folder_of(tmp_path, synthetic(1, 1), real)
    command = ("push", folder, "--to", settings(server, way))
    for extra in ((), ("--deidentified",), ("--dry-run",)):
        refused = medsynth(*command, *extra)
        assert refused.code == 4, refused.err
        assert "1 without the mark, the first number 2" in refused.errors[0]
        silent(refused.out, refused.err)
    real.PatientIdentityRemoved, real.SyntheticData = "YES", "NO"
    (folder / "1.dcm").write_bytes(encoded(real))
    assert medsynth(*command).code == 4
    assert server.ask("/statistics")["CountInstances"] == 0
    assert not journals(folder)
    assert medsynth(*command, "--deidentified", "--dry-run").code == 0
    assert server.ask("/statistics")["CountInstances"] == 0
    allowed = medsynth(*command, "--deidentified")
    assert allowed.code == 0, allowed.err
    assert server.ask("/statistics")["CountInstances"] == 2
    (folder / "2.dcm").write_bytes((folder / "0.dcm").read_bytes())
    assert medsynth(*command, "--deidentified").code == 3  # one instance in two files
    (folder / "2.dcm").unlink()
    server.clear()
    for journal in journals(folder):
        journal.unlink()
    whole = (folder / "0.dcm").read_bytes()
    for length, code in ((len(whole) - 100, 3), (200, 4)):  # without pixels; without the mark
        (folder / "0.dcm").write_bytes(whole[:length])
        damaged = medsynth(*command, "--deidentified")
        assert damaged.code == code
        assert "file 1 of the folder" in damaged.errors[0] or "the first number 1" in damaged.errors[0]
    assert synthetic(1, 1).SOPInstanceUID not in uids_in(server)


def test_a_file_that_changes_after_it_was_looked_at_stays_here(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_pacs()
    folder = folder_of(tmp_path, synthetic(1, 1), synthetic(1, 2))
    real = dataset_of(WARD[0], 1)
    real.SOPInstanceUID = real.file_meta.MediaStorageSOPInstanceUID = synthetic(1, 2).SOPInstanceUID
    sends(monkeypatch, 1, lambda: (folder / "1.dcm").write_bytes(encoded(real)) and None)
    outcome = medsynth("push", folder, "--to", settings(server, "get"))
    assert outcome.code == 4
    assert "found it changed" in outcome.errors[0]
    assert uids_in(server) == [synthetic(1, 1).SOPInstanceUID]


def test_what_the_pacs_does_not_take_is_counted(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    server = new_pacs(settings={"AcceptedTransferSyntaxes": ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]})
    compressed = synthetic(1, 2)
    compressed.compress(RLELossless, generate_instance_uid=False)
    folder = folder_of(tmp_path, synthetic(1, 1), compressed)
    outcome = medsynth("push", folder, "--to", settings(server, "get"))
    assert outcome.code == 2
    assert "it refused 1" in outcome.errors[0]
    assert "transfer syntax" in outcome.errors[0]
    assert uids_in(server) == [synthetic(1, 1).SOPInstanceUID]
    stranger = medsynth("push", folder, "--to", settings(server, "get", own_ae_title="STRANGER"))
    assert stranger.code == 2, stranger.err


def test_what_the_pacs_lost_is_sent_again(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    server = new_pacs()
    folder = folder_of(tmp_path, *(synthetic(1, number) for number in range(1, 6)))
    for way in ("get", "web"):
        command = ("push", folder, "--to", settings(server, way), "--json")
        assert json.loads(medsynth(*command).out)["sent_now"] == 5
        server.clear()
        gone = medsynth(*command)
        assert gone.code == 5
        assert "5 missing" in gone.errors[-1]
        again = json.loads(medsynth(*command).out)
        assert again["sent_now"] == again["held_by_the_pacs"] == 5
        Path(again["journal"]).unlink()
        assert json.loads(medsynth(*command).out)["sent_now"] == 0  # the PACS itself says what it holds
        server.clear()
        for journal in journals(folder):
            journal.unlink()
