"""Pulling from a real PACS: whole, de-identified in memory, resumable, and silent about patients."""

from __future__ import annotations

import _thread
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from orthanc import Orthanc
from pydicom.dataset import Dataset
from ward_scans import INSTANCES, PLANTED, ROOT, WARD, dataset_of, encoded, silent, ward

from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify import store as store_module
from medsynth.imaging.deidentify.residual import Identifiers, scan_folder
from medsynth.pacs.arrival import Arrival

pytestmark = pytest.mark.slow

WAYS = ["get", "move", "web"]
Settings = Callable[..., Path]
Medsynth = Callable[..., Any]


def images(out: Path) -> dict[str, Path]:
    """SOP Instance UID -> file."""
    return {path.stem: path for path in out.rglob("*.dcm")}


def arrivals(
    monkeypatch: pytest.MonkeyPatch, at: int | None = None, then: Callable[[], None] | None = None
) -> list[str]:
    """UIDs as they come in; `then` happens as number `at` does."""
    seen: list[str] = []
    take = Arrival._take

    def watched(self: Arrival, uid: str, dataset: Dataset | None) -> None:
        take(self, uid, dataset)
        seen.append(uid)
        if len(seen) == at and then is not None:
            then()

    monkeypatch.setattr(Arrival, "_take", watched)
    return seen


