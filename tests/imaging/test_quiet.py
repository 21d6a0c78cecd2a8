"""Silence while headers are read, also among threads."""

from __future__ import annotations

import logging
import warnings

import pydicom
import pytest

from medsynth.imaging.quiet import quiet_pydicom


def speaks(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether a warning or a log line of a decoder gets through."""
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("Invalid value for VR DA: '19610203x'", UserWarning, stacklevel=1)
    logging.getLogger("pydicom.pixels.decoders.base").error("cannot decode for ORIGINAL^ANNA")
    return bool(caught) or bool(caplog.records)


def test_loggers_below_pydicoms_own_and_warnings_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    before = (pydicom.config.settings.reading_validation_mode, list(warnings.filters))
    with quiet_pydicom():
        assert not speaks(caplog)
    assert (pydicom.config.settings.reading_validation_mode, list(warnings.filters)) == before
    logging.getLogger("pydicom.pixels.decoders.base").error("said")
    assert caplog.records


def test_it_lasts_until_the_last_one_leaves_in_whatever_order(caplog: pytest.LogCaptureFixture) -> None:
    before = (pydicom.config.settings.reading_validation_mode, list(warnings.filters))
    first, second = quiet_pydicom(), quiet_pydicom()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not speaks(caplog)
    second.__exit__(None, None, None)
    assert (pydicom.config.settings.reading_validation_mode, list(warnings.filters)) == before


def test_an_error_inside_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="damaged"), quiet_pydicom():
        raise ValueError("damaged")
    logging.getLogger("pydicom").error("said")
    assert caplog.records
