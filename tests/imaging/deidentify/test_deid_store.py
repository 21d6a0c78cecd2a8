"""The store: sources need not be files, nothing comes twice, two runs keep apart, and a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medsynth.config.deidentify import Deidentify
from medsynth.errors import DataError, PrivacyError, StorageError, UsageError, WorkspaceBusyError
from medsynth.held import held
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify import store as store_module
from medsynth.imaging.deidentify.folder import deidentify_folder
from medsynth.imaging.deidentify.instance import (
    Instance,
    LeakError,
    deidentify_instance,
    needs_whole_series,
    series_of,
)
from medsynth.imaging.deidentify.journal import JOURNAL
from medsynth.imaging.deidentify.residual import Identifiers, identifying_values, scan_folder
from medsynth.imaging.deidentify.store import Store

PLAIN = Deidentify(ocr="off")


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return SecretKey.load_or_create(tmp_path / "secrets" / "key.hex")


def received(number: int = 1, **changes: object) -> Dataset:
    """A planted image as it would come from a network."""
    dataset, _ = planted("CT")
    dataset.PatientID = "PULLED-7"
    dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.8.{number}"
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    return pydicom.dcmread(BytesIO(file_bytes(dataset)))


def instance(key: SecretKey, number: int = 1, **changes: object) -> Instance:
    return deidentify_instance(received(number, **changes), Deidentifier(key, PLAIN))


def test_datasets_that_never_were_files(key: SecretKey, tmp_path: Path) -> None:
    with Store.open(tmp_path / "out", key, PLAIN) as store:
        for number in range(3):
            token = store.token(f"1.2.826.0.1.3680043.99.8.{number}")
            assert not store.has(token)
            assert store.publish(token, instance(key, number)).kind == "written"
            assert store.has(token)
        audit = store.finish()
    record = json.loads(audit.read_text())
    assert record["files"]["written"] == 3
    assert record["patients"] == 1
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 3
    assert scan_folder(identifying_values(received()), tmp_path / "out") == []


def test_the_next_run_knows_what_is_done_and_keeps_the_sums(key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Store.open(out, key, PLAIN) as store:
        for number in range(3):
            store.publish(store.token(f"{number}"), instance(key, number))
        store.leave_out(store.token("bad"), PrivacyError("expected an image"), "P1/2.25.1")
    with Store.open(out, key, PLAIN) as store:
        assert [store.has(store.token(name)) for name in ("0", "1", "2", "bad", "3")] == [True] * 4 + [False]
        assert store.why_left_out(store.token("bad")) == ("refused", "expected an image")
        store.publish(store.token("3"), instance(key, 3))
        again = json.loads(store.finish().read_text())
    with Store.open(tmp_path / "whole", key, PLAIN) as store:
        store.leave_out(store.token("bad"), PrivacyError("expected an image"), "P1/2.25.1")
        for number in range(4):
            store.publish(store.token(f"{number}"), instance(key, number))
        assert again == json.loads(store.finish().read_text())


def test_the_same_twice_and_a_clash(key: SecretKey, tmp_path: Path) -> None:
    with Store.open(tmp_path / "out", key, PLAIN) as store:
        assert store.publish(store.token("a"), instance(key)).kind == "written"
        assert store.publish(store.token("b"), instance(key)).kind == "duplicate"
        clash = store.publish(store.token("c"), instance(key, KVP="80"))
    assert (clash.kind, clash.counts) == ("damaged", {})
    (path,) = (tmp_path / "out").rglob("*.dcm")
    assert pydicom.dcmread(path).KVP == 120


def test_two_runs_keep_out_of_each_other(key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Store.open(out, key, PLAIN) as store:
        with pytest.raises(WorkspaceBusyError, match="another run") as caught, Store.open(out, key, PLAIN):
            raise AssertionError("it must not get in")
        assert caught.value.exit_code == 5
        store.publish(store.token("a"), instance(key))
    with Store.open(out, key, PLAIN) as store:
        assert store.has(store.token("a"))


def test_a_run_that_comes_in_the_middle_of_a_beginning_waits_too(key: SecretKey, tmp_path: Path) -> None:
    """Between the lock and the first line of the journal the folder holds nothing but the lock."""
    (tmp_path / "out").mkdir()
    with (
        held(tmp_path / "out" / store_module.LOCK, "held by another"),
        pytest.raises(WorkspaceBusyError),
        Store.open(tmp_path / "out", key, PLAIN),
    ):
        raise AssertionError("it must not get in")


def test_threads_may_publish_at_once(key: SecretKey, tmp_path: Path) -> None:
    instances = [instance(key, number % 20) for number in range(60)]
    with Store.open(tmp_path / "out", key, PLAIN) as store, ThreadPoolExecutor(8) as pool:
        kinds = list(
            pool.map(lambda pair: store.publish(store.token(str(pair[0])), pair[1]).kind, enumerate(instances))
        )
        record = json.loads(store.finish().read_text())
    assert (kinds.count("written"), kinds.count("duplicate")) == (20, 40)
    assert record["files"]["written"] == 20
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 20


@pytest.mark.parametrize(
    ("number", "workers"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1), (errno.ENOSPC, 2)]
)
def test_a_full_disk_ends_the_run_and_loses_nothing(
    number: int, workers: int, key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for count in range(3):
        (tmp_path / "in" / f"{count}.dcm").write_bytes(file_bytes(received(count)))
    rename = Path.rename

    def full(self: Path, target: object) -> Path:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StorageError) as caught:
        deidentify_folder(tmp_path / "in", tmp_path / "out", key, PLAIN, workers=workers)
    assert caught.value.exit_code == 5
    monkeypatch.setattr(Path, "rename", rename)
    assert deidentify_folder(tmp_path / "in", tmp_path / "out", key, PLAIN).written == 3


def test_a_disk_that_fills_up_while_a_file_is_written(
    key: SecretKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Store.open(tmp_path / "out", key, PLAIN) as store:
        store.publish(store.token("a"), instance(key, 1))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError):
            store.publish(store.token("b"), instance(key, 2))
        monkeypatch.undo()
        assert not store.has(store.token("b"))
        assert store.publish(store.token("b"), instance(key, 2)).kind == "written"


def test_a_foreign_or_damaged_journal_is_not_gone_on_with(key: SecretKey, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / JOURNAL).write_text("not a journal\n")
    with pytest.raises(UsageError, match="something else"), Store.open(out, key, PLAIN):
        pass


def test_errors_become_kinds(key: SecretKey, tmp_path: Path) -> None:
    with Store.open(tmp_path / "out", key, PLAIN) as store:
        kinds = [
            store.leave_out(store.token(str(error)), error).kind
            for error in (LeakError("a"), PrivacyError("b"), DataError("c"))
        ]
        with pytest.raises(UsageError):
            store.leave_out(1, UsageError("none of the image's"))
    assert kinds == ["withheld", "refused", "damaged"]


def test_a_value_in_the_report_stops_the_run(key: SecretKey, tmp_path: Path) -> None:
    """A planted fault: a reason that repeats a patient's name, and another its number."""
    for text, value in (("of Zvyagintseva here", "PatientName"), ("number 4711-0815", "PatientID")):
        out = tmp_path / value
        with Store.open(out, key, PLAIN) as store:
            store.seek(Identifiers({"zvyagintseva": "PatientName", "4711-0815": "PatientID"}))
            store.leave_out(store.token("a"), DataError(f"expected a scan, found one {text}"))
            with pytest.raises(PrivacyError, match=f"a value of {value}") as caught:
                store.finish()
        assert not re.search("zvyagin|4711", str(caught.value).lower())
        assert not (out / "deidentification.html").exists()


