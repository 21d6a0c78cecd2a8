"""A real PACS for tests: Orthanc on free ports of the loopback, with storage of its own that outlives a kill."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("Orthanc") or ("/usr/sbin/Orthanc" if Path("/usr/sbin/Orthanc").exists() else None)
PLUGINS = [
    Path("/usr/share/orthanc/plugins"),
    Path("/usr/lib/orthanc/plugins"),
    Path("/usr/local/share/orthanc/plugins"),
]
DICOMWEB = next((path for folder in PLUGINS for path in sorted(folder.glob("libOrthancDicomWeb.so*"))), None)
MISSING = PROGRAM is None or DICOMWEB is None
WHY = "needs Orthanc and its DICOMweb plugin (Debian: orthanc, orthanc-dicomweb)"

USER, PASSWORD = "ward", "s3cret-of-the-ward"
SECONDS_TO_START = 30


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Orthanc:
    """One server: started, killed and started again on the same storage."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    dicom_port: int = field(default_factory=free_port)
    http_port: int = field(default_factory=free_port)
    own_port: int = field(default_factory=free_port)
    """Where MEDSYNTH waits for a C-MOVE."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.http_port}"

    def start(self) -> Orthanc:
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "Name": "ward",
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "TemporaryDirectory": str(self.folder),
            "Plugins": [str(DICOMWEB)],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowFind": False,
            "DicomAlwaysAllowGet": False,
            "DicomModalities": {
                "medsynth": {
                    "AET": "MEDSYNTH",
                    "Host": "127.0.0.1",
                    "Port": self.own_port,
                    "UseDicomTls": bool(self.settings.get("DicomTlsEnabled")),
                }
            },
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "OverwriteInstances": False,
            "ConcurrentJobs": 1,
            "DicomThreadsCount": 2,
            "HttpThreadsCount": 4,
            "JobsHistorySize": 1,
            **self.settings,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(configuration), encoding="utf-8")
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen([str(PROGRAM), str(path)], stdout=log, stderr=log)
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.folder / "log.txt").read_text(errors="replace")[-2000:])
            time.sleep(0.05)
        return self

    def kill(self) -> None:
        """As a power cut would."""
        if self.process is not None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ask(self, path: str, method: str = "GET", data: bytes | None = None) -> Any:
        """Orthanc's own interface: a judge that is none of ours."""
        login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Authorization": f"Basic {login}"}, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read() or b"null")

    def add(self, data: bytes) -> None:
        """Put an instance in by Orthanc's own interface."""
        self.ask("/instances", "POST", data)

    def clear(self) -> None:
        """Throw everything away."""
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", "DELETE")

    def _answers(self) -> bool:
        try:
            self.ask("/system")  # the DICOM port is open before this one is
        except (OSError, ValueError):
            return False
        return True
