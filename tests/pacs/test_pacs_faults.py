"""What a PACS may do wrong, by one that does it on purpose."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from ward_scans import ROOT, WARD, dataset_of, encoded, synthetic

pytest.importorskip("pynetdicom", reason="needs the extra pacs")
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from medsynth.config.load import load_section
from medsynth.config.pacs import Dimse, Pacs
from medsynth.pacs.association import Caller

Medsynth = Callable[..., Any]
HELD = [dataset_of(WARD[0], number) for number in range(1, 7)]


class BadPacs:
    """Holds six slices and misbehaves as its attributes say."""

    def __init__(self) -> None:
        self.count = len(HELD)
        """What it says of the number of instances."""
        self.ignores_keys = False
        self.fails = 0
        """Instances that it cannot hand out."""
        self.get_status = 0
        self.find_status = 0
        self.store_status: Callable[[int], int] = lambda number: 0x0000
        self.stored: list[str] = []
        self.unasked = False
        self.says_no_class = False

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        asked = event.identifier
        if self.find_status:
            yield self.find_status, None
            return
        if asked.QueryRetrieveLevel == "IMAGE" and asked.StudyInstanceUID.startswith("2.25."):
            for uid in self.stored:
                yield 0xFF00, answer(asked, {"SOPInstanceUID": uid, "SOPClassUID": CTImageStorage})
            return
        if not self.ignores_keys and asked.get("PatientID") not in (None, "", HELD[0].PatientID):
            return
        if self.says_no_class and "SOPClassUID" in asked:
            del asked.SOPClassUID
        found = HELD if asked.QueryRetrieveLevel == "IMAGE" else HELD[:1]
        for dataset in found:
            yield 0xFF00, answer(asked, {"NumberOfSeriesRelatedInstances": self.count}, dataset)

    def get(self, event: Any) -> Iterator[Any]:
        asked = event.identifier.get("SOPInstanceUID") or []
        asked = [asked] if isinstance(asked, str) else list(asked)
        wanted = [dataset for dataset in HELD if not asked or dataset.SOPInstanceUID in asked]
        wanted += [dataset_of(WARD[2], 1)] if self.unasked else []
        yield len(wanted)
        if self.get_status:
            yield self.get_status, None
            return
        for number, dataset in enumerate(wanted):
            if number < self.fails:
                yield 0xFF00, broken(dataset)
            else:
                yield 0xFF00, dataset

    def store(self, event: Any) -> int:
        status = self.store_status(len(self.stored))
        if status in (0x0000, 0xB000):
            self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return status


def answer(asked: Dataset, values: dict[str, Any], dataset: Dataset | None = None) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = asked.QueryRetrieveLevel
    for element in asked:
        value = values.get(element.keyword, (dataset or Dataset()).get(element.keyword))
        if value is not None and element.keyword != "QueryRetrieveLevel":
            setattr(found, element.keyword, value)
    return found


def broken(dataset: Dataset) -> Dataset:
    """Of a class for which no context was agreed: its sub-operation fails."""
    other = pydicom.dcmread(BytesIO(encoded(dataset)))
    other.SOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    return other


@contextmanager
def serving(bad: BadPacs, **limits: Any) -> Iterator[int]:
    entity = AE(ae_title="BAD")
    for name, value in limits.items():
        setattr(entity, name, value)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelGet)
    entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    handlers = [(evt.EVT_C_FIND, bad.find), (evt.EVT_C_GET, bad.get), (evt.EVT_C_STORE, bad.store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    yield server.socket.getsockname()[1]
    server.shutdown()


def settings(tmp_path: Path, port: int, attempts: int = 1) -> Path:
    path = tmp_path / "bad.yaml"
    connection = {"kind": "dimse", "host": "127.0.0.1", "port": port, "ae_title": "BAD"}
    whole = {"connection": connection, "timeout_s": 5.0, "attempts": attempts, "pause_s": 0.0}
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path


def pull(medsynth: Medsynth, tmp_path: Path, bad: BadPacs, *question: str) -> Any:
    with serving(bad) as port:
        return medsynth(
            "pull", "--from", settings(tmp_path, port), "--out", tmp_path / "out", "--json", *(question or ("--study", f"{ROOT}.1"))
        )  # fmt: skip


def files(tmp_path: Path) -> int:
    return len(list((tmp_path / "out").rglob("*.dcm")))


def test_instances_that_it_cannot_hand_out_are_missing_and_come_later(medsynth: Medsynth, tmp_path: Path) -> None:
    bad = BadPacs()
    bad.fails = 2
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == 5, outcome.err
    assert "expected 6 instances by the PACS's own count, found 2 missing" in outcome.errors[-1]
    assert "status 0xB000 (some instances failed) 1 times" in outcome.errors[-1]
    assert files(tmp_path) == 4
    assert (tmp_path / "out" / "deidentification.json").exists()
    bad.fails = 0
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == 0
    assert json.loads(outcome.out)["came_now"] == 2
    assert files(tmp_path) == 6


def test_a_count_that_is_higher_than_its_list(medsynth: Medsynth, tmp_path: Path) -> None:
    bad = BadPacs()
    bad.count = 9
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == 5
    assert "expected 9 instances by the PACS's own count, found 3 missing" in outcome.errors[-1]
    assert files(tmp_path) == 6


def test_what_nobody_asked_for_is_not_taken(medsynth: Medsynth, tmp_path: Path) -> None:
    bad = BadPacs()
    bad.unasked = True
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == 0, outcome.err
    assert files(tmp_path) == 6


def test_a_pacs_that_does_not_say_what_kinds_it_holds(medsynth: Medsynth, tmp_path: Path) -> None:
    bad = BadPacs()
    bad.says_no_class = True
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == 0, outcome.err
    assert files(tmp_path) == 6


def test_a_pacs_that_ignores_the_patient_gives_nobody_elses_scans(medsynth: Medsynth, tmp_path: Path) -> None:
    bad = BadPacs()
    bad.ignores_keys = True
    assert pull(medsynth, tmp_path, bad, "--patient", "SOMEBODY-ELSE").code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "status", "code", "says"),
    [
        ("get_status", 0xA702, 5, "out of resources (0xA702)"),
        ("get_status", 0xC123, 5, "status 0xC123 (unable to process)"),
        ("find_status", 0xA700, 5, "out of resources (0xA700)"),
        ("find_status", 0xA900, 2, "status 0xA900"),
        ("find_status", 0x0122, 2, "kind of object not supported"),
    ],
)
def test_a_status_that_says_no(
    name: str, status: int, code: int, says: str, medsynth: Medsynth, tmp_path: Path
) -> None:
    bad = BadPacs()
    setattr(bad, name, status)
    outcome = pull(medsynth, tmp_path, bad)
    assert outcome.code == code, outcome.err
    assert says in outcome.errors[-1]
    assert files(tmp_path) == 0


def scans(tmp_path: Path, count: int) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(1, count + 1):
        (folder / f"{number}.dcm").write_bytes(encoded(synthetic(1, number)))
    return folder


def test_a_full_pacs_gets_the_rest_later(medsynth: Medsynth, tmp_path: Path) -> None:
    bad, folder = BadPacs(), scans(tmp_path, 5)
    bad.store_status = lambda number: 0xA700 if number >= 3 else 0x0000
    with serving(bad) as port:
        outcome = medsynth("push", folder, "--to", settings(tmp_path, port))
        assert outcome.code == 5
        assert "out of resources (0xA700)" in outcome.errors[-1]
        bad.store_status = lambda number: 0xB000  # stored, with a remark
        outcome = medsynth("push", folder, "--to", settings(tmp_path, port), "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["sent_now"] == 2
    assert len(bad.stored) == len(set(bad.stored)) == 5


def test_a_pacs_that_refuses_some_and_answers_no_search(medsynth: Medsynth, tmp_path: Path) -> None:
    bad, folder = BadPacs(), scans(tmp_path, 4)
    bad.find_status = 0xA900
    refused = iter([0xC000, 0x0000, 0x0124, 0x0000])
    bad.store_status = lambda number: next(refused)
    with serving(bad) as port:
        outcome = medsynth("push", folder, "--to", settings(tmp_path, port))
        assert outcome.code == 2
        assert "expected the PACS to take 4 instances, found that it refused 2" in outcome.errors[-1]
        bad.store_status = lambda number: 0x0000
        outcome = medsynth("push", folder, "--to", settings(tmp_path, port), "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    assert (facts["sent_now"], facts["held_by_the_pacs"]) == (2, None)
    assert len(bad.stored) == len(set(bad.stored)) == 4


def test_a_pacs_that_accepts_and_forgets(medsynth: Medsynth, tmp_path: Path) -> None:
    bad, folder = BadPacs(), scans(tmp_path, 3)
    with serving(bad) as port:
        pacs = settings(tmp_path, port)
        bad.store_status = lambda number: 0x0000
        remember, bad.stored = bad.stored, []
        assert medsynth("push", folder, "--to", pacs).code == 0
        bad.stored = remember
        outcome = medsynth("push", folder, "--to", pacs)
        assert outcome.code == 5
        assert "3 missing" in outcome.errors[-1]


def test_an_association_that_is_refused(medsynth: Medsynth, tmp_path: Path) -> None:
    with serving(BadPacs(), require_calling_aet=["SOMEBODY"]) as port:
        outcome = medsynth("pull", "--from", settings(tmp_path, port), "--out", tmp_path / "out", "--study", "1.2")
    assert outcome.code == 2
    assert "know us as MEDSYNTH" in outcome.errors[0]


def test_a_pacs_without_the_service(medsynth: Medsynth, tmp_path: Path) -> None:
    entity = AE(ae_title="BAD")
    entity.add_supported_context("1.2.840.10008.1.1")
    server = entity.start_server(("127.0.0.1", 0), block=False)
    pacs = settings(tmp_path, server.socket.getsockname()[1])
    outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", "1.2")
    server.shutdown()
    assert outcome.code == 2
    assert "offer the service asked for" in outcome.errors[0]


def test_something_else_behind_the_port(medsynth: Medsynth, tmp_path: Path) -> None:
    import threading

    def hang_up(door: socket.socket) -> None:
        for _ in range(12):
            caller, _ = door.accept()
            caller.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        threading.Thread(target=hang_up, args=(door,), daemon=True).start()
        pacs = settings(tmp_path, door.getsockname()[1])
        outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", "1.2")
    assert outcome.code == 2
    assert "hung up or kept silent" in outcome.errors[0]


def test_answers_wait_for_the_request_that_they_answer(tmp_path: Path) -> None:
    """pynetdicom's own loop would take a message within a millisecond, and a match would be lost without a trace."""
    with serving(BadPacs()) as port:
        connection = load_section(Pacs, "pacs", str(settings(tmp_path, port))).connection
        assert isinstance(connection, Dimse)
        contexts = [build_context(StudyRootQueryRetrieveInformationModelFind)]
        with Caller(connection, 5.0).association(contexts) as association:
            association.dimse.msg_queue.put((1, None))
            time.sleep(0.1)
            assert association.dimse.get_msg(block=True) == (1, None)
