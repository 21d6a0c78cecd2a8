"""A de-identifier that remembers, in memory only, whose headers it was given: for the second look and the linking table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medsynth.config.deidentify import Deidentify
from medsynth.errors import UnreadableError
from medsynth.imaging.deidentify import Deidentifier, SecretKey
from medsynth.imaging.deidentify.elements import DAMAGE
from medsynth.imaging.deidentify.identifiers import Gathered
from medsynth.imaging.deidentify.linking import Link, link_of
from medsynth.imaging.deidentify.residual import Identifiers, identifying_values, scan_bytes
from medsynth.imaging.deidentify.written_dates import Date
from medsynth.imaging.quiet import quiet_pydicom

ACCESSION_NUMBER, STUDY = 0x00080050, 0x0020000D
PATIENT_TAGS = (
    ACCESSION_NUMBER,
    0x00100010,  # name
    0x00100020,  # ID
    0x00100030,  # birth date
    0x00101000,  # other IDs
    0x00101001,  # other names
    0x00101002,  # other IDs, as a sequence
    0x00101005,  # birth name
    0x00101060,  # mother's birth name
    0x00101090,  # medical record locator
)
"""What says who somebody is, and not what was found or done: searched for in everything that `prepare` writes."""


@dataclass(frozen=True)
class Seen:
    """Values of patients, each with the attribute it came from. Goes from a worker to the main process; never written."""

    values: dict[str, str] = field(default_factory=dict)
    dates: dict[Date, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()

    def __repr__(self) -> str:
        return "Seen(not shown)"


class Witness(Deidentifier):
    """De-identifies like any other. Raises UnreadableError too where what it looks at is damaged."""

    def __init__(self, key: SecretKey, settings: Deidentify, *, linked_as: str | None = None) -> None:
        """linked_as: the pseudonym under which links are kept; None for none."""
        super().__init__(key, settings)
        self._linked_as = linked_as
        self._everything = Identifiers()
        self._patients = Gathered()
        self._links: dict[Link, None] = {}
        self._known: set[tuple[object, ...]] = set()
        self.saw_face = False
        """Whether a face could be recognised in what was read, and is to be removed."""

    def dataset(self, source: Dataset) -> Dataset:
        """The twin of `source`, as any Deidentifier makes it."""
        try:
            with quiet_pydicom():
                self._look_at_patient(source)
                sought = identifying_values(source)
        except (*DAMAGE, AttributeError, KeyError):
            raise UnreadableError(
                "expected a whole DICOM header, found elements that cannot be read; export the file again"
            ) from None
        clean = super().dataset(source)
        self._everything.update(sought.without("\n".join(self.retained(source, clean))))
        if "clean_recognizable_visual_features" in self.options and not self.saw_face:
            self.saw_face = self._guard.suspects_face(source)
        return clean

    @property
    def seen(self) -> Seen:
        """What was seen of patients."""
        return Seen(dict(self._patients.values), dict(self._patients.dates), tuple(self._links))

    def leaks(self, paths: Iterable[Path]) -> set[str]:
        """Attributes of which a value stands in one of the files that were made from what was read."""
        if not len(self._everything):
            return set()
        return set().union(*(scan_bytes(self._everything, path.read_bytes()) for path in paths))

    def _look_at_patient(self, source: Dataset) -> None:
        """Once for every other patient or study: slices of one series say the same."""
        items = [(tag, source.get_item(tag)) for tag in (*PATIENT_TAGS, STUDY) if tag in source]
        mark = tuple((tag, item.value if isinstance(item.value, bytes) else str(item.value)) for tag, item in items)
        if mark in self._known:
            return
        self._known.add(mark)
        for tag, item in items:
            if tag != STUDY:
                self._patients.add(source, BaseTag(tag), item)
        if self._linked_as is not None:
            self._links[link_of(source, self._linked_as)] = None
