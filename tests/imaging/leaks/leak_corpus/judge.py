"""What survived: secrets in written files and their names, and values that research needs and that are gone."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array

from .by_bytes import inflated
from .carriers import CORE, carrier, number_of, values_at
from .corpus import File, Planted
from .secrets import telling_in
from .sheet import silence

READ_ERRORS = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError, RuntimeError,
               IndexError, pydicom.errors.InvalidDicomError)  # fmt: skip


@dataclass
class Verdict:
    """What a tool left of the corpus."""

    written: int = 0
    unreadable: int = 0
    """Files that were written and cannot be read any more."""
    leaked: list[Planted] = field(default_factory=list)
    lost: dict[str, list[str]] = field(default_factory=dict)
    """Name of a value that research needs -> files in which it is missing or changed, `not written` among them."""
    missing: list[File] = field(default_factory=list)
    """Sources without a result."""


def judge(files: Iterable[File], out: Path) -> Verdict:
    """Compare the files below `out` with the corpus.

    A source without a result has leaked nothing: nothing of it left the house. But its values are lost to research, so
    refusing everything does not pay.
    """
    verdict = Verdict()
    files = list(files)
    results: dict[int, list[bytes]] = {}
    datasets: dict[int, Dataset] = {}
    everything: list[bytes] = []
    strays: list[bytes] = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = path.read_bytes()
        everything.append(path.relative_to(out).as_posix().encode() + b"\n" + b"\n".join(haystacks(data)))
        if data[128:132] != b"DICM":
            continue
        verdict.written += 1
        dataset, number = read(data)
        if number is None:
            verdict.unreadable += 1
            strays.append(everything[-1])
            continue
        results.setdefault(number, []).append(everything[-1])
        datasets[number] = dataset
    telling = telling_in(b"\n".join(everything).lower())
    for file in files:
        own = b"\n".join(results.get(file.number, strays)).lower()
        for planted in file.planted:
            secret = planted.secret
            if any(needle in own for needle in secret.needles()) if secret.own else secret.text.lower() in telling:
                verdict.leaked.append(planted)
        if file.number not in datasets:
            verdict.missing.append(file)
        for name in _lost(file, datasets.get(file.number)):
            verdict.lost.setdefault(name, []).append(file.name)
    return verdict


def haystacks(data: bytes) -> list[bytes]:
    """A file's bytes in all the ways in which a secret may stand in them, lower case.

    As they are; inflated; with the bytes of 16-bit words swapped; and the unused bits of samples, bit by bit.
    """
    stacks = [data, inflated(data)]
    even = data[: len(data) // 2 * 2]
    stacks.append(np.frombuffer(even, "<u2").byteswap().tobytes())
    dataset, _ = read(data)
    pixels = dataset.get("PixelData") if dataset is not None else None
    if isinstance(pixels, bytes) and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        samples = np.frombuffer(pixels[: len(pixels) // 2 * 2], "<u2")
        stacks += [
            np.packbits((samples >> bit & 1).astype(np.uint8), bitorder="little").tobytes() for bit in range(12, 16)
        ]
    return [stack.lower() for stack in stacks if stack]


def read(data: bytes) -> tuple[Dataset | None, int | None]:
    """The dataset and the number that its first samples spell."""
    with silence():
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
            samples = np.asarray(pixel_array(dataset, raw=True)).reshape(-1)
        except READ_ERRORS:
            return None, None
    return dataset, number_of(samples)


def _lost(file: File, result: Dataset | None) -> list[str]:
    """Names of what the Basic Profile leaves and the result has not, as far as nothing was planted there."""
    pristine = carrier(file.kind, file.number)
    names = [name for name in CORE[file.kind] if values_at(file.dataset, name) == values_at(pristine, name)]
    if result is None:
        return [*names, "pixels"]
    with silence():
        lost = [name for name in names if not _same(result, pristine, name)]
        found = np.asarray(pixel_array(result, raw=True))
    expected = np.frombuffer(pristine.PixelData, "<u2").reshape(found.shape)
    return lost if np.array_equal(found & 0xFFF, expected) else [*lost, "pixels"]


def _same(result: Dataset, pristine: Dataset, name: str) -> bool:
    try:
        return values_at(result, name) == values_at(pristine, name)
    except READ_ERRORS:
        return False
