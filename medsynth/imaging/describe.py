"""What kind of scan a series is, in one word of a small set, without writing down what its header says."""

from __future__ import annotations

import re
from functools import lru_cache

IMAGE_TYPE, SERIES_DESCRIPTION, PROTOCOL_NAME = 0x00080008, 0x0008103E, 0x00181030
DESCRIPTION_TAGS = frozenset({IMAGE_TYPE, SERIES_DESCRIPTION, PROTOCOL_NAME})

CLASSES: tuple[tuple[str, frozenset[str]], ...] = (
    ("localizer", frozenset({"localizer", "localiser", "scout", "topogram", "surview", "survey", "scanogram", "loc"})),
    ("adc", frozenset({"adc", "eadc"})),
    ("dwi", frozenset({"dwi", "dti", "diff", "diffusion", "trace", "tracew", "hardi", "tensor", "fa"})),
    ("perfusion", frozenset({"perfusion", "perf", "pwi", "dsc", "dce", "asl", "ctp", "cbf", "cbv", "mtt"})),
    ("angiography", frozenset({"tof", "angio", "angiography", "angiographie", "mra", "cta", "mrv", "venography"})),
    ("susceptibility", frozenset({"swi", "swan", "susceptibility", "qsm"})),
    ("functional", frozenset({"bold", "fmri", "resting"})),
    ("flair", frozenset({"flair", "tirm", "darkfluid"})),
    ("t2star", frozenset({"t2star", "t2*", "t2s"})),
    ("t2", frozenset({"t2", "t2w"})),
    ("t1", frozenset({"t1", "t1w", "mprage", "mp2rage", "bravo", "spgr", "vibe"})),
    ("pd", frozenset({"pd", "pdw", "proton"})),
    ("projection", frozenset({"mip", "minip", "projection", "vrt"})),
    ("reformat", frozenset({"mpr", "reformat", "reformatted", "curved"})),
    ("axial", frozenset({"axial"})),
    ("derived", frozenset({"derived"})),
)
"""Class and the words that mean it, the first match from the top; words stand alone, whatever their case."""

OTHER = "other"
NAMES = (*(name for name, _ in CLASSES), OTHER)
_WORD = re.compile(r"t[12]\*|[a-z]+[0-9]?[a-z]*")


@lru_cache(1 << 12)
def description_class(*texts: bytes) -> str:
    """The class named by the words of ImageType, SeriesDescription and ProtocolName; `other` where none is."""
    words = {word for text in texts for word in _WORD.findall(text.decode("ascii", "ignore").lower())}
    return next((name for name, meaning in CLASSES if words & meaning), OTHER)
