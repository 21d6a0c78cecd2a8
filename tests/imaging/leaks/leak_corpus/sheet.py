"""One file in the making, and the places where a secret can be planted in it."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from .carriers import CARRIERS, carrier
from .secrets import Secret, Secrets

Plant = Callable[["Sheet"], Secret]


@dataclass(frozen=True)
class Place:
    """A place for one secret."""

    group: str
    """What kind of place it is; where files hold several secrets, those of one group share one."""
    name: str
    plant: Plant = field(repr=False)
    carriers: frozenset[str] = frozenset(CARRIERS)
    allowed: frozenset[str] = frozenset()
    """Options of the profile under which the value may stay as it is."""
    refusable: bool = False
    """Whether a tool does well to refuse such a file: what is in it cannot be taken out with certainty."""
    alone: bool = False
    """Whether it needs a file of its own."""


@contextmanager
def silence() -> Iterator[None]:
    """pydicom warns about what is planted, and its decoders log what they cannot decode."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Sheet:
    """A carrier, what was planted in it, and changes to make to its bytes once they are written."""

    def __init__(self, kind: str, number: int, secrets: Secrets) -> None:
        self.kind, self.number, self.secrets = kind, number, secrets
        self.dataset = carrier(kind, number)
        self.preamble = bytes(128)
        self.file_name = f"{number:05d}.dcm"
        self.edits: list[Callable[[bytes], bytes]] = []

    def add(self, tag: int, vr: str, value: object, to: Dataset | None = None) -> None:
        """Put an element in, whatever its value."""
        (self.dataset if to is None else to)[tag] = DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)

    def put(self, tag: int, vr: str, value: bytes) -> None:
        """Put an element of a text VR in whose bytes are no such value: a stand-in, exchanged once it is written."""
        value += b" " * (len(value) % 2)
        mark = b"@" * len(value)
        self.add(tag, "LO", mark.decode())
        head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
        size = struct.pack("<H", len(value))
        self.edits.append(lambda data: data.replace(head + b"LO" + size + mark, head + vr.encode() + size + value, 1))

    def insert(self, element: bytes) -> None:
        """Put an encoded element before the pixel data."""
        pixels = struct.pack("<HH2s", 0x7FE0, 0x0010, b"OW")
        self.edits.append(lambda data: data.replace(pixels, element + pixels, 1))

    def encoded(self) -> bytes:
        """The file."""
        buffer = io.BytesIO()
        self.dataset.preamble = self.preamble
        with silence():
            pydicom.dcmwrite(buffer, self.dataset, enforce_file_format=True)
        data = buffer.getvalue()
        for edit in self.edits:
            data = edit(data)
        return data
