"""The project's secret: what makes pseudonyms repeatable for its owner and unguessable for everybody else."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path
from typing import NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from pydicom.uid import UID_dictionary

from medsynth.errors import PrivacyError

KEY_BYTES = 32
PSEUDONYM_DIGITS = 12
MOST_WEEKS = 520
"""Dates move by at most ten years to either side."""


class SecretKey:
    """256 random bits. Never shown, copied or pickled; a worker process loads it from its file again."""

    __slots__ = ("_bytes", "path")

    def __init__(self, value: bytes, path: Path | None = None) -> None:
        if len(value) != KEY_BYTES:
            raise PrivacyError(f"expected a secret key of {KEY_BYTES} bytes, found {len(value)}; make a new one")
        self._bytes = value
        self.path = path

    @classmethod
    def load_or_create(cls, path: Path) -> SecretKey:
        """The key in `path`; made on first use, in a folder (0700) that is made with it if it is not there.

        Raises PrivacyError if others can read or replace it, or if it is not a key.
        """
        if not path.exists():
            _create(path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> SecretKey:
        """The key in an existing file. Raises PrivacyError if it is missing, open to others or not a key."""
        if not path.is_file():
            raise PrivacyError(f"expected a secret key file, found none at {path}; give the file made at first use")
        check_closed(path, "secret key")
        text = path.read_bytes()
        if not re.fullmatch(rb"[0-9a-f]{%d}\n?" % (2 * KEY_BYTES), text):
            raise PrivacyError(
                f"expected {2 * KEY_BYTES} hexadecimal digits in the secret key file {path}, found something else; "
                "restore it from a copy (a new key gives new pseudonyms)"
            )
        return cls(bytes.fromhex(text.decode("ascii").strip()), path)

    @property
    def fingerprint(self) -> str:
        """Eight digits that tell keys apart and say nothing about them."""
        return self._digest("fingerprint", "").hex()[:8]

    def pseudonym(self, kind: str, value: str, prefix: str = "") -> str:
        """`prefix` and twelve hexadecimal digits: the same for the same kind and value, unlinkable between kinds."""
        return prefix + self._digest(f"pseudonym/{kind}", value).hex()[:PSEUDONYM_DIGITS].upper()

    def uid(self, uid: str) -> str:
        """A new UID in the `2.25.` form of PS3.5 B.2; those that the standard itself has given a name (PS3.6) stay."""
        uid = uid.strip(" \0")
        if uid in UID_dictionary:
            return uid
        number = int.from_bytes(self._digest("uid", uid)[:16], "big")
        number = number & ~(0xF << 76) | 8 << 76  # RFC 9562, section 5.8: version 8, a UUID of one's own making
        number = number & ~(0x3 << 62) | 2 << 62
        return f"2.25.{number}"

    def shift_days(self, patient: str) -> int:
        """Days by which all dates of a patient move: whole weeks, so weekdays stay; never zero."""
        draw = int.from_bytes(self._digest("shift", patient)[:8], "big") % (2 * MOST_WEEKS)
        weeks = draw - MOST_WEEKS if draw < MOST_WEEKS else draw - MOST_WEEKS + 1
        return 7 * weeks

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose alone (HKDF-SHA256, RFC 5869); it says nothing about this one."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"medsynth/{purpose}".encode()).derive(self._bytes)

    def _digest(self, purpose: str, value: str) -> bytes:
        """HMAC-SHA256 (RFC 2104) of a value, separated by purpose."""
        return hmac.new(self._bytes, f"{purpose}\x1f{value}".encode(), hashlib.sha256).digest()

    def __repr__(self) -> str:
        return f"SecretKey(fingerprint={self.fingerprint})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is never pickled or copied; load it from its file where it is needed")


def _create(path: Path) -> None:
    """Write a new key so that it is there whole and closed, or not at all; who comes second finds the first one's."""
    with contextlib.suppress(FileExistsError):
        path.parent.mkdir(mode=0o700, parents=True)
    check_folder(path.parent, "secret key")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES).hex().encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename, never replaces a key that another process has just made
    finally:
        draft.unlink()


def check_closed(path: Path, thing: str) -> None:
    """Raise PrivacyError unless only its owner can read the `thing` in `path` and nobody else can replace it."""
    check_folder(path.parent, thing)
    _check_mode(path, f"{thing}'s file to be open to its owner only", forbidden=0o077, remedy=0o600)


def check_folder(folder: Path, thing: str) -> None:
    """Raise PrivacyError unless only its owner can put a `thing` into `folder`."""
    _check_mode(folder, f"{thing}'s folder to be writable by its owner only", forbidden=0o022, remedy=0o700)


def _check_mode(path: Path, wanted: str, *, forbidden: int, remedy: int) -> None:
    if os.name != "posix":
        return  # no such permissions there; the user's own folder is closed by the system
    found = stat.S_IMODE(path.stat().st_mode)
    if found & forbidden:
        raise PrivacyError(f"expected the {wanted} ({remedy:04o}), found {found:04o}; run: chmod {remedy:o} {path}")
