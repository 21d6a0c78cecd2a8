"""The search for what is left: it finds values however they are written, and does not cry wolf."""

from __future__ import annotations

import contextlib
import gzip
import re
import sqlite3
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from planted_headers import file_bytes, plain, planted
from pydicom.dataset import Dataset

from medsynth.config.deidentify import Deidentify
from medsynth.errors import UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey, residual
from medsynth.imaging.deidentify.encode import encode
from medsynth.imaging.deidentify.residual import (
    Hit,
    Identifiers,
    ResidualSearch,
    identifying_values,
    scan_bytes,
    scan_folder,
    scan_places,
)


@pytest.fixture
def values() -> Identifiers:
    dataset = plain("CT")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Kowalczyk-Nowak^Lea=山田^太郎"
    dataset.PatientID = "4711-0815-AB"
    dataset.AccessionNumber = "1234567"
    dataset.PatientBirthDate = "19610203"
    dataset.StudyDescription = "Chest followup for Grzegorz"
    return identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("seen: KOWALCZYK", "PatientName"),
        ("kowalczyk_nowak", "PatientName"),
        ("for lea.", "PatientName"),
        ("born 1961-02-03", "PatientBirthDate"),
        ("born 03.02.1961", "PatientBirthDate"),
        ("born 03/02/1961", "PatientBirthDate"),
        ("x 02/03/1961 x", "PatientBirthDate"),
        ("(19610203)", "PatientBirthDate"),
        ("id=4711-0815-ab;", "PatientID"),
        ("acc 1234567", "AccessionNumber"),
        ("note by GRZEGORZ", "StudyDescription"),
        ("uid 1.2.826.0.1.3680043.99.1.2 here", "StudyInstanceUID"),
    ],
)
def test_a_value_is_found_in_any_way_of_writing(text: str, keyword: str, values: Identifiers) -> None:
    assert keyword in scan_bytes(values, text.encode())
    if len(text) > 12:
        assert keyword in values.found_in(text.encode("utf-16-le"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "shift_jis", "gb18030"])
def test_other_scripts_are_found(encoding: str, values: Identifiers) -> None:
    assert values.found_in("氏名 山田 様".encode(encoding)) == {"PatientName"}


@pytest.mark.parametrize(
    "text",
    [
        "CHEST",
        "followed",
        "Kowalczykowa",
        "ORIGINAL PRIMARY AXIAL",
        "cleared",
        "91234567",
        "0.1234567",
        "1234567.5",
        "Siemens",
        "120",
    ],
)
def test_ordinary_words_and_parts_of_numbers_are_not(text: str, values: Identifiers) -> None:
    assert scan_bytes(values, f"x {text} y".encode()) == set()


def test_neither_repr_nor_hits_show_a_value(values: Identifiers) -> None:
    assert "kowalczyk" not in repr(values).lower()
    assert len(values) > 10
    assert repr(len(values)) in repr(values)


def test_values_of_private_and_unknown_elements_count() -> None:
    dataset = plain("MR")
    block = dataset.private_block(0x0029, "VENDOR HEADER", create=True)
    block.add_new(0x10, "OB", b"\0\1\2Przybylski\0\0" * 3 + b"\0")
    item = Dataset()
    item.PatientComments = "Schoenberger"
    block.add_new(0x11, "SQ", [item])
    values = identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))
    assert "Przybylski" in values
    assert "Schoenberger" in values


def test_files_of_every_kind_are_searched(tmp_path: Path, values: Identifiers) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "clean.nii.gz")
    image.header["descrip"] = b"scan of Lea"
    nibabel.save(image, tmp_path / "bad.nii.gz")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cohort.csv").write_text("patient\nKowalczyk\n")
    (tmp_path / "19610203.txt").write_text("nothing")
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(b"acc 1234567"))
    (tmp_path / "weights.bin").write_bytes(b"\0" * 64 + b"4711-0815-AB" + b"\0" * 64)
    assert scan_folder(values, tmp_path) == [
        Hit("19610203.txt", "PatientBirthDate"),
        Hit("bad.nii.gz", "PatientName"),
        Hit("log.txt.gz", "AccessionNumber"),
        Hit("sub/cohort.csv", "PatientName"),
        Hit("weights.bin", "PatientID"),
    ]


def test_random_voxels_give_no_alarm(tmp_path: Path, values: Identifiers) -> None:
    voxels = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels.reshape(128, 128, 64), np.eye(4)), tmp_path / "noise.nii")
    assert scan_folder(values, tmp_path) == []


