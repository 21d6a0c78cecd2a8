"""Folders: whole, resumable, the same whatever the number of workers, and silent about names."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, InterruptedRun, PrivacyError, UsageError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify import folder as folder_module
from medsynth.imaging.deidentify import workers as workers_module
from medsynth.imaging.deidentify.folder import FolderReport, files_below, rehearse_folder
from medsynth.imaging.deidentify.folder import deidentify_folder as deidentify_with_settings
from medsynth.imaging.deidentify.journal import JOURNAL
from medsynth.imaging.deidentify.linking import LinkingTable
from medsynth.imaging.deidentify.store import LOCK, Store
from medsynth.imaging.deidentify.workers import FileTask, Worker

PLAIN = Deidentify(ocr="off")
"""The Basic Profile, without loading text recognition for images that are refused anyway."""
deidentify_folder = partial(deidentify_with_settings, settings=PLAIN)


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two patients with three slices each; and a text file, a refused image, a copy, a clash and a cut file."""
    root = tmp_path / "SURNAME Kaminska"
    for patient in ("CT", "MR"):
        dataset, _ = planted(patient)
        dataset.PatientID = f"{patient}-PERSON"
        for slice_number in range(3):
            dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.{patient == 'CT':d}.{slice_number + 1}"
            dataset.InstanceNumber = slice_number + 1
            save(dataset, root / patient / f"KAMINSKA_{slice_number}.dcm")
    (root / "readme.txt").write_text("hello")
    (root / "zcopy.dcm").write_bytes((root / "CT" / "KAMINSKA_0.dcm").read_bytes())
    clash = pydicom.dcmread(root / "MR" / "KAMINSKA_0.dcm")
    clash.InstanceNumber = 77
    save(clash, root / "zclash.dcm")
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    save(burned, root / "burned.dcm")
    (root / "cut.dcm").write_bytes(file_bytes(plain("CT"))[:300])
    return root


def save(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_bytes(dataset, b"KAMINSKA".ljust(128, b"\0")))


def series(root: Path, count: int) -> None:
    """A series of small slices."""
    dataset = plain("CT")
    for number in range(count):
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.5.{number + 1}"
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-125.5, -120.25, 2.5 * number]
        save(dataset, root / f"KAMINSKA_{number:05d}.dcm")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in {JOURNAL, LOCK}
    }


def kinds(report: FolderReport) -> dict[str, str]:
    return {entry.path.name: entry.kind for entry in report.left_out}


