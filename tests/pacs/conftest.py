"""A running PACS with a ward in it, and the settings files that lead to it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orthanc
import pytest
from orthanc import Orthanc
from ward_scans import WARD, encoded, report, silent, ward

Settings = Callable[..., Path]


@pytest.fixture(scope="session")
def ward_pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """200 images of two patients and a report; tests only read from it."""
    if orthanc.MISSING:
        pytest.skip(orthanc.WHY)
    server = Orthanc(tmp_path_factory.mktemp("ward")).start()
    for data in [*ward(), encoded(report(WARD[0]))]:
        server.add(data)
    yield server
    server.kill()


@pytest.fixture
def new_pacs(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    """Makes servers of a test's own, empty at first."""
    if orthanc.MISSING:
        pytest.skip(orthanc.WHY)
    made: list[Orthanc] = []

    def make(**named: Any) -> Orthanc:
        made.append(Orthanc(tmp_path / f"orthanc{len(made)}", **named).start())
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Writes the settings of a way to a server; returns their file."""
    monkeypatch.setenv("WARD_USER", orthanc.USER)
    secret = tmp_path / "password"
    secret.write_text(orthanc.PASSWORD + "\n", encoding="utf-8")
    secret.chmod(0o600)

    def write(server: Orthanc, way: str, *, attempts: int = 1, timeout_s: float = 10.0, **changes: Any) -> Path:
        if way == "web":
            login = {"kind": "password", "user": {"environment": "WARD_USER"}, "password": {"file": str(secret)}}
            connection = {"kind": "dicomweb", "url": f"{server.url}/dicom-web", "login": login}
        else:
            connection = {
                "kind": "dimse",
                "host": "127.0.0.1",
                "port": server.dicom_port,
                "ae_title": "ORTHANC",
                "retrieve": way,
                "listen_port": server.own_port,
            }
        whole = {"connection": {**connection, **changes}, "attempts": attempts, "timeout_s": timeout_s, "pause_s": 0.1}
        path = tmp_path / f"pacs-{way}.yaml"
        path.write_text(json.dumps(whole), encoding="utf-8")
        return path

    return write


@pytest.fixture(autouse=True)
def nothing_is_told(request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """With every logger at its most talkative, neither a patient nor a password reaches a log, stdout or stderr."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    listener, root = Listener(), logging.getLogger()
    names = ["pynetdicom", "dicomweb_client", "urllib3", "requests", "pydicom"]
    levels = {name: logging.getLogger(name).level for name in names}
    root.addHandler(listener)
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield
    root.removeHandler(listener)
    for name, level in levels.items():
        assert logging.getLogger(name).level == logging.DEBUG  # as it was before the verb
        logging.getLogger(name).setLevel(level)
    told = capfd.readouterr()
    silent("\n".join(lines), told.out, told.err)
