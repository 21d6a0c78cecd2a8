"""The linking table: the way back for who holds the key, and nothing for anybody else."""

from __future__ import annotations

import pickle
import stat
import string
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medsynth.errors import PrivacyError, UsageError
from medsynth.imaging.deidentify import SecretKey
from medsynth.imaging.deidentify.linking import Link, LinkingTable, link_of

KEY = SecretKey(bytes(range(32)))
OTHER = SecretKey(bytes(range(1, 33)))
NAME, NUMBER, BORN, STUDY = "Köhler^Jürgen", "77-4711", "19580302", "1.2.3.4.5"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "closed" / "table"


def header(number: str = NUMBER, study: str = STUDY) -> Dataset:
    found = Dataset()
    found.SpecificCharacterSet = "ISO_IR 100"
    found.PatientName, found.PatientID, found.PatientBirthDate, found.StudyInstanceUID = NAME, number, BORN, study
    found.IssuerOfPatientID = "Ward 7"
    return found


def filled(path: Path, count: int = 3) -> LinkingTable:
    table = LinkingTable.open(path, KEY)
    for number in range(count):
        table.add(header(f"{NUMBER}-{number}"), f"P{number}")
    return table


def test_there_and_back(path: Path) -> None:
    table = LinkingTable.open(path, KEY)
    link = table.add(header(), "P1")
    table.add(header(study="1.2.3.4.6"), "P1")
    (first, second) = LinkingTable.load(path, KEY).find("P1")
    assert first == link
    assert (first.patient_id, first.issuer, first.name, first.birth_date) == (NUMBER, "Ward 7", NAME, BORN)
    assert (first.study_uid, first.new_study_uid) == (STUDY, KEY.uid(STUDY))
    assert first.shift_days == KEY.shift_days("P1")
    assert LinkingTable.load(path, KEY).find(second.new_study_uid) == [second]
    assert LinkingTable.load(path, KEY).find("P2") == []


def test_nothing_can_be_read_or_shown_without_the_key(path: Path) -> None:
    table = filled(path)
    data = path.read_bytes()
    for value in (NAME, NUMBER, BORN, STUDY):  # shorter ones stand in base64 by chance
        assert value.encode() not in data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    link = next(iter(table))
    assert all(value not in f"{link} {link!r} {table!r}" for value in (NAME, NUMBER, "P0", BORN))
    lengths = {len(line) for line in data.splitlines()[1:]}
    table.add_link(Link("P9", name="Li"))
    assert {len(line) for line in path.read_bytes().splitlines()[1:4]} == lengths


def test_another_key_is_refused(path: Path) -> None:
    filled(path)
    with pytest.raises(PrivacyError, match="key that the linking table was made with"):
        LinkingTable.open(path, OTHER)


def test_a_link_is_written_once_and_travels_between_processes(path: Path) -> None:
    table = filled(path)
    size = path.stat().st_size
    travelled = pickle.loads(pickle.dumps(link_of(header(f"{NUMBER}-1"), "P1")))
    table.add_link(travelled)
    LinkingTable.open(path, KEY).add_link(travelled)
    assert path.stat().st_size == size


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_every_altered_byte_is_seen(path: Path) -> None:
    filled(path, 2)
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 7):
        path.write_bytes(flipped(data, place))
        with pytest.raises(PrivacyError):
            LinkingTable.load(path, KEY)


def test_bits_that_base64_does_not_use_are_seen_too(path: Path) -> None:
    filled(path, 1)
    data = path.read_bytes()
    assert data.endswith(b"=\n")
    values = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    last = data[-3:-2].decode()
    for unused in (1, 2, 3):
        other = values[values.index(last) ^ unused].encode()
        path.write_bytes(data[:-3] + other + data[-2:])
        with pytest.raises(PrivacyError, match="altered"):
            LinkingTable.load(path, KEY)


def swap(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def leave_out(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[3]]


def double(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], *lines[1:]]


