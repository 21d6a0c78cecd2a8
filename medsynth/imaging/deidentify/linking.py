"""The linking table: the only way from a pseudonym back to a patient. Kept only on request, encrypted, one line a link.

The file is append-only. Its first line names format and key and is sealed; every further line is one link, encrypted with
AES-256-GCM (NIST SP 800-38D) under a key that is derived for this purpose alone. First line and line number are
authenticated with each link, so a line cannot be edited, moved, left out or taken over from another table unnoticed. (That
whole lines are cut off at the end cannot be seen: keep copies.)
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydicom.dataset import Dataset

from medsynth.errors import PrivacyError, UnreadableError, UsageError
from medsynth.imaging.deidentify.elements import DAMAGE
from medsynth.imaging.deidentify.keys import SecretKey, check_closed, check_folder
from medsynth.imaging.quiet import quiet_pydicom

FORMAT = "medsynth linking table 1"
THING = "linking table"
NONCE_BYTES = 12
PADDED_TO = 128
"""Bytes; so that the length of a line does not tell the length of a name."""
RESTORE = "restore it from a copy"


@dataclass(frozen=True)
class Link:
    """What a hospital needs to go from one pseudonym back to one study. Identity: never logged, printed only on request."""

    pseudonym: str
    patient_id: str = ""
    issuer: str = ""
    """Who gave the patient ID."""
    name: str = ""
    birth_date: str = ""
    study_uid: str = ""
    """As received."""
    new_study_uid: str = ""
    """What it became, unless UIDs were retained; filled in by the table."""
    shift_days: int = 0
    """Days by which dates moved, where they were kept moved; filled in by the table."""

    def __repr__(self) -> str:
        return "Link(not shown)"


def link_of(source: Dataset, pseudonym: str) -> Link:
    """Who stands in a header, under the pseudonym that was given. Raises UnreadableError for a damaged header."""
    keywords = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    with quiet_pydicom():
        try:
            number, issuer, name, born, study = (str(source.get(keyword) or "").strip(" \0") for keyword in keywords)
        except DAMAGE:
            raise UnreadableError(
                "expected a whole DICOM header, found a patient's elements that cannot be read; export the file again"
            ) from None
    return Link(pseudonym, number, issuer, name, born, study)


class LinkingTable:
    """A table open for reading and adding. Processes can add to it at the same time; each link is written once."""

    def __init__(self, path: Path, key: SecretKey) -> None:
        self.path = path
        self._key = key
        self._cipher = AESGCM(key.derive(THING))
        self._links: dict[Link, None] = {}
        self._lines = 0
        self._head = b""
        self._read_to = 0
        """Bytes of the file that are in `_links`."""

    @classmethod
    def open(cls, path: Path, key: SecretKey) -> LinkingTable:
        """The table in `path`, made (0600) where there is none.

        Raises PrivacyError if it belongs to another key, was altered, is open to others or is a link to another file.
        """
        if not path.is_symlink() and not path.exists():
            cls(path, key)._write_new([], replace_old=False)
        return cls.load(path, key)

    @classmethod
    def load(cls, path: Path, key: SecretKey) -> LinkingTable:
        """An existing table. Raises UsageError where there is none, and PrivacyError like `open`."""
        table = cls(path, key)
        with table._held() as handle:
            table._catch_up(handle)
        return table

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(self._links)

    def add(self, source: Dataset, pseudonym: str) -> Link:
        """Remember who a dataset belongs to. Returns the link as it stands in the table."""
        return self.add_link(link_of(source, pseudonym))

    def add_link(self, link: Link) -> Link:
        """Append a link unless it is there; it is on the disk when this returns."""
        link = replace(
            link,
            new_study_uid=self._key.uid(link.study_uid) if link.study_uid else "",
            shift_days=self._key.shift_days(link.pseudonym),
        )
        if link in self._links:
            return link
        with self._held() as handle:
            self._catch_up(handle)
            if link not in self._links:
                line = self._sealed(link, self._lines + 1)
                os.ftruncate(handle, self._read_to)  # what a kill left of a line
                _write(handle, line)
                self._links[link] = None
                self._lines += 1
                self._read_to += len(line)
        return link

    def find(self, pseudonym: str) -> list[Link]:
        """All links of one pseudonym, of a patient or of a study (its new UID)."""
        return [link for link in self._links if pseudonym in (link.pseudonym, link.new_study_uid)]

    def forget(self, pseudonym: str) -> int:
        """Write the table again without a patient, whole or not at all. Returns how many links that were."""
        with self._held() as handle:
            self._catch_up(handle)
            kept = [link for link in self._links if link.pseudonym != pseudonym]
            gone = len(self._links) - len(kept)
            if gone:
                self._write_new(kept, replace_old=True)
        if gone:
            self._head = b""
            with self._held() as handle:
                self._catch_up(handle)
        return gone

    @contextmanager
    def _held(self) -> Iterator[int]:
        """The file, closed to other processes; it is opened anew each time, because another may have replaced it."""
        while True:
            handle = self._opened()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self._is_current(handle):
                    yield handle
                    return
            finally:
                os.close(handle)

    def _opened(self) -> int:
        if self.path.is_symlink():
            raise PrivacyError("expected the linking table itself, found a link to another file; name that file")
        if not self.path.is_file():
            raise UsageError("expected a linking table, found none; check the path (a table is kept only on request)")
        check_closed(self.path, THING)
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)

    def _is_current(self, handle: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(handle), self.path.stat())
        return False

    def _catch_up(self, handle: int) -> None:
        """Read what was added since the last look. A last line without its end is what a kill left, and is ignored."""
        if not self._head or os.pread(handle, len(self._head) + 1, 0) != self._head + b"\n":
            self._links, self._lines, self._read_to = {}, 0, 0  # new to us, or written again without a patient
        data = os.pread(handle, os.fstat(handle).st_size - self._read_to, self._read_to)
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        if self._read_to == 0:
            if not lines:
                raise PrivacyError(f"expected a linking table, found something else; {RESTORE}")
            self._check_head(lines.pop(0))
        for line in lines:
            self._lines += 1
            self._links[self._opened_link(line, self._lines)] = None
        self._read_to += len(whole)

    def _check_head(self, line: bytes) -> None:
        try:
            head = json.loads(line)
        except ValueError:
            head = None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise PrivacyError(f"expected a {FORMAT}, found something else; {RESTORE}")
        if head.get("key") != self._key.fingerprint:
            raise PrivacyError("expected the key that the linking table was made with, found another; give that one")
        seal = head.pop("seal", None)
        if not isinstance(seal, str) or not hmac.compare_digest(seal, self._seal(head)):
            raise PrivacyError(f"expected the linking table as it was written, found its first line altered; {RESTORE}")
        self._head = line

    def _opened_link(self, line: bytes, number: int) -> Link:
        try:
            data = base64.b64decode(line, validate=True)
            if base64.b64encode(data) != line:  # bits of the last character that no byte is made of
                raise ValueError
            text = self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], self._bound(number))
        except (InvalidTag, ValueError):
            raise PrivacyError(
                f"expected the linking table as it was written, found line {number + 1} altered, moved or damaged; {RESTORE}"
            ) from None
        return Link(**json.loads(text))

    def _sealed(self, link: Link, number: int) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        text = json.dumps(asdict(link)).encode()
        text += b" " * (-len(text) % PADDED_TO)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, text, self._bound(number))) + b"\n"

    def _bound(self, number: int) -> bytes:
        """What is authenticated with the link in a line: the table it stands in, and where."""
        return self._head + b"\n" + str(number).encode()

    def _seal(self, head: dict[str, Any]) -> str:
        text = json.dumps(head, sort_keys=True).encode()
        return hmac.new(self._key.derive(f"{THING} head"), text, hashlib.sha256).hexdigest()

    def _write_new(self, links: list[Link], *, replace_old: bool) -> None:
        """Write a whole table or none; where none may be replaced, who comes second finds the first one's."""
        with contextlib.suppress(FileExistsError):
            self.path.parent.mkdir(mode=0o700, parents=True)
        check_folder(self.path.parent, THING)
        head = {"format": FORMAT, "key": self._key.fingerprint, "table": secrets.token_hex(16)}
        self._head = json.dumps({**head, "seal": self._seal(head)}, sort_keys=True).encode()
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            lines = (self._sealed(link, number) for number, link in enumerate(links, start=1))
            _write(handle, self._head + b"\n" + b"".join(lines))
            if replace_old:
                draft.replace(self.path)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(draft, self.path)
        finally:
            os.close(handle)
            draft.unlink(missing_ok=True)


def _write(handle: int, data: bytes) -> None:
    """All of `data`, on the disk when this returns."""
    while data:
        data = data[os.write(handle, data) :]
    os.fsync(handle)