def test_a_damaged_gz_is_an_error(tmp_path: Path, values: Identifiers) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20])
    with pytest.raises(UnreadableError, match="file 1"):
        scan_folder(values, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "12 Mar 1961", "12MAR61", "12-MAR-1961", "March 12, 1961", "Mar. 12th 1961", "12. März 1961", "12. MÄRZ 1961",
        "le 12 mars 1961", "12th of March 1961", "12 de marzo de 1961", "1961-mar-12", "1961/3/12", "12.3.1961", "12/03/61",
        "12.03.61", "12-03-61", "1961:03:12 08:00", "19610312121314.500", "19610312T1213", "12031961", "03121961",
        "scan_19610312_x", "1961.03.12", "12 maart 1961", "dnia 12 marca 1961",
    ],
)  # fmt: skip
def test_a_date_is_found_in_any_way_of_writing(text: str) -> None:
    dataset = plain("CT")
    dataset.PatientBirthDate = "19610312"
    values = identifying_values(dataset)
    wide = [text.encode("utf-16-le"), text.encode("utf-16-be")] if text.isascii() else []
    for data in (text.encode(), f"x {text}; y".encode(), *wide):
        assert "PatientBirthDate" in values.found_in(data)


@pytest.mark.parametrize(
    "text",
    ["19610313", "12.03.62", "13 Mar 1961", "1.2.826.12.03.61", "0.19610312", "19610312.5", "12:03:61", "1961", "12 Mar",
     "mar 1961", "x19610312", "119610312", "12 Mai 1961"],
)  # fmt: skip
def test_another_date_is_not(text: str) -> None:
    dataset = plain("CT")
    dataset.PatientBirthDate = "19610312"
    assert "PatientBirthDate" not in identifying_values(dataset).found_in(text.encode())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Müller-Lüdenscheidt^Jörg", "jorg"),
        ("Müller-Lüdenscheidt^Jörg", "LUEDENSCHEIDT"),
        ("Müller-Lüdenscheidt^Jörg", "luedenscheidtjoerg.dcm"),
        ("Müller-Lüdenscheidt^Jörg", "MÜLLER"),
        ("Kowalczyk^Lea^Maria", "user lkowalczyk logged in"),
        ("Kowalczyk^Lea^Maria", "KowalczykL"),
        ("Kowalczyk^Lea^Maria", "LeaKowalczyk"),
        ("Kowalczyk^Lea^Maria", "Maria K."),
        ("Wu^Li", "Li Wu"),
        ("Wu^Li", "WU^LI"),
        ("Wu^Li", "wu_li"),
        ("O'Brien^Siobhán", "siobhan"),
        ("Lê^Vân", "Vân Lê"),
        ("Lê^Vân", "le van"),
    ],
)
def test_a_name_is_found_in_parts_in_other_orders_and_without_accents(name: str, text: str) -> None:
    dataset = plain("CT")
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", name
    values = identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))
    assert "PatientName" in values.found_in(text.encode())


def test_two_letters_amid_binary_numbers_are_no_name() -> None:
    """Item tags in UTF-16 or Latin-1 would be letters; Lê is the name of millions."""
    dataset = plain("CT")
    dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", "Lê^Öz"
    values = identifying_values(pydicom.dcmread(BytesIO(file_bytes(dataset))))
    assert values.found_in(b"\x01\x4c\xea\x00\xd6\x7a\x02 \xfe\xff\x00\xe0") == set()


@pytest.mark.parametrize("text", ["Li", "wu 12", "clearly", "marian", "lkowalczykowa"])
def test_a_short_or_longer_word_is_no_name(text: str) -> None:
    dataset = plain("CT")
    dataset.PatientName = "Wu^Li"
    dataset.ReferringPhysicianName = "Kowalczyk^Lea^Maria"
    assert identifying_values(dataset).found_in(f"x {text} y".encode()) == set()


def test_an_identifier_is_found_without_its_separators(values: Identifiers) -> None:
    assert values.found_in(b"id 47110815ab") == {"PatientID"}


def test_what_was_retained_on_purpose_is_not_sought() -> None:
    dataset = plain("CT")
    dataset.DeviceSerialNumber, dataset.StudyDate = "SN-778899", "20190405"
    assert {"DeviceSerialNumber", "StudyDate"} <= identifying_values(dataset).found_in(b"SN-778899 5.4.2019")
    values = identifying_values(dataset, retained=["sn-778899", "20190405"])
    assert values.found_in(b"SN-778899 5.4.2019") == set()
    assert "PatientName" in values.found_in(b"anna")


def test_databases_are_searched_with_their_journals(tmp_path: Path) -> None:
    """Short names too, which in other binary files come up by chance; and rows that only the write-ahead log holds."""
    values = Identifiers({"lea": "PatientName", "kaminska": "PatientID"})
    place = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(place)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA wal_autocheckpoint=0")
        database.execute("CREATE TABLE runs (name TEXT)")
        database.execute("INSERT INTO runs VALUES ('of Lea')")
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO runs VALUES ('Kaminska')")
        database.commit()
        found = scan_places(values, [place])
        assert {Hit("mlflow.db", "PatientName"), Hit("mlflow.db-wal", "PatientID")} <= set(found)
        assert Hit("mlflow.db", "PatientID") not in found
    events, folder = tmp_path / "events.jsonl", tmp_path / "artifacts"
    events.write_text('{"case": "kaminska"}\n')
    folder.mkdir()
    (folder / "lea.txt").write_text("x")
    found = scan_places(values, [events, folder, tmp_path / "nowhere"])
    assert found == [Hit("artifacts/lea.txt", "PatientName"), Hit("events.jsonl", "PatientID")]


