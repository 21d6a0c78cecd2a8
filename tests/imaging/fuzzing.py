"""Mutated DICOM and NIfTI files: seeded, so that each can be made again from its number."""

from __future__ import annotations

import gzip
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
from dicom_series import CT, MR, stored_values, write_enhanced, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

NAMES = ("Nobody", "Nora", "4711", "INVENTED")
"""Parts of the invented identities in every file: no message may hold one."""

Mutation = Callable[[bytearray, np.random.Generator], bytes]


@cache
def seeds() -> dict[str, list[bytes]]:
    """Whole files to mutate: for each kind the slices of a series, or one file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = stored_values(3, 32, 32, top=4096)
        found = {}
        for kind, syntax in (
            ("ct", None), ("mr", ImplicitVRLittleEndian), ("rle", RLELossless), ("j2k", JPEG2000Lossless),
            ("jls", JPEGLSLossless), ("deflated", DeflatedExplicitVRLittleEndian),
        ):  # fmt: skip
            paths = write_series(
                folder / kind, stored, kind=MR if kind == "mr" else CT, compress=syntax, edit=_identity
            )
            found[f"{kind}.dcm"] = [path.read_bytes() for path in paths]
        found["jpeg.dcm"] = [_as_jpeg_lossless(path) for path in sorted((folder / "ct").iterdir())]
        write_enhanced(folder / "enhanced.dcm", stored)
        found["enhanced.dcm"] = [(folder / "enhanced.dcm").read_bytes()]
        for suffix, kind in ((".nii", nib.Nifti1Image), (".nii.gz", nib.Nifti1Image), ("2.nii.gz", nib.Nifti2Image)):
            image = kind(stored.astype(np.int16), np.diag([0.5, 0.8, 2.0, 1.0]))
            image.header["descrip"] = b"Nobody^Nora 4711"
            image.to_filename(folder / f"volume{suffix}")
            found[f"volume{suffix}"] = [(folder / f"volume{suffix}").read_bytes()]
        return found


def _as_jpeg_lossless(path: Path) -> bytes:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    packed = path.with_suffix(".jpeg")
    writer.SetFileName(str(packed))
    writer.Write()
    return packed.read_bytes()


def _identity(dataset: pydicom.Dataset, k: int) -> None:
    dataset.PatientComments = "Nora Nobody 4711"
    dataset.ReferringPhysicianName = "Nobody^Nora"
    dataset.add_new(0x00090010, "LO", "INVENTED")
    dataset.add_new(0x00091001, "UN", b"Nobody^Nora")


def flip_bits(raw: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(0, len(raw), int(rng.integers(1, 40))):
        raw[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(raw)


def flip_header_bits(raw: bytearray, rng: np.random.Generator) -> bytes:
    for place in rng.integers(0, min(len(raw), 1600), int(rng.integers(1, 12))):
        raw[place] ^= 1 << int(rng.integers(0, 8))
    return bytes(raw)


def truncate(raw: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(raw[: int(rng.integers(0, len(raw)))])


def cut_out(raw: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(raw)))
    del raw[start : start + int(rng.integers(1, 300))]
    return bytes(raw)


def repeat_some(raw: bytearray, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(raw)))
    part = raw[start : start + int(rng.integers(1, 400))]
    raw[start:start] = part * int(rng.integers(1, 5))
    return bytes(raw)


def lie_about_length(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Another length in an element's head, or in whatever stands there."""
    place = _element(raw, rng) + (6 if rng.random() < 0.6 else 8)
    lies = (0, 1, 2, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE, int(rng.integers(0, 1 << 32)))
    lie = lies[int(rng.integers(0, len(lies)))]
    raw[place : place + 4] = (
        struct.pack("<L", lie) if rng.random() < 0.5 else struct.pack("<H", lie & 0xFFFF) + raw[place + 2 : place + 4]
    )
    return bytes(raw)


