"""The network libraries log what they carry: datasets, addresses with patient IDs in them, headers with passwords."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from medsynth.imaging.quiet import quiet_pydicom

TALKATIVE = ("pynetdicom", "dicomweb_client", "urllib3", "requests")
SILENT = logging.CRITICAL + 1


@contextmanager
def quiet_network() -> Iterator[None]:
    """Silence these libraries and pydicom, whatever level their loggers were given, in every thread."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    loggers += [
        logging.getLogger(name)
        for name in list(logging.root.manager.loggerDict)
        if name.split(".")[0] in TALKATIVE and "." in name
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(SILENT)
    try:
        with quiet_pydicom():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
