"""JPEG lossless decoded by gdcm in a process of its own: on damaged images gdcm ends the process that it runs in.

Nothing else that is free decodes JPEG lossless at this speed. The helper process starts with the first such image, serves all
that follow, and is replaced when it dies or takes too long; to the caller either is an image that cannot be decoded.
"""

from __future__ import annotations

import atexit
import math
import os
import selectors
import struct
import subprocess
import sys
from functools import cache
from threading import Lock
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

TIME_LIMIT_S = 60.0
"""For one image of the largest size; usual ones take milliseconds."""
_REQUEST = struct.Struct("<7IQ")
_ANSWER = struct.Struct("<Q")


class Image(NamedTuple):
    """What a decoder must know beside the codestream."""

    process: int
    """57 or 70, the end of the transfer syntax's UID."""
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: int
    samples: int = 1
    """Per pixel: 1, or 3 for colours."""


class NotDecodedError(RuntimeError):
    """The image cannot be decoded: the decoder said so, or the helper process died over it or took too long."""


def decode_apart(codestream: bytes, image: Image) -> NDArray:
    """Stored values [rows, columns] of one image, [rows, columns, 3] in colour. Raises NotDecodedError."""
    helper = _helper(os.getpid())
    with helper.lock:
        return helper.decode(codestream, image)


class _Helper:
    def __init__(self) -> None:
        self.lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def decode(self, codestream: bytes, image: Image) -> NDArray:
        process = self._running()
        kind = np.dtype(f"<{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
        shape = (image.rows, image.columns, image.samples)[: 3 if image.samples > 1 else 2]
        count = math.prod(shape) * kind.itemsize
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(_REQUEST.pack(*image, len(codestream)))
            process.stdin.write(codestream)
            process.stdin.flush()
            (length,) = _ANSWER.unpack(_received(process.stdout, _ANSWER.size))
            if length == 0:
                raise NotDecodedError
            if length != count:
                raise EOFError
            return np.frombuffer(_received(process.stdout, count), kind).reshape(shape)
        except (OSError, EOFError):
            self.stop()
            raise NotDecodedError from None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:  # what was not yet sent has nowhere to go
                        continue
            self._process = None


@cache
def _helper(process_id: int) -> _Helper:
    """One for each process: after a fork two would talk to the same helper."""
    return _Helper()


def _received(pipe: IO[bytes], count: int) -> bytes:
    """Exactly `count` bytes. Raises EOFError where the helper died, TimeoutError (an OSError) where it takes too long."""
    number = pipe.fileno()
    parts = []
    with selectors.DefaultSelector() as selector:
        selector.register(number, selectors.EVENT_READ)
        while count > 0:
            if not selector.select(TIME_LIMIT_S):
                raise TimeoutError
            part = os.read(number, count)
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
    return b"".join(parts)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The helper's side: decode until there are no more requests."""
    while len(head := requests.read(_REQUEST.size)) == _REQUEST.size:
        *fields, length = _REQUEST.unpack(head)
        decoded = _by_gdcm(requests.read(length), Image(*fields))
        answers.write(_ANSWER.pack(len(decoded)) + decoded)
        answers.flush()


def _by_gdcm(codestream: bytes, image: Image) -> bytes:
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.pixels.common import PhotometricInterpretation
    from pydicom.uid import UID

    colours = PhotometricInterpretation.RGB  # raw values: in which colours they are does not matter here
    decoder = get_decoder(UID(f"1.2.840.10008.1.2.4.{image.process}"))
    try:
        decoded, _ = decoder.as_array(
            encapsulate([codestream], has_bot=False),
            index=0,
            raw=True,
            decoding_plugin="gdcm",
            rows=image.rows,
            columns=image.columns,
            number_of_frames=1,
            samples_per_pixel=image.samples,
            photometric_interpretation=colours if image.samples > 1 else PhotometricInterpretation.MONOCHROME2,
            planar_configuration=0,
            pixel_representation=image.signed,
            bits_allocated=image.bits_allocated,
            bits_stored=image.bits_stored,
            pixel_keyword="PixelData",
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, MemoryError):
        return b""
    kind = np.dtype(f"<{'i' if image.signed else 'u'}{image.bits_allocated // 8}")
    return np.ascontiguousarray(decoded, kind).tobytes()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
