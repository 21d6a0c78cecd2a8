"""The corpus on disk: every place in a CT file of its own, and in the other kinds of images by groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from . import by_bytes, by_shape, by_subject, by_type
from .carriers import CARRIERS, CT
from .secrets import Secret, Secrets
from .sheet import Place, Sheet


@dataclass(frozen=True)
class Planted:
    """A place with the secret that was put there."""

    place: Place
    kind: str
    """The kind of image."""
    secret: Secret

    @property
    def name(self) -> str:
        return f"{self.kind} / {self.place.group} / {self.place.name}"


@dataclass(frozen=True)
class File:
    """One file of the corpus."""

    number: int
    kind: str
    name: str
    planted: tuple[Planted, ...]
    dataset: Dataset
    """What was encoded, before changes to its bytes."""
    data: bytes

    @property
    def refusable(self) -> bool:
        """Whether a tool does well to refuse it."""
        return any(planted.place.refusable for planted in self.planted)


def all_places() -> list[Place]:
    """Every place, in a fixed order."""
    return [*by_type.places(), *by_subject.places(), *by_shape.places(), *by_bytes.places()]


def files(*, together: bool = False) -> Iterator[File]:
    """The files. With `together`, CT images hold several secrets as well, which makes a sixth of the files.

    A secret that another one of its file overwrote is planted again in a file of its own.
    """
    secrets = Secrets()
    number = 0
    for kind in CARRIERS:
        for group in _groups(kind, together=together):
            waiting = list(group)
            while waiting:
                number += 1
                file = _file(kind, number, waiting, secrets)
                there = found_in(file)
                lost = [one.place for one in file.planted if one not in there]
                if len(lost) == len(waiting):
                    raise ValueError(f"the corpus must hold what it claims to plant: {file.planted[0].name}")
                if lost:
                    file = _file(kind, number, [place for place in waiting if place not in lost], secrets)
                waiting = lost
                yield file


def _groups(kind: str, *, together: bool) -> Iterator[list[Place]]:
    shared: dict[str, list[Place]] = {}
    for place in all_places():
        if kind not in place.carriers:
            continue
        if place.alone or (kind == CT and not together):
            yield [place]
        else:
            shared.setdefault(place.group, []).append(place)
    yield from shared.values()


def _file(kind: str, number: int, places: list[Place], secrets: Secrets) -> File:
    sheet = Sheet(kind, number, secrets)
    planted = tuple(Planted(place, kind, place.plant(sheet)) for place in places)
    return File(number, kind, f"{kind.replace(' ', '_')}/{sheet.file_name}", planted, sheet.dataset, sheet.encoded())


def found_in(file: File) -> list[Planted]:
    """What is there of what was planted, by the eyes of the judge."""
    from .judge import haystacks

    whole = b"\n".join([file.name.lower().encode(), *haystacks(file.data)])
    return [one for one in file.planted if any(needle in whole for needle in one.secret.needles())]


def write(folder: Path, *, together: bool = False) -> list[File]:
    """Write the corpus below `folder` and return its files."""
    made = list(files(together=together))
    for file in made:
        path = folder / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
    return made
