"""Presentation contexts: which kinds of objects, in which encodings, are put to a PACS (PS3.8 9.3.2.2)."""

from __future__ import annotations

from collections.abc import Iterable

from pydicom import uid

from medsynth.imaging.deidentify.table import load_table
from medsynth.pacs.faults import needs_extra

try:
    from pynetdicom.presentation import PresentationContext, build_context
    from pynetdicom.sop_class import _STORAGE_CLASSES
except ModuleNotFoundError:
    raise needs_extra("pynetdicom") from None

PLAIN = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)
"""What every archive speaks, in the order in which we like it."""

AS_STORED = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
    uid.RLELossless,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
"""Encodings in which a scan may lie in an archive; offered one by one, so that it need not be converted."""

MOST_CONTEXTS = 128
"""In one association: their numbers are odd and below 256 (PS3.8 table 9-13)."""


def for_arrival(sop_classes: Iterable[str], most: int) -> list[PresentationContext]:
    """At most `most` contexts in which instances may come to us.

    Each class in every encoding; where the archive did not say which classes it holds (an empty text among them), also all
    other kinds of objects in plain encodings: what comes is refused here, and counted, rather than missing.
    """
    said = set(sop_classes)
    asked, unknown = sorted(said - {""}), "" in said
    known = load_table().sop_classes
    classes = list(dict.fromkeys([*asked, *(sorted(known) if unknown else ())]))
    found = [build_context(one, [syntax]) for one in classes for syntax in (*PLAIN, *AS_STORED)]
    if unknown:
        found += [build_context(one, list(PLAIN)) for one in sorted(_STORAGE_CLASSES.values()) if one not in classes]
    return found[:most]


def for_sending(kinds: Iterable[tuple[str, str]]) -> list[PresentationContext]:
    """A context for each SOP class and transfer syntax to be sent; uncompressed ones may be sent in another plain one."""
    found = []
    for sop_class, syntax in sorted(set(kinds)):
        others = [one for one in PLAIN if one != syntax] if syntax in PLAIN else []
        found.append(build_context(sop_class, [syntax]))
        found += [build_context(sop_class, [one]) for one in others]
    return list({(one.abstract_syntax, one.transfer_syntax[0]): one for one in found}.values())


def takes(accepted: Iterable[PresentationContext], sop_class: str, syntax: str) -> bool:
    """Whether an instance can be sent over an association with these contexts."""
    wanted = PLAIN if syntax in PLAIN else (syntax,)
    return any(one.abstract_syntax == sop_class and one.transfer_syntax[0] in wanted for one in accepted)