def behead(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


@pytest.mark.parametrize("change", [swap, leave_out, double, behead])
def test_lines_cannot_be_moved(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    filled(path)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(PrivacyError, match="restore it"):
        LinkingTable.load(path, KEY)


def test_a_line_of_another_table_with_the_same_key_is_refused(path: Path) -> None:
    filled(path)
    other = path.with_name("other")
    filled(other)
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head + b"".join(other.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(PrivacyError, match="line 2"):
        LinkingTable.load(path, KEY)


def test_what_a_kill_left_of_a_line_is_dropped_and_written_again(path: Path) -> None:
    filled(path)
    whole = path.read_bytes()
    for cut in (1, 60, 200):
        path.write_bytes(whole[:-cut])
        table = LinkingTable.open(path, KEY)
        assert len(table) == 2
        table.add(header(f"{NUMBER}-2"), "P2")
        table.add(header(f"{NUMBER}-3"), "P3")
        assert [link.pseudonym for link in LinkingTable.load(path, KEY)] == ["P0", "P1", "P2", "P3"]


def test_tables_that_are_open_at_once_add_to_each_other(path: Path) -> None:
    tables = [LinkingTable.open(path, KEY) for _ in range(4)]

    def add(number: int) -> None:
        tables[number % 4].add_link(Link(f"P{number // 2}", patient_id=f"{number // 2}"))

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(add, number) for number in range(40)]
    assert all(future.exception() is None for future in futures)
    found = [link.pseudonym for link in LinkingTable.load(path, KEY)]
    assert sorted(found) == sorted(f"P{number}" for number in range(20))


def test_tables_made_at_once_are_one(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: LinkingTable.open(path, KEY).add_link(Link(f"P{number}")), range(16)))
    assert len(LinkingTable.load(path, KEY)) == 16
    assert list(path.parent.iterdir()) == [path]


def test_a_patient_is_forgotten_and_open_tables_see_it(path: Path) -> None:
    table, other = filled(path), LinkingTable.open(path, KEY)
    before = path.read_bytes().splitlines()
    assert table.forget("P1") == 1
    assert table.forget("P1") == 0
    other.add_link(Link("P7"))
    found = [link.pseudonym for link in LinkingTable.load(path, KEY)]
    assert found == ["P0", "P2", "P7"]
    assert not set(before) & set(path.read_bytes().splitlines())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_table_open_to_others_is_refused(path: Path) -> None:
    filled(path)
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match=r"linking table's file.*chmod 600"):
        LinkingTable.open(path, KEY)
    path.chmod(0o600)
    path.parent.chmod(0o777)
    with pytest.raises(PrivacyError, match=r"linking table's folder.*chmod 700"):
        LinkingTable.open(path, KEY)


def test_a_symbolic_link_is_refused(path: Path) -> None:
    filled(path)
    other = path.with_name("other")
    other.symlink_to(path)
    with pytest.raises(PrivacyError, match="link to another file"):
        LinkingTable.open(other, KEY)
    path.with_name("dangling").symlink_to(path.with_name("nowhere"))
    with pytest.raises(PrivacyError, match="link to another file"):
        LinkingTable.open(path.with_name("dangling"), KEY)


@pytest.mark.parametrize("content", [b"", b"no table\n", b"[]\n", b'{"format": "medsynth linking table 2"}\n'])
def test_other_files_are_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(PrivacyError, match="expected a"):
        LinkingTable.open(path, KEY)
    assert path.read_bytes() == content


def test_no_table_is_made_where_one_is_only_read(path: Path) -> None:
    with pytest.raises(UsageError, match="found none"):
        LinkingTable.load(path, KEY)
    assert not path.parent.exists()


def test_derived_keys_differ_by_purpose_and_key() -> None:
    assert KEY.derive("a") == SecretKey(bytes(range(32))).derive("a")
    assert len({KEY.derive("a"), KEY.derive("b"), OTHER.derive("a"), bytes(range(32))}) == 4
    assert len(KEY.derive("a")) == 32