def lie_about_size(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Huge rows, columns, frames or bits, or huge NIfTI dimensions."""
    if raw[:4] in (struct.pack("<l", 348), struct.pack("<l", 540)):
        place, code = (40, "<h") if raw[0] == 92 else (16, "<q")
        which = int(rng.integers(0, 8))
        size = struct.calcsize(code)
        values = (32767, -1, 0, 2, int(rng.integers(-32768, 32767)))
        raw[place + size * which : place + size * (which + 1)] = struct.pack(code, values[int(rng.integers(0, 5))])
        return bytes(raw)
    tags = (0x00280010, 0x00280011, 0x00280002, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280008)
    tag = tags[int(rng.integers(0, len(tags)))]
    place = raw.find(struct.pack("<HH", tag >> 16, tag & 0xFFFF), 132)
    if place >= 0:
        raw[place + 8 : place + 10] = struct.pack("<H", int(rng.choice([0, 1, 3, 32, 64, 255, 32767, 65535])))
    return bytes(raw)


def nest_deeply(raw: bytearray, rng: np.random.Generator) -> bytes:
    """A private sequence in a sequence in a sequence ..., with or without its ends."""
    depth = int(rng.choice([3, 70, 1200, 20_000]))
    tag = int(rng.choice([0x00081140, 0x00091002, 0x00400275]))
    head = struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    tail = struct.pack("<HHL", 0xFFFE, 0xE00D, 0) + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    nested = head * depth + (tail * depth if rng.random() < 0.5 else b"")
    place = _element(raw, rng)
    raw[place:place] = nested
    return bytes(raw)


def change_vr(raw: bytearray, rng: np.random.Generator) -> bytes:
    place = _element(raw, rng) + 4
    raw[place : place + 2] = [b"UN", b"SQ", b"OB", b"DS", b"US", b"FD", b"XX", b"\0\0"][int(rng.integers(0, 8))]
    return bytes(raw)


def change_value(raw: bytearray, rng: np.random.Generator) -> bytes:
    """Words and odd numbers where numbers are expected."""
    place = _element(raw, rng) + 8
    words = [b"Nora", b"1e999", b"-nan", b"\\\\\\\\", b"\xff\xfe\0\1", b"9" * 40, b"0", b"1\\2\\3"]
    word = words[int(rng.integers(0, len(words)))]
    raw[place : place + len(word)] = word
    return bytes(raw)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header_bits, truncate, cut_out, repeat_some, lie_about_length, lie_about_size, nest_deeply,
    change_vr, change_value,
)  # fmt: skip


def _element(raw: bytearray, rng: np.random.Generator) -> int:
    """Where some element of an explicit dataset begins, roughly: at two capital letters."""
    places = [
        place - 4
        for place in range(136, min(len(raw), 4000))
        if 65 <= raw[place] <= 90 and 65 <= raw[place + 1 if place + 1 < len(raw) else place] <= 90
    ]
    return int(rng.choice(places)) if places else int(rng.integers(0, max(len(raw) - 12, 1)))


def mutant(number: int, folder: Path) -> tuple[Path, str]:
    """Write mutant `number` into the empty `folder`: one file, or a series of which one is mutated; and what was done."""
    rng = np.random.default_rng([number, 20261120])
    kinds = sorted(seeds())
    kind = kinds[int(rng.integers(0, len(kinds)))]
    done = MUTATIONS[int(rng.integers(0, len(MUTATIONS)))]
    files = [*seeds()[kind]]
    which = int(rng.integers(0, len(files)))
    packed = kind.endswith(".gz") and rng.random() < 0.7
    raw = bytearray(gzip.decompress(files[which]) if packed else files[which])
    changed = done(raw, rng)
    files[which] = gzip.compress(changed, 1) if packed else changed
    folder.mkdir(parents=True, exist_ok=True)
    for at, content in enumerate(files):
        (folder / (f"{at}-{kind}" if len(files) > 1 else kind)).write_bytes(content)
    return (folder if kind.endswith(".dcm") else folder / kind), f"{kind} {done.__name__}"