def test_words_of_the_report_itself_are_no_leak(key: SecretKey, tmp_path: Path) -> None:
    """Free text that uses the words of the audit, its reasons and its attributes' names."""
    comment = "Report: private attribute removed; fingerprint refused, SliceThickness withheld, another search"
    with Store.open(tmp_path / "out", key, PLAIN) as store:
        store.publish(store.token("a"), instance(key, ImageComments=comment))
        store.leave_out(store.token("b"), PrivacyError("expected a CT or MR image, found another: leave it out"))
        assert store.finish().exists()


def test_what_was_retained_on_purpose_may_stand_in_the_report(key: SecretKey, tmp_path: Path) -> None:
    """Retained UIDs are the names of files, and so stand in the journal."""
    settings = Deidentify(options=("retain_uids",), ocr="off")
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.dcm").write_bytes(file_bytes(received(number)))
    assert deidentify_folder(tmp_path / "in", tmp_path / "out", key, settings).written == 3
    assert "1.2.826.0.1.3680043.99.8.2" in (tmp_path / "out" / JOURNAL).read_text()


def test_where_a_refused_image_is_counted(key: SecretKey) -> None:
    deidentifier = Deidentifier(key, PLAIN)
    dataset = received()
    assert series_of(dataset, deidentifier) == deidentify_instance(dataset, deidentifier).series
    assert series_of(Dataset(), deidentifier) == "unknown/unknown"
    kept = Deidentifier(key, Deidentify(options=("retain_uids",), ocr="off"))
    assert series_of(dataset, kept).endswith(f"/{dataset.SeriesInstanceUID}")
    dataset[0x0020000E] = RawDataElement(Tag(0x0020000E), "UI", 16, b"../ZVYAGINTSEVA ", 0, False, True)
    assert "ZVYAG" not in series_of(dataset, kept)


def test_uids_cannot_lead_out_of_the_folder(key: SecretKey, monkeypatch: pytest.MonkeyPatch) -> None:
    deidentifier = Deidentifier(key, Deidentify(options=("retain_uids",), ocr="off"))
    raw = pydicom.dcmread(BytesIO(file_bytes(plain("CT"))))
    raw[0x0020000E] = raw.get_item(0x0020000E)._replace(value=b"1.2/../../../etc")
    assert re.fullmatch(r"P[0-9A-F]+/[0-9.]+/[0-9.]+\.dcm", deidentify_instance(raw, deidentifier).name)
    real = Deidentifier.dataset

    def careless(self: Deidentifier, source: Dataset) -> Dataset:
        clean = real(self, source)
        clean[0x0020000E] = clean.get_item(0x0020000E)._replace(value=b"../../etc ")
        return clean

    monkeypatch.setattr(Deidentifier, "dataset", careless)
    with pytest.raises(DataError, match="digits and dots"):
        deidentify_instance(raw, deidentifier)


def test_a_head_alone_is_refused_where_faces_are_removed(key: SecretKey) -> None:
    head = received(BodyPartExamined="HEAD", PixelSpacing=[15, 15])
    command = ("deface", "{input}", "{output}")
    cleans = Deidentify(options=("clean_recognizable_visual_features",), face_command=command, ocr="off")
    assert needs_whole_series(head, Deidentifier(key, cleans))
    assert not needs_whole_series(head, Deidentifier(key, PLAIN))
    with pytest.raises(PrivacyError, match="whole series"):
        deidentify_instance(head, Deidentifier(key, cleans))
    with pytest.raises(PrivacyError, match="found a head"):
        deidentify_instance(head, Deidentifier(key, PLAIN))
