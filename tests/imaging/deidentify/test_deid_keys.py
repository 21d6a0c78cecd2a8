"""The secret: closed to others, never shown, and the pseudonyms it gives."""

from __future__ import annotations

import copy
import json
import pickle
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom.uid import UID

from medsynth.errors import PrivacyError
from medsynth.imaging.deidentify import SecretKey

KEY = SecretKey(bytes(range(32)))
OTHER = SecretKey(bytes(range(1, 33)))


def test_file_and_folder_are_closed_and_the_key_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key.hex"
    first = SecretKey.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert re.fullmatch(r"[0-9a-f]{64}\n", path.read_text())
    assert list(path.parent.iterdir()) == [path]
    again = SecretKey.load_or_create(path)
    assert again.pseudonym("patient", "x") == first.pseudonym("patient", "x")
    assert again.path == path


def test_processes_that_create_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key.hex"
    with ThreadPoolExecutor(8) as pool:
        prints = set(pool.map(lambda _: SecretKey.load_or_create(path).fingerprint, range(16)))
    assert len(prints) == 1
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_open_to_others_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key.hex"
    SecretKey.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(PrivacyError, match=r"0600.*chmod 600") as caught:
        SecretKey.load_or_create(path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_where_others_could_replace_the_key_is_refused(mode: int, tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PrivacyError, match=r"0700.*chmod 700"):
        SecretKey.load_or_create(folder / "key.hex")
    assert list(folder.iterdir()) == []


def test_a_folder_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    folder.chmod(0o755)
    SecretKey.load_or_create(folder / "key.hex")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "key.hex").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short\n", b"g" * 64, b"A" * 64, b"0" * 63, b"0" * 65, b"\xff" * 64])
def test_what_is_no_key_is_refused_without_showing_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.hex"
    path.touch(mode=0o600)
    path.write_bytes(content)
    tmp_path.chmod(0o700)
    with pytest.raises(PrivacyError, match="64 hexadecimal digits") as caught:
        SecretKey.load_or_create(path)
    assert not content or content.decode("latin-1").strip() not in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_key_is_not_made_by_load(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="found none"):
        SecretKey.load(tmp_path / "key.hex")


def test_neither_repr_nor_any_copy_gives_it_away() -> None:
    secret = bytes(range(32)).hex()
    assert secret not in repr(KEY) + str(KEY) + f"{KEY}"
    assert KEY.fingerprint in repr(KEY)
    assert KEY.fingerprint not in secret
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            leak(KEY)
    assert not hasattr(KEY, "__dict__")


def test_pseudonyms_depend_on_key_kind_and_value_only() -> None:
    name = KEY.pseudonym("patient", "A", "P")
    assert re.fullmatch(r"P[0-9A-F]{12}", name)
    assert name == KEY.pseudonym("patient", "A", "P")
    others = [KEY.pseudonym("patient", "B", "P"), KEY.pseudonym("name", "A", "P"), OTHER.pseudonym("patient", "A", "P")]
    assert len({name, *others}) == 4


def test_uids_are_valid_and_those_of_the_standard_stay() -> None:
    mapped = {KEY.uid(f"1.2.3.{number}") for number in range(200)}
    assert len(mapped) == 200
    for uid in mapped:
        assert UID(uid).is_valid
        assert uid.startswith("2.25.")
        assert len(uid) <= 64
        number = int(uid[5:])
        assert (number >> 76 & 0xF, number >> 62 & 0x3) == (8, 2)  # RFC 9562: version 8, variant 10
    assert KEY.uid("1.2.3") == KEY.uid("1.2.3\0") != OTHER.uid("1.2.3")
    assert KEY.uid("1.2.840.10008.5.1.4.1.1.2") == "1.2.840.10008.5.1.4.1.1.2"
    assert KEY.uid("1.2.840.10008.ANNA").startswith("2.25.")
    assert KEY.uid("1.2.840.100081.1").startswith("2.25.")


def test_dates_shift_by_whole_weeks_and_never_by_none() -> None:
    shifts = [KEY.shift_days(f"P{number}") for number in range(3000)]
    assert all(shift % 7 == 0 and 0 < abs(shift) <= 3640 for shift in shifts)
    assert KEY.shift_days("P1") == shifts[1]
    assert len(set(shifts)) > 900  # of 1040
    assert 0.45 < sum(shift > 0 for shift in shifts) / 3000 < 0.55