def test_a_mixed_folder_gives_what_can_be_given(source: Path, key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = deidentify_folder(source, out, key)
    assert (report.found, report.written, report.patients) == (11, 6, 2)
    assert kinds(report) == {
        "readme.txt": "foreign",
        "burned.dcm": "refused",
        "cut.dcm": "damaged",
        "zcopy.dcm": "duplicate",
        "zclash.dcm": "damaged",
    }
    assert "KAMINSKA" not in json.dumps({**report.summary(), "audit": ""}).upper()
    with pytest.raises(PrivacyError, match="1 of 11 files") as caught:
        report.raise_if_incomplete()
    written = tree(out)
    audit = json.loads(written.pop("deidentification.json"))
    page = written.pop("deidentification.html").decode()
    assert audit["files"] == {"written": 6, "duplicate": 1, "foreign": 1, "damaged": 2, "refused": 1, "withheld": 0}
    assert audit["attributes"]["PatientID"]["pseudonym"] == 6
    journal = (out / JOURNAL).read_text()
    for text in (str(caught.value), journal, page, json.dumps(audit), *written):
        assert "KAMINSKA" not in text.upper()
        assert "LEAK" not in text.upper()
    for name, data in written.items():
        assert b"LEAK" not in data.upper()
        assert b"KAMINSKA" not in data.upper()
        dataset = pydicom.dcmread(out / name)
        assert name == f"{dataset.PatientID}/{dataset.SeriesInstanceUID}/{dataset.SOPInstanceUID}.dcm"
    original = pydicom.dcmread(source / "MR" / "KAMINSKA_2.dcm")
    place = f"{key.uid(original.SeriesInstanceUID)}/{key.uid(original.SOPInstanceUID)}.dcm"
    result = pydicom.dcmread(out / Deidentifier(key).patient("MR-PERSON") / place)
    assert result.PixelData == original.PixelData[: len(result.PixelData)]


def test_workers_do_not_change_a_byte(source: Path, key: SecretKey, tmp_path: Path) -> None:
    alone = deidentify_folder(source, tmp_path / "one", key, workers=1)
    together = deidentify_folder(source, tmp_path / "two", key, workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert alone.left_out == together.left_out


@pytest.mark.parametrize("stop_after", [0, 1, 4, 8])
@pytest.mark.parametrize("line_entries", [1, 3, 64])
def test_an_interrupted_run_continues_to_the_same_end(
    stop_after: int, line_entries: int, source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill takes with it what was published since the last line of the journal."""
    whole = deidentify_folder(source, tmp_path / "whole", key)
    adopt, seen = Store.adopt, []

    def dies(self: Store, token: int, outcome: object, link: object = None) -> object:
        if len(seen) == stop_after:
            monkeypatch.setattr(self, "_pending", [])  # what a killed process cannot write any more
            raise KeyboardInterrupt
        seen.append(token)
        return adopt(self, token, outcome, link)

    out = tmp_path / "out"
    monkeypatch.setattr("medsynth.imaging.deidentify.store.LINE_ENTRIES", line_entries)
    monkeypatch.setattr(Store, "adopt", dies)
    with pytest.raises(KeyboardInterrupt):
        deidentify_folder(source, out, key)
    monkeypatch.setattr(Store, "adopt", adopt)
    assert not (out / "deidentification.json").exists()
    with (out / JOURNAL).open("a") as file:
        file.write('{"done":[["cut sh')  # as a kill in the middle of a line leaves it
    done = deidentify_folder(source, out, key)
    assert tree(out) == tree(tmp_path / "whole")
    assert (done.summary()["written"], done.left_out) == (whole.written, whole.left_out)
    assert (out / JOURNAL).read_text().count("\n") == len((out / JOURNAL).read_text().splitlines())


def test_a_finished_folder_is_not_done_again(
    source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deidentify_folder(source, tmp_path / "out", key)
    before = tree(tmp_path / "out")

    def never(*arguments: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(Worker, "file", never)
    again = deidentify_folder(source, tmp_path / "out", key)
    assert (again.summary(), again.left_out, tree(tmp_path / "out")) == (first.summary(), first.left_out, before)


def test_what_was_taken_out_or_cut_is_done_again(source: Path, key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deidentify_folder(source, out, key)
    before = tree(out)
    one, other = sorted(out.rglob("*.dcm"))[:2]
    one.unlink()
    other.write_bytes(other.read_bytes()[:-100])
    assert deidentify_folder(source, out, key).written == 6
    assert tree(out) == before


def test_a_changed_source_is_told_apart(source: Path, key: SecretKey, tmp_path: Path) -> None:
    deidentify_folder(source, tmp_path / "out", key)
    before = tree(tmp_path / "out")
    changed = pydicom.dcmread(source / "CT" / "KAMINSKA_1.dcm")
    changed.KVP = "80"
    save(changed, source / "CT" / "KAMINSKA_1.dcm")
    again = deidentify_folder(source, tmp_path / "out", key)
    assert [entry.reason for entry in again.left_out if entry.path.name == "KAMINSKA_1.dcm"] == [
        "another file has the same SOP Instance UID and other content"
    ]
    images = {name: data for name, data in before.items() if name.endswith(".dcm")}
    assert images.items() <= tree(tmp_path / "out").items()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_nothing_twice(key: SecretKey, tmp_path: Path) -> None:
    series(tmp_path / "in", 300)
    code = (
        "import sys; from pathlib import Path\n"
        "from medsynth.imaging.deidentify import SecretKey\n"
        "from medsynth.imaging.deidentify.folder import deidentify_folder\n"
        "from medsynth.config.deidentify import Deidentify\n"
        "key, plain = SecretKey.load(Path(sys.argv[3])), Deidentify(ocr='off')\n"
        "deidentify_folder(Path(sys.argv[1]), Path(sys.argv[2]), key, plain, workers=1)\n"
    )
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "in"), str(out), str(key.path)])
    while sum(1 for _ in out.rglob("*.dcm")) < 80 and child.poll() is None:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it must not have ended before it was killed"
    left = {path.name for path in out.rglob("*.dcm")}
    assert 80 <= len(left) < 300
    report = deidentify_folder(tmp_path / "in", out, key)
    assert (report.written, report.left_out) == (300, ())
    names = Counter(path.name for path in out.rglob("*.dcm"))
    assert len(names) == 300
    assert set(names.values()) == {1}
    assert left <= names.keys(), "the same UIDs as before the kill"
    deidentify_folder(tmp_path / "in", tmp_path / "whole", key)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_worker_that_dies_ends_the_run_in_order(
    key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "in", 4)
    monkeypatch.setattr(workers_module, "_work", _die)
    with pytest.raises(InterruptedRun, match="fewer --workers") as caught:
        deidentify_folder(tmp_path / "in", tmp_path / "out", key, workers=2)
    assert caught.value.exit_code == 5
    monkeypatch.undo()
    assert deidentify_folder(tmp_path / "in", tmp_path / "out", key, workers=2).written == 4


def _die(tasks: object) -> None:
    os._exit(9)


def test_a_leak_is_withheld(source: Path, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Deidentifier.dataset

    def leaky(self: Deidentifier, dataset: Dataset) -> Dataset:
        clean = real(self, dataset)
        if dataset.InstanceNumber == 2:
            clean.ProtocolName = f"for {dataset.AccessionNumber}"
        return clean

    monkeypatch.setattr(Deidentifier, "dataset", leaky)
    report = deidentify_folder(source, tmp_path / "out", key)
    withheld = [entry for entry in report.left_out if entry.kind == "withheld"]
    assert len(withheld) == 2
    assert "AccessionNumber" in withheld[0].reason
    assert "LEAK" not in withheld[0].reason
    assert b"LEAK" not in b"".join(tree(tmp_path / "out").values())
    with pytest.raises(PrivacyError):
        report.raise_if_incomplete()


def test_places_that_would_mix_are_refused(source: Path, key: SecretKey, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    for out in (source, source / "inside", source.parent, link / "inside"):
        with pytest.raises(UsageError, match="apart from the input"):
            deidentify_folder(source, out, key)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="other things"):
        deidentify_folder(source, foreign, key)
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="found none"):
        deidentify_folder(tmp_path / "nowhere", tmp_path / "out", key)


def test_another_key_or_other_settings_do_not_continue(source: Path, key: SecretKey, tmp_path: Path) -> None:
    deidentify_folder(source, tmp_path / "out", key)
    with pytest.raises(UsageError, match="another key at"):
        deidentify_folder(source, tmp_path / "out", SecretKey(bytes(32)))
    with pytest.raises(UsageError, match="another settings at"):
        deidentify_folder(source, tmp_path / "out", key, settings=Deidentify(options=("retain_device_identity",)))


def test_nothing_to_write_is_an_error(key: SecretKey, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    with pytest.raises(DataError, match="holds no file"):
        deidentify_folder(source, tmp_path / "out1", key)
    (source / "fake.dcm").write_text("this is text")
    with pytest.raises(DataError, match="no DICOM file"):
        deidentify_folder(source, tmp_path / "out2", key)
    burned = plain("CT")
    burned.BurnedInAnnotation = "YES"
    save(burned, source / "b.dcm")
    with pytest.raises(PrivacyError, match="BurnedInAnnotation"):
        deidentify_folder(source, tmp_path / "out3", key)


def test_damage_is_told_from_what_is_no_image(key: SecretKey, tmp_path: Path) -> None:
    source = tmp_path / "in"
    series(source, 2)
    whole = file_bytes(plain("CT"))
    (source / "notes.txt").write_text("hello")
    directory = plain("CT")
    directory.SOPClassUID = directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    save(directory, source / "DICOMDIR")
    report = deidentify_folder(source, tmp_path / "out1", key)
    assert kinds(report) == {"notes.txt": "foreign", "DICOMDIR": "foreign"}
    report.raise_if_incomplete()
    (source / "unmarked").write_bytes(whole[132:])
    (source / "cut.dcm").write_bytes(whole[:-10])
    packed = plain("CT")
    packed.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    (source / "packed.dcm").write_bytes(file_bytes(packed)[:-40])
    report = deidentify_folder(source, tmp_path / "out2", key)
    assert kinds(report)["unmarked"] == kinds(report)["cut.dcm"] == kinds(report)["packed.dcm"] == "damaged"
    with pytest.raises(DataError, match="3 of 7 files were left out as damaged") as caught:
        report.raise_if_incomplete()
    assert caught.value.exit_code == 3


def test_a_key_without_a_file_cannot_be_shared_among_workers(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="loaded from a file"):
        deidentify_folder(source, tmp_path / "out", SecretKey(bytes(32)), workers=2)


def test_files_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/2", "b/10", "a.x/1", "a/1", "c", "B"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    found = list(files_below(tmp_path))
    assert found == sorted(path for path in found)
    assert len(found) == 6


def test_a_linking_table_leads_back(source: Path, key: SecretKey, tmp_path: Path) -> None:
    table = LinkingTable.open(tmp_path / "secrets" / "links", key)
    deidentify_folder(source, tmp_path / "out", key, linking=table)
    links = LinkingTable.load(tmp_path / "secrets" / "links", key)
    assert {link.patient_id for link in links} == {"CT-PERSON", "MR-PERSON"}
    for patient in ("CT-PERSON", "MR-PERSON"):
        (link,) = links.find(Deidentifier(key).patient(patient))
        assert link.patient_id == patient
    assert json.loads((tmp_path / "out" / "deidentification.json").read_text())["linking_table"] is True


def test_a_rehearsal_writes_nothing_and_tells_the_same(source: Path, key: SecretKey, tmp_path: Path) -> None:
    before = tree(tmp_path)
    rehearsal = rehearse_folder(source, key, PLAIN)
    assert tree(tmp_path) == before
    real = deidentify_folder(source, tmp_path / "out", key)
    assert rehearsal.written == real.written
    assert rehearsal.count("refused") == real.count("refused") == 1


def test_memory_does_not_hold_outcomes(key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is alive at the end of a run: two numbers for a file, and nothing else that grows with their number."""
    sizes = []
    finish = Store.finish

    def measured(self: Store) -> Path:
        sizes.append(
            (len(self._done), len(self._names), len(self._left_out), len(self._pending), len(self.tally.series))
        )
        return finish(self)

    monkeypatch.setattr(Store, "finish", measured)
    under_way = []
    work = folder_module.results_of

    def counted(*arguments: object) -> object:
        for number, result in enumerate(work(*arguments)):
            under_way.append(number)
            yield result

    monkeypatch.setattr(folder_module, "results_of", counted)
    series(tmp_path / "in", 150)
    deidentify_folder(tmp_path / "in", tmp_path / "out", key)
    assert len(under_way) == 150
    assert sizes == [(150, 150, 0, 150 % 64, 1)]


def test_tasks_are_taken_up_as_results_leave(key: SecretKey, tmp_path: Path) -> None:
    series(tmp_path / "in", 1)
    taken = []

    def tasks() -> object:
        for number in range(1000):
            taken.append(number)
            yield FileTask(number, str(tmp_path / "in" / "KAMINSKA_00000.dcm"), None)

    job = workers_module.Job(PLAIN, False)
    results = workers_module.results_of(tasks(), job, key, workers=2, chunk=4)
    for _ in range(20):
        next(results)
    assert len(taken) <= 20 + 2 * 4 * 2 * 3
    results.close()


@pytest.mark.slow
def test_many_files_in_parallel(key: SecretKey, tmp_path: Path) -> None:
    series(tmp_path / "in", 600)
    report = deidentify_folder(tmp_path / "in", tmp_path / "out", key, workers=2)
    assert (report.found, report.written, report.patients) == (600, 600, 1)
    audit = json.loads((tmp_path / "out" / "deidentification.json").read_text())
    assert audit["attributes"]["PatientID"]["pseudonym"] == 600
    assert sum(row["written"] for row in audit["series"]) == 600


def test_worker_processes_bring_no_tensors_with_them() -> None:
    """Each would take seconds to start and half a gigabyte."""
    code = "import sys, medsynth.imaging.deidentify.workers; sys.exit(bool({'torch', 'monai', 'highdicom'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
