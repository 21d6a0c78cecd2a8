"""pydicom and its decoders quote header values in warnings and log lines; nothing of that may reach a console or a log file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import pydicom.config

LOGGERS = ("pydicom", "openjpeg", "pylibjpeg")
"""A filter on these would not do: those of a logger do not see what its children pass on."""


class _Silence:
    """What is switched for the whole process, on with the first who asks for it and off after the last.

    Warnings and log levels belong to the process and not to a thread: were each `with` to put back what it had found, two
    threads that leave in the wrong order would leave the silence switched off, or on.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._holders = 0
        self._undo = ExitStack()

    def enter(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._switch_on()

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._undo.close()

    def _switch_on(self) -> None:
        self._undo.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger in map(logging.getLogger, LOGGERS):
            self._undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL + 1)
        settings = pydicom.config.settings
        self._undo.callback(setattr, settings, "reading_validation_mode", settings.reading_validation_mode)
        settings.reading_validation_mode = pydicom.config.IGNORE


_SILENCE = _Silence()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom and its decoders silent while headers with identities are read.

    Nothing is lost: what a warning would be about is checked here and refused in words of ours.
    """
    _SILENCE.enter()
    try:
        yield
    finally:
        _SILENCE.leave()
