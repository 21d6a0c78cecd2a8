"""The parts that need no server: settings, questions, patience, the list of what was sent, and a missing package."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from ward_scans import WARD, dataset_of, encoded

from medsynth.config.load import load_section
from medsynth.config.pacs import Dimse, Pacs
from medsynth.errors import ConfigError, PrivacyError, UsageError
from medsynth.pacs.archive import Entry, Inbox, decoded
from medsynth.pacs.faults import ConnectionLostError, persevere
from medsynth.pacs.push_journal import PushJournal
from medsynth.pacs.question import Question, questions
from medsynth.pacs.quiet import quiet_network

Medsynth = Callable[..., Any]
SECRET = "hunter2!hunter2"


def loaded(tmp_path: Path, connection: str) -> Pacs:
    path = tmp_path / "pacs.yaml"
    path.write_text(f"connection: {connection}\n", encoding="utf-8")
    return load_section(Pacs, "pacs", str(path))


def test_the_example_is_valid_and_listens_to_this_machine_alone() -> None:
    connection = load_section(Pacs, "pacs", "example").connection
    assert isinstance(connection, Dimse)
    assert connection.listen_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("connection", "says"),
    [
        (f"{{kind: dicomweb, url: 'https://a/b', login: '{SECRET}'}}", "connection.login: expected a group"),
        (f"{{kind: dicomweb, url: 'https://ward:{SECRET}@a/b'}}", "without a user or password"),
        (
            f"{{kind: dicomweb, url: 'https://a', login: {{kind: bearer, token: '{SECRET}'}}}}",
            "login.token: expected a group",
        ),
        (
            f"{{kind: dicomweb, url: 'https://a', login: {{kind: bearer, token: {{environment: '{SECRET}'}}}}}}",
            "expected the name of an environment variable",
        ),
        (f"{{kind: dicomweb, url: 'https://a/b', password: '{SECRET}'}}", "connection.password: unknown key"),
        (
            "{kind: dicomweb, url: 'https://a', login: {kind: bearer, token: {environment: A, file: b}}}",
            "expected either `environment` or `file`",
        ),
        (
            "{kind: dicomweb, url: 'http://pacs.example.org/b', login: {kind: bearer, token: {environment: A}}}",
            "expected https:// where a login is sent",
        ),
        ("{kind: dicomweb, url: 'ftp://a'}", "expected the address of a DICOMweb service"),
        ("{kind: dimse, host: a, port: 0, ae_title: B}", "connection.port"),
        ("{kind: dimse, host: a, port: 104, ae_title: SEVENTEEN-LETTERS}", "1 to 16 plain characters"),
        ("{kind: dimse, host: a, port: 104, ae_title: B, tls: {client_key: k}}", "client_certificate and client_key"),
        ("{kind: dimse, host: a, port: 104, ae_title: B, retrieve: move, tls: {}}", "where the PACS calls back"),
    ],
)
def test_settings_that_contradict_themselves_are_told_without_a_secret(
    connection: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, connection)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_login_over_plain_http_stays_on_this_machine(tmp_path: Path) -> None:
    login = "login: {kind: bearer, token: {environment: A}}"
    for host in ("localhost:8042", "127.0.0.1", "[::1]:80"):
        assert loaded(tmp_path, f"{{kind: dicomweb, url: 'http://{host}/x', {login}}}")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"modality": "CT"},
        {"query": ["PatientSex=F"], "modality": "MR"},
        {"query": ["PatientID=*"]},
        {"query": ["PatientID"]},
        {"query": ["Surname=ZETKIN"]},
        {"query": ["PatientID=ZETKIN", "PatientID=ZETKIN"]},
        {"patients": ["ZETKIN*"]},
        {"patients": ["  "]},
        {"patients": ["A\\ZETKIN"]},
        {"studies": ["ZETKIN"]},
        {"studies": ["1.2"], "date": "ZETKIN"},
        {"studies": ["1.2"], "date": "2024-01-01"},
        {"studies": ["1.2"], "modality": "zetkin"},
    ],
)
def test_questions_that_ask_for_too_much_or_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        questions(**wrong)
    assert "zetkin" not in str(caught.value).lower()


def test_each_patient_and_study_is_a_question_of_its_own() -> None:
    asked = questions(patients=["A", "B"], studies=["1.2.3"], query=["SeriesDescription=T1*"], date="20240101-")
    assert [dict(one.study) for one in asked] == [
        {"StudyDate": "20240101-", "PatientID": "A"},
        {"StudyDate": "20240101-", "PatientID": "B"},
        {"StudyDate": "20240101-", "StudyInstanceUID": "1.2.3"},
    ]
    assert all(dict(one.series) == {"SeriesDescription": "T1*"} for one in asked)
    assert "A" not in repr(asked[0])


def test_answers_that_contradict_the_question() -> None:
    asked = Question({"PatientID": "A 1"}, {"Modality": "CT", "SeriesDescription": "T1"})
    assert not asked.excludes({"PatientID": "a 1 ", "Modality": "CT", "SeriesDescription": "other"})
    assert asked.excludes({"PatientID": "A 2"})
    assert asked.excludes({"PatientID": ""})
    assert asked.excludes({"Modality": "MR"})
    assert not Question({"PatientID": "A*"}).excludes({"PatientID": "AB"})


def test_patience_ends_only_without_progress(tmp_path: Path) -> None:
    patient = loaded(tmp_path, "{kind: dimse, host: a, port: 104, ae_title: B}").model_copy(
        update={"attempts": 3, "pause_s": 0.0}
    )
    done: list[int] = []
    said: list[str] = []
    progress_at = {1, 2, 4, 7}

    def work() -> None:
        done.append(len(done) + 1)
        if done[-1] < 9:
            raise ConnectionLostError("lost")

    persevere(work, lambda: len(progress_at & set(done)), patient, said.append)
    assert len(done) == 9
    assert len(said) == 8
    assert said[0] == "the transfer broke off; trying again in 0 s"

    done.clear()
    progress_at.clear()
    with pytest.raises(ConnectionLostError):
        persevere(work, lambda: 0, patient, said.append)
    assert len(done) == 3


def test_the_list_of_what_was_sent_survives_a_kill(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    here = Dimse(kind="dimse", host="a", port=104, ae_title="B")
    with PushJournal(folder, here) as journal:
        journal.note("1.2.3", held=True)
        journal.note("1.2.4", held=True)
        journal.note("1.2.3", held=False)
    path = journal.path
    assert path.parent == tmp_path
    assert path.name.startswith(".push-")
    assert not list(folder.iterdir())
    with path.open("ab") as file:
        file.write(b'{"instance": "1.2.5", "he')
    with PushJournal(folder, here) as journal:
        assert journal.held == {"1.2.4"}
        journal.note("1.2.6", held=True)
    assert [json.loads(line) for line in path.read_text().splitlines()][-1] == {"instance": "1.2.6", "held": True}
    with PushJournal(folder, here.model_copy(update={"port": 105})) as other:
        assert other.path != path
        assert not other.held
    path.write_text('{"format": 99}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="delete it"):
        PushJournal(folder, here)


def test_an_inbox_takes_what_is_wanted_once_and_stops_at_the_first_failure() -> None:
    came: list[str] = []

    def receive(uid: str, dataset: Dataset | None) -> None:
        came.append(uid)
        if uid == "1.3":
            raise PrivacyError("no")

    file = encoded(dataset_of(WARD[0], 1))
    inbox = Inbox([Entry(uid, "") for uid in ("1.1", "1.2", "1.3", "1.4")], receive)
    assert inbox.take("1.1", lambda: file)
    assert not inbox.take("1.1", lambda: file)
    assert not inbox.take("9.9", lambda: file)
    with pytest.raises(PrivacyError):
        inbox.take("1.3", lambda: file)
    assert not inbox.take("1.4", lambda: file)
    assert isinstance(inbox.failure, PrivacyError)
    assert came == ["1.1", "1.3"]


def test_an_inbox_lets_one_thread_through_at_a_time() -> None:
    inside: list[int] = []
    most: list[int] = []
    pause = threading.Event()

    def receive(uid: str, dataset: Dataset | None) -> None:
        inside.append(1)
        most.append(len(inside))
        pause.wait(0.01)
        inside.pop()

    wanted = [Entry(f"1.{number}", "") for number in range(12)]
    inbox = Inbox(wanted, receive)
    threads = [threading.Thread(target=inbox.take, args=(entry.uid, lambda: b"")) for entry in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 12


def test_what_cannot_be_read_is_none() -> None:
    assert decoded(b"no DICOM") is None
    assert decoded(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0abcd\2\0\1\0OB\0\0\xff") is None


def test_talkative_libraries_are_silent_and_then_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    loud = logging.getLogger("pynetdicom.assoc")
    loud.setLevel(logging.INFO)
    with caplog.at_level(logging.DEBUG), quiet_network():
        for name in ("pynetdicom", "pynetdicom.assoc", "pynetdicom.new.child", "urllib3.connectionpool", "pydicom"):
            logging.getLogger(name).critical("PatientName")
    assert not caplog.records
    assert loud.level == logging.INFO
    loud.setLevel(logging.NOTSET)


@pytest.mark.parametrize(("package", "kind"), [("pynetdicom", "dimse"), ("dicomweb_client.web", "dicomweb")])
def test_without_the_extra_the_command_says_what_to_install(
    package: str, kind: str, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = ("association", "contexts", "listener", "dimse", "web", "web_session")
    for name in ours:
        monkeypatch.delitem(sys.modules, f"medsynth.pacs.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "pacs.yaml"
    where = "host: a, port: 104, ae_title: B" if kind == "dimse" else "url: 'https://a/b'"
    path.write_text(f"connection: {{kind: {kind}, {where}}}\n", encoding="utf-8")
    outcome = medsynth("pull", "--from", path, "--out", tmp_path / "out", "--study", "1.2")
    for name in ours:
        monkeypatch.delitem(sys.modules, f"medsynth.pacs.{name}", raising=False)
    assert outcome.code == 2
    assert "pip install 'medsynth-diffusion[pacs]'" in outcome.errors[0]


def test_a_list_of_patients_that_cannot_be_read(medsynth: Medsynth, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", encoding="utf-8")
    for listed in (empty, tmp_path / "ZETKIN.txt"):
        outcome = medsynth("pull", "--from", "example", "--out", tmp_path / "out", "--patient-file", listed)
        assert outcome.code == 2
        assert "one identifier per line" in outcome.errors[0]
        assert "ZETKIN" not in outcome.err
