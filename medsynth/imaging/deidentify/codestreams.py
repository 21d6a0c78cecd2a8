"""What can hide in compressed images beside pixels: comments, application data, bytes after the end.

Found by walking the markers of each format, and reported as spans of bytes to be zeroed in place: lengths and offsets stay
right, and no pixel is encoded again. JPEG: ISO 10918-1 annex B. JPEG-LS: ISO 14495-1 annex C. JPEG 2000: ISO 15444-1
annexes A and I. RLE: PS3.5 annex G.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from rle.rle import decode_segment  # type: ignore[import-not-found]

from medsynth.errors import UnreadableError

Span = tuple[int, int]
"""From, to: bytes of a frame, the end not included."""
Walk = Callable[[bytes, int], tuple[int, list[Span]]]
"""A frame and its decoded bytes per plane in; where its code ends, and what to zero before that, out."""

ENCODER_MARKS = re.compile(
    rb"(?:Kakadu-[\w.]{1,12}|Created by (?:GDCM/)?OpenJPEG version [\d.]{1,8}|Creator: JasPer Version [\d.]{1,14}|"
    rb"Kdu-Layer-Info: log_2\{Delta-D\((?:squared-error|MSE)\)/(?:\[2\^16\*)?Delta-L\(bytes\)\]?\}, L\(bytes\)\n"
    rb"(?: *-?\d{1,3}\.\d, +\d\.\de[+-]\d{2}\n)*)?\0*"
)
"""Comments that encoders write by themselves; they stay, so that most images keep every byte."""
JPEG_NEXT = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
"""In entropy-coded data: a marker other than a stuffed byte and a restart (ISO 10918-1 B.1.1.5)."""
JPEG_LS_NEXT = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]", re.DOTALL)
EOI, SOS, COMMENT = 0xD9, 0xDA, 0xFE
SPIFF_END = b"\0\0\0\1\xff\xd8"
"""The last entry of a SPIFF directory holds the start of the image itself (ISO 14495-1 annex F)."""
J2K_START, J2K_COMMENT, J2K_TILE, J2K_DATA, J2K_END = b"\xff\x4f", 0x64, 0x90, 0x93, b"\xff\xd9"
JP2_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
JP2_KEPT = {b"jP  ", b"ftyp", b"jp2h"}
RLE_HEADER_BYTES, RLE_MOST_SEGMENTS = 64, 15


class Incomplete(Exception):
    """The code goes on after the bytes at hand."""


def _damaged() -> UnreadableError:
    return UnreadableError("expected a whole compressed image, found damaged code; export the file again")


def walk_jpeg(frame: bytes, plane_bytes: int) -> tuple[int, list[Span]]:
    """JPEG and JPEG-LS."""
    if frame[:2] != b"\xff\xd8":
        raise _damaged()
    spans: list[Span] = []
    place, following = 2, JPEG_NEXT
    while True:
        code, place = _marker(frame, place)
        if code == EOI:
            return place, spans
        end = place + _length(frame, place)
        spans += [span for span in _extras(code, frame, place + 2, end) if any(frame[slice(*span)])]
        if code == 0xF7:
            following = JPEG_LS_NEXT
        place = end
        if code == SOS:
            found = following.search(frame, place)
            if found is None:
                raise Incomplete
            place = found.start()


def _marker(frame: bytes, place: int) -> tuple[int, int]:
    """The code of the marker at `place`, and where it ends; fill bytes before it are skipped (B.1.1.2)."""
    if place >= len(frame):
        raise Incomplete
    if frame[place] != 0xFF:
        raise _damaged()
    while place < len(frame) and frame[place] == 0xFF:
        place += 1
    if place >= len(frame):
        raise Incomplete
    return frame[place], place + 1


def _length(frame: bytes, place: int) -> int:
    if place + 2 > len(frame):
        raise Incomplete
    length = int.from_bytes(frame[place : place + 2], "big")
    if length < 2:
        raise _damaged()
    if place + length > len(frame):
        raise Incomplete
    return length


def _extras(code: int, frame: bytes, begin: int, end: int) -> Iterator[Span]:
    """What a marker segment holds that decoding does not need."""
    content = frame[begin:end]
    if code == COMMENT and not ENCODER_MARKS.fullmatch(content):
        yield begin, end
    if 0xE0 <= code <= 0xEF:
        yield begin + _needed(code & 0xF, content), end


def _needed(number: int, content: bytes) -> int:
    """How many of the first bytes of an application segment say how to decode: those of JFIF without its thumbnail, of
    Adobe's colour transform, of SPIFF's header and end mark, and of a JPEG-LS colour transform."""
    for application, mark, length in ((0, b"JFIF\0", 14), (14, b"Adobe", 12), (8, b"SPIFF\0", 30), (8, b"mrfx", 5)):
        if number == application and content.startswith(mark):
            return min(length, len(content))
    return len(SPIFF_END) if number == 8 and content == SPIFF_END else 0


def walk_j2k(frame: bytes, plane_bytes: int) -> tuple[int, list[Span]]:
    """JPEG 2000 and HTJ2K: a bare codestream, or one in a JP2 file, which DICOM does not ask for but some write."""
    if not frame.startswith(JP2_SIGNATURE):
        return _walk_codestream(frame, 0)
    spans: list[Span] = []
    place = 0
    while True:
        if place + 8 > len(frame):
            raise Incomplete
        size, kind, head = int.from_bytes(frame[place : place + 4], "big"), frame[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(frame[place + 8 : place + 16], "big"), 16
        if kind == b"jp2c":
            end, found = _walk_codestream(frame, place + head)
            return end, spans + found
        if size < head:
            raise _damaged()
        if place + size > len(frame):
            raise Incomplete
        if kind not in JP2_KEPT and any(frame[place + head : place + size]):
            spans.append((place + head, place + size))
        place += size


def _walk_codestream(frame: bytes, start: int) -> tuple[int, list[Span]]:
    if frame[start : start + 2] != J2K_START:
        raise _damaged()
    spans: list[Span] = []
    place, tile = start + 2, -1
    tile_bytes = 0
    while True:
        if tile < 0 and frame[place : place + 2] == J2K_END:
            return place + 2, spans
        code, place = _marker(frame, place)
        if code == J2K_DATA and tile >= 0:
            if tile_bytes == 0:  # the last tile-part may go on to the end of the code (A.4.2)
                found = frame.find(J2K_END, place)
                if found < 0:
                    raise Incomplete
                place = found
            else:
                place = tile + tile_bytes
                if place > len(frame) - 2:
                    raise Incomplete
            tile = -1
            continue
        end = place + _length(frame, place)
        if code == J2K_TILE:
            tile, tile_bytes = place - 2, int.from_bytes(frame[place + 4 : place + 8], "big")
        comment = frame[place + 4 : end]
        if code == J2K_COMMENT and any(comment) and not ENCODER_MARKS.fullmatch(comment):
            spans.append((place + 4, end))
        place = end


def walk_rle(frame: bytes, plane_bytes: int) -> tuple[int, list[Span]]:
    """RLE: every segment decodes to one plane of `plane_bytes`; what follows in it is not code."""
    numbers = [int.from_bytes(frame[place : place + 4], "little") for place in range(0, RLE_HEADER_BYTES, 4)]
    count, offsets = numbers[0], numbers[1 : numbers[0] + 1]
    if len(frame) < RLE_HEADER_BYTES or not 1 <= count <= RLE_MOST_SEGMENTS or offsets[0] != RLE_HEADER_BYTES:
        raise _damaged()
    spans = [(4 * (count + 1), RLE_HEADER_BYTES)] if any(numbers[count + 1 :]) else []
    ends = [*offsets[1:], len(frame)]
    last = RLE_HEADER_BYTES
    for begin, end in zip(offsets, ends, strict=True):
        if not begin < end <= len(frame):
            raise _damaged()
        last = _segment_end(frame, begin, end, plane_bytes)
        if any(frame[last:end]) and end != len(frame):
            spans.append((last, end))
    return last, spans


def _segment_end(frame: bytes, begin: int, end: int, plane_bytes: int) -> int:
    """Where a segment's code ends. Most end where they should, which the fast decoder can tell."""
    segment = frame[begin:end]
    try:
        whole = len(decode_segment(segment)) == plane_bytes
    except ValueError:
        whole = False  # bytes after the code that are no code
    if whole:
        return end
    place = made = 0
    while made < plane_bytes:
        if place >= len(segment):
            raise _damaged()
        head = segment[place]
        if head == 128:
            place += 1
        elif head < 128:
            place, made = place + head + 2, made + head + 1
        else:
            place, made = place + 2, made + 257 - head
    if place > len(segment):
        raise _damaged()
    return begin + place