@pytest.mark.parametrize("way", WAYS)
def test_all_come_once_and_nothing_but_the_result_is_ever_written(
    way: str,
    ward_pacs: Orthanc,
    settings: Settings,
    medsynth: Medsynth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    monkeypatch.setenv("TMPDIR", str(watched))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = watched.stat().st_mtime_ns
    write_pieces = store_module.write_pieces

    def searched(path: Path, pieces: Any) -> None:
        whole = b"".join(bytes(piece) for piece in pieces)
        assert not any(secret.encode() in whole for secret in PLANTED)
        write_pieces(path, pieces)

    monkeypatch.setattr(store_module, "write_pieces", searched)
    seen = arrivals(monkeypatch)
    out, key_file = tmp_path / "out", tmp_path / "keys" / "ward.key"
    command = ("pull", "--from", settings(ward_pacs, way), "--out", out, "--key-file", key_file, "--json", "--date")
    command = (*command, "20190101-20191231")
    outcome = medsynth(*command)
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert (facts["studies"], facts["series"], facts["instances"], facts["came_now"]) == (2, 3, INSTANCES, INSTANCES)
    assert facts["not_fetched"] == {"Basic Text SR Storage": 1}
    assert facts["patients_in_folder"] == 2
    assert len(seen) == len(set(seen)) == INSTANCES == ward_pacs.ask("/statistics")["CountInstances"] - 1
    assert watched.stat().st_mtime_ns == before  # nothing was ever made in it
    assert not scan_folder(Identifiers(dict.fromkeys(PLANTED, "planted")), out)
    silent(outcome.out, outcome.err)

    key, found = SecretKey.load(key_file), images(out)
    assert len(found) == INSTANCES
    for data in ward():
        original = pydicom.dcmread(io.BytesIO(data))
        clean = pydicom.dcmread(found[key.uid(original.SOPInstanceUID)])
        assert clean.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        assert clean.PixelData == original.PixelData
        assert clean.PatientIdentityRemoved == "YES"

    times = {path: path.stat().st_mtime_ns for path in found.values()}
    again = medsynth(*command)
    assert again.code == 0
    assert json.loads(again.out)["came_now"] == 0
    assert json.loads(again.out)["files_in_folder"] == INSTANCES
    assert len(seen) == INSTANCES
    assert times == {path: path.stat().st_mtime_ns for path in images(out).values()}


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_server_comes_back_and_the_same_command_goes_on(
    way: str, new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_pacs()
    few = [dataset_of(series, number) for series in WARD for number in range(1, 21)]
    for dataset in few:
        server.add(encoded(dataset))
    out = tmp_path / "out"
    command = ("pull", "--from", settings(server, way), "--out", out, "--date", "20190405", "--json")
    seen = arrivals(monkeypatch, 27, server.kill)
    broken = medsynth(*command)
    assert broken.code == 5, broken.err
    assert "the same command goes on" in broken.errors[-1]
    there = len(images(out))
    assert 0 < there < len(few)
    assert medsynth(*command).code == 2  # nobody is there at all
    server.start()
    outcome = medsynth(*command)
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["instances"] == facts["files_in_folder"] == len(images(out)) == len(few)
    assert facts["came_now"] == len(few) - there
    assert len(seen) == len(set(seen)) == len(few)
    silent(broken.err, outcome.out, outcome.err)


def test_a_server_that_is_soon_back_needs_no_second_command(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_pacs()
    for number in range(1, 41):
        server.add(encoded(dataset_of(WARD[0], number)))

    def restart() -> None:
        server.kill()
        threading.Thread(target=server.start).start()

    seen = arrivals(monkeypatch, 15, restart)
    out = tmp_path / "out"
    outcome = medsynth(
        "pull", "--from", settings(server, "get", attempts=12), "--out", out, "--study", f"{ROOT}.1", "--json"
    )
    assert outcome.code == 0, outcome.err
    assert "trying again" in outcome.err
    assert len(images(out)) == len(seen) == len(set(seen)) == 40


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_command_leaves_nothing_running_and_goes_on(
    request: pytest.FixtureRequest,
    way: str,
    ward_pacs: Orthanc,
    settings: Settings,
    medsynth: Medsynth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = arrivals(monkeypatch, 13, _thread.interrupt_main)
    handled = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners' worker processes ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, handled))
    before = threading.active_count()
    out = tmp_path / "out"
    command = ("pull", "--from", settings(ward_pacs, way), "--out", out, "--study", f"{ROOT}.1", "--modality", "MR")
    stopped = medsynth(*command)
    assert stopped.code == 5, stopped.err
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == before
    there = len(images(out))
    assert 13 <= there < 50
    assert medsynth(*command).code == 0
    assert len(images(out)) == len(seen) == len(set(seen)) == 50


def test_a_pacs_that_says_done_before_it_begins(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    server = new_pacs(settings={"SynchronousCMove": False})
    for number in range(1, 21):
        server.add(encoded(dataset_of(WARD[0], number)))
    out = tmp_path / "out"
    outcome = medsynth("pull", "--from", settings(server, "move"), "--out", out, "--study", f"{ROOT}.1")
    assert outcome.code == 0, outcome.err
    assert len(images(out)) == 20


def test_faces_are_removed_from_whole_series_or_not_at_all(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_pacs()
    for number in range(1, 13):
        head = dataset_of(WARD[0], number)
        head.BodyPartExamined, head.PixelSpacing = "HEAD", [12, 12]
        server.add(encoded(head))
    script = tmp_path / "remove.py"
    script.write_text(
        "import sys, nibabel as nib, numpy as np\n"
        "scan = nib.load(sys.argv[1])\n"
        "voxels = np.asarray(scan.dataobj).copy()\n"
        "voxels[:, :4] = voxels.min()\n"
        "nib.save(nib.Nifti1Image(voxels, scan.affine), sys.argv[2])\n",
        encoding="utf-8",
    )
    profile = tmp_path / "faces.yaml"
    command = [sys.executable, str(script), "{input}", "{output}"]
    options = ["clean_recognizable_visual_features"]
    profile.write_text(json.dumps({"options": options, "face_command": command}), encoding="utf-8")
    out = tmp_path / "out"
    arrivals(monkeypatch, 7, server.kill)
    call = ("pull", "--from", settings(server, "get"), "--out", out, "--study", f"{ROOT}.1", "--profile", profile)
    assert medsynth(*call).code == 5
    assert not images(out)
    server.start()
    outcome = medsynth(*call)
    assert outcome.code == 0, outcome.err
    found = [pydicom.dcmread(path) for path in images(out).values()]
    assert len(found) == 12
    assert {dataset.RecognizableVisualFeatures for dataset in found} == {"NO"}
    assert all((dataset.pixel_array == dataset.pixel_array.min()).sum() >= 4 * 16 for dataset in found)
    assert medsynth(*call).code == 0
    assert len(images(out)) == 12


def test_questions_narrow_and_are_never_shown(
    ward_pacs: Orthanc, settings: Settings, medsynth: Medsynth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "patients.txt"
    listed.write_text("PID-9942-Y\n\n", encoding="utf-8")
    for way in ("get", "web"):
        pacs = settings(ward_pacs, way)
        start = ("pull", "--from", pacs, "--out", tmp_path / "never", "--dry-run", "--json")
        for question, instances in (
            (("--patient-file", listed), 60),
            (("--patient", "PID-9942-Y", "--patient", "PID-7731-X"), 200),
            (("--patient", "PID-7731-X", "--modality", "MR"), 50),
            (("--query", "PatientName=Zwyczajewska*"), 140),
            (("--query", "AccessionNumber=ACC-55501", "--query", "SeriesNumber=3"), 60),
            (("--study", f"{ROOT}.2", "--date", "20190405"), 60),
        ):
            outcome = medsynth(*start, *question)
            assert outcome.code == 0, (way, question, outcome.err)
            assert json.loads(outcome.out)["instances"] == instances, question
            assert "study 1: " in outcome.err
            silent(outcome.out, outcome.err)
        monkeypatch.setattr(sys, "stdin", io.StringIO("PID-9942-Y\n"))
        assert json.loads(medsynth(*start, "--patient-file", "-").out)["instances"] == 60
        none = medsynth(*start, "--patient", "PID-9942-Z")
        assert none.code == 3
        assert "PID-9942" not in none.err
        assert medsynth(*start, "--study", f"{ROOT}.1", "--date", "20200101-").code == 3
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("way", ["get", "move"])
def test_a_pacs_that_does_not_know_us_or_has_another_name(
    way: str, ward_pacs: Orthanc, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    def told(**changes: Any) -> str:
        pacs = settings(ward_pacs, way, timeout_s=5.0, **changes)
        outcome = medsynth(
            "pull", "--from", pacs, "--out", tmp_path / "out", "--study", f"{ROOT}.1", "--modality", "MR"
        )
        assert outcome.code == 2, outcome.err
        assert not images(tmp_path / "out")
        (line,) = outcome.errors
        return str(line)

    assert "another AE title; correct connection.ae_title" in told(ae_title="WRONG")
    assert "own_ae_title" in told(own_ae_title="STRANGER")
    assert "Connection refused; check connection.host and port" in told(port=1)
    assert "no machine of that name" in told(host="no-such-host.invalid")
    if way == "move":
        with __import__("socket").create_server(("127.0.0.1", 0)) as taken:
            assert "Address already in use" in told(listen_port=taken.getsockname()[1])


def test_a_destination_that_the_pacs_does_not_know(
    new_pacs: Any, settings: Settings, medsynth: Medsynth, tmp_path: Path
) -> None:
    server = new_pacs(settings={"DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True})
    server.add(encoded(dataset_of(WARD[0], 1)))
    pacs = settings(server, "move", own_ae_title="NOBODY")
    outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", f"{ROOT}.1")
    assert outcome.code in (2, 5), outcome.err
    assert not images(tmp_path / "out")


def test_a_port_that_keeps_silent(settings: Settings, medsynth: Medsynth, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:
        server = Orthanc(tmp_path, dicom_port=mute.getsockname()[1], http_port=mute.getsockname()[1])
        for way in ("get", "web"):
            start = time.monotonic()
            pacs = settings(server, way, timeout_s=0.5)
            outcome = medsynth("pull", "--from", pacs, "--out", tmp_path / "out", "--study", "1.2")
            assert outcome.code == 2, outcome.err
            assert time.monotonic() - start < 60