def test_large_files_are_searched_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "PIECE", 4096)
    values = Identifiers({"kaminska": "PatientID", "lea": "PatientName"})
    for place in (0, 4090, 4096, 8000, 12280):
        text = bytearray(b"." * 12288)
        text[place : place + 8] = b"Kaminska"
        (tmp_path / "log").write_bytes(text)
        (tmp_path / "voxels").write_bytes(bytes(12288).replace(b"\0", b"\1\0") + text)
        assert [hit.file for hit in scan_places(values, [tmp_path])] == [
            f"{tmp_path.name}/log",
            f"{tmp_path.name}/voxels",
        ]
    (tmp_path / "voxels").write_bytes(b"\0" * 9000 + b" lea " + b"\0" * 9000)
    (tmp_path / "log").unlink()
    assert scan_places(values, [tmp_path]) == []


def test_printable_runs_are_those_of_the_plain_way() -> None:
    generator = np.random.default_rng(3)
    slices = np.clip(generator.normal(1000, 300, 40_000), 0, 4095).astype("<u2").tobytes()
    signed = generator.integers(-1000, 3000, 40_000).astype("<i2").tobytes()
    noise = generator.integers(0, 256, 100_000, dtype=np.uint8).tobytes()
    texts = [b"", b"a", b"abcdefg", b"abcdefgh", b"\0abcdefgh", b"abcdefghi\0\0jklmnopqr", b"\0" * 7 + b"abcdefgh\xff"]
    for data in [slices, signed, noise, slices[:-1], noise + b"Kaminska", *texts]:
        for offset in range(5):
            for planted_run in (b"", b"Kaminska", b"~~ Kaminska 1961 ~~"):
                whole = data[:5000] + bytes(offset) + planted_run + data[5000:]
                assert residual.printable_runs(whole) == b"\n".join(re.findall(rb"[\x20-\x7e]{8,}", whole))


@pytest.mark.parametrize("options", [(), ("retain_device_identity", "retain_full_dates", "clean_descriptors")])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_quick_search_finds_what_the_plain_one_finds(modality: str, options: tuple[Any, ...]) -> None:
    """A series with changing headers; leaks of one value, in one of many forms, at random places of some results."""
    generator = np.random.default_rng(7)
    settings = Deidentify(options=options, ocr="off", accept_faces=True)
    deidentifier = Deidentifier(SecretKey(bytes(32)), settings)
    search = ResidualSearch()
    found_some = 0
    for number in range(60):
        dataset, _ = planted(modality)
        dataset.InstanceNumber = number + 1
        dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.99.6.{number}"
        dataset.PatientID = f"PERSON-{number // 20}"
        dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.99.7.{number // 20}"
        if number % 5 == 0:
            dataset.ImageComments = f"seen by Przybylski{number}"
        source = pydicom.dcmread(BytesIO(file_bytes(dataset)))
        looked = search.look_at(source)
        clean = deidentifier.dataset(source)
        retained = deidentifier.retained(source, clean)
        values = identifying_values(source, retained)
        if number % 3 == 0:
            sought = sorted(value for value in values if value.isascii())
            value = sought[generator.integers(len(sought))]
            leak = generator.choice([value, value.upper(), f"x {value} y"])
            place = generator.choice(["ProtocolName", "PatientComments", "SeriesDescription"])
            setattr(clean, place, str(leak))
        encoded = encode(clean)
        if number % 7 == 0:
            encoded.samples += b"\1\2PERSON-0 PERSON-1 PERSON-2\1"
        slow = scan_bytes(values, encoded.data)
        quick = search.search(looked, encoded, [], lambda retained=retained: retained)
        assert quick == slow, number
        found_some += bool(slow)
    assert found_some > 15


def test_a_kept_text_does_not_cover_for_a_leak_elsewhere() -> None:
    """A maker's name that is also the patient's is dropped as an unknown term: it must not stand anywhere else."""
    dataset = plain("CT")
    dataset.Manufacturer, dataset.PatientName = "Kaminska Imaging", "Kaminska^Lea"
    source = pydicom.dcmread(BytesIO(file_bytes(dataset)))
    deidentifier, search = Deidentifier(SecretKey(bytes(32))), ResidualSearch()
    looked = search.look_at(source)
    clean = deidentifier.dataset(source)
    assert search.search(looked, encode(clean), [], frozenset) == set()
    clean.ProtocolName = "for Kaminska"
    assert search.search(looked, encode(clean), [], frozenset) == {"PatientName"}
    assert search.search(looked, encode(deidentifier.dataset(source)), [b"P1/kaminska.dcm"], frozenset) == {
        "PatientName"
    }
