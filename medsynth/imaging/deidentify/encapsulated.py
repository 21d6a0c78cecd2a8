"""Encapsulated pixel data (PS3.5 A.4): split into frames, and rid of all that is no part of a frame's code."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID, RLELossless

from medsynth.errors import PrivacyError, UnreadableError
from medsynth.imaging.deidentify.codestreams import Incomplete, Span, Walk, walk_j2k, walk_jpeg, walk_rle

ITEM, DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
JPEG_PREFIXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81))
J2K_PREFIXES = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 92, 93, 201, 202, 203))

PADDING_BYTES = 1
"""What makes a frame's length even, be it zero or not."""


@dataclass(frozen=True)
class Cleaned:
    """Encapsulated pixel data after cleaning."""

    value: bytes
    changed: bool
    touches_code: bool
    """Whether bytes between the first and the last of a frame's code were zeroed: decoding must still give the same."""
    offsets: tuple[int, ...]
    """Where each frame's first item begins, counted from the end of the basic offset table."""
    lengths: tuple[int, ...]
    """Bytes of code of each frame; its item without padding (PS3.3 C.7.6.3.1.9)."""


def clean_encapsulated(value: bytes, syntax: UID, frames: int, plane_bytes: int) -> Cleaned:
    """`value` without what is no code: comments and application data zeroed, bytes after a frame's end zeroed, items
    after the last frame and a basic offset table that lies cut off. Bytes of an image without such extras stay.

    plane_bytes: rows times columns. Raises PrivacyError for a compression that cannot be searched, UnreadableError for a
    damaged one.
    """
    walk = _walk_for(syntax)
    table, fragments = _items(value)
    data = bytearray(value)
    groups, streams = _frames(data, fragments, _starts(table, fragments, frames), frames, walk, plane_bytes)
    touched = False
    for group, (end, spans) in zip(groups, streams, strict=True):
        touched = touched or bool(spans)
        size = sum(stop - begin for begin, stop in group)
        for span in (*spans, *([(end, size)] if size - end > PADDING_BYTES else [])):
            _zero(data, group, span)
    base = fragments[0][0] - 8
    finish = groups[-1][-1][1]
    offsets = tuple(group[0][0] - 8 - base for group in groups)
    kept_table = table if _is_table(table, offsets) else b""
    head = ITEM + struct.pack("<I", len(kept_table)) + kept_table
    result = head + bytes(data[base:finish])
    # A sequence delimiter inside the value belongs to the way it was made; it says nothing.
    changed = result != value and result + DELIMITER + bytes(4) != value
    lengths = tuple(sum(stop - begin for begin, stop in group) for group in groups)
    return Cleaned(result if changed else value, changed, touched, offsets, lengths)


def _walk_for(syntax: UID) -> Walk:
    if syntax == RLELossless:
        return walk_rle
    if str(syntax) in JPEG_PREFIXES:
        return walk_jpeg
    if str(syntax) in J2K_PREFIXES:
        return walk_j2k
    raise PrivacyError(
        "expected JPEG, JPEG-LS, JPEG 2000, RLE or no compression, found another, in which text could hide; "
        "export the file uncompressed"
    )


def _damaged() -> UnreadableError:
    return UnreadableError("expected whole encapsulated pixel data, found damaged items; export the file again")


def _items(value: bytes) -> tuple[bytes, list[Span]]:
    """The basic offset table, and from where to where each fragment's bytes lie."""
    spans: list[Span] = []
    place = 0
    while place + 8 <= len(value):
        tag, length = value[place : place + 4], int.from_bytes(value[place + 4 : place + 8], "little")
        if tag == DELIMITER:
            break
        if tag != ITEM or place + 8 + length > len(value):
            raise _damaged()
        spans.append((place + 8, place + 8 + length))
        place += 8 + length
    if len(spans) < 2:
        raise _damaged()
    return value[slice(*spans[0])], spans[1:]


def _is_table(table: bytes, offsets: Sequence[int]) -> bool:
    return table == struct.pack(f"<{len(offsets)}I", *(offset & 0xFFFFFFFF for offset in offsets))


def _starts(table: bytes, fragments: list[Span], frames: int) -> list[int] | None:
    """Which fragment begins each frame, from a basic offset table that is true; None without one."""
    if len(table) != 4 * frames:
        return None
    base = fragments[0][0] - 8
    places = {begin - 8 - base: number for number, (begin, _) in enumerate(fragments)}
    starts = [places.get(offset, -1) for offset in struct.unpack(f"<{frames}I", table)]
    return starts if starts[0] == 0 and starts == sorted(set(starts)) else None


def _frames(
    data: bytearray, fragments: list[Span], starts: list[int] | None, frames: int, walk: Walk, plane_bytes: int
) -> tuple[list[list[Span]], list[tuple[int, list[Span]]]]:
    """The fragments of each frame, and what its walk found: frames end where their code does."""
    groups, streams = [], []
    following = 0
    for number in range(frames):
        if starts is not None:
            following = starts[number]
        limit = len(fragments) if starts is None or number + 1 == frames else starts[number + 1]
        for last in range(following + 1, limit + 1):
            group = fragments[following:last]
            code = b"".join(bytes(data[begin:end]) for begin, end in group)
            try:
                streams.append(walk(code, plane_bytes))
            except Incomplete:
                continue
            groups.append(group)
            following = last
            break
        else:
            raise _damaged()
    return groups, streams


def _zero(data: bytearray, group: list[Span], span: Span) -> None:
    """Zero a span that is counted along the fragments of one frame."""
    passed = 0
    for begin, end in group:
        low, high = max(span[0] - passed, 0), min(span[1] - passed, end - begin)
        if low < high:
            data[begin + low : begin + high] = bytes(high - low)
        passed += end - begin
