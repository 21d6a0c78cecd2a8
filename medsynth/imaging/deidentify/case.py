"""What an action must know beside the element and its rule: whose header it is, and how it is written."""

from __future__ import annotations

import re

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medsynth.imaging.deidentify.elements import ASCII, Element, Encoding, ascii_text, encoded_text, texts
from medsynth.imaging.deidentify.keys import SecretKey

CHARACTER_SET = 0x00080005
UNICODE, UNICODE_TERM = "utf8", "ISO_IR 192"
"""pydicom's and DICOM's name of UTF-8."""


class Case:
    """One header at work. Items of its sequences are cases of their own with the same `root`."""

    __slots__ = ("_names", "charset", "dataset", "encoding", "key", "root", "shift_days")

    def __init__(
        self, dataset: Dataset, encoding: Encoding, key: SecretKey, *, shift_days: int = 0, charset: str = ASCII
    ) -> None:
        self.dataset = dataset
        self.encoding = encoding
        self.key = key
        self.shift_days = shift_days
        """Whole weeks by which this patient's dates move."""
        self.charset = charset
        """Of the result: ASCII, or UTF-8 where an option may keep words of a source that declares more than ASCII."""
        self.root = self
        self._names: frozenset[str] | None = None

    def inside(self, item: Dataset, encoding: Encoding) -> Case:
        """The case of one item of a sequence."""
        case = Case(item, encoding, self.key, shift_days=self.shift_days, charset=self.charset)
        case.root = self.root
        return case

    @property
    def names(self) -> frozenset[str]:
        """Lower-case words of all person names at the top level of the header and in its short sequences."""
        root = self.root
        if root._names is None:
            root._names = frozenset(_words_of_names(root.dataset))
        return root._names

    def text_of(self, element: Element) -> list[str] | None:
        """The values of a text element in its own script; None if they cannot be decoded."""
        value = element.value
        if not (isinstance(value, bytes) and (not value.isascii() or b"\x1b" in value)):
            plain = texts(element)
            if plain is not None or isinstance(value, bytes):
                return plain
            return [part.strip(" \0") for part in str(value).split("\\")]
        if self.charset == ASCII:
            return None
        decoded = self.dataset[element.tag].value
        values = [decoded] if isinstance(decoded, str) else list(decoded or [])
        return [str(part).strip(" \0") for part in values]


def charset_of_result(source: Dataset) -> str:
    """UTF-8 where the source declares a character set beyond ASCII; text in another one is written anew."""
    return ASCII if ascii_text(source, CHARACTER_SET) in {"", "ISO_IR 6"} else UNICODE


def character_set_element(encoding: Encoding) -> Element:
    """SpecificCharacterSet of a result in UTF-8."""
    return encoded_text(CHARACTER_SET, "CS", [UNICODE_TERM], encoding)


MOST_ITEMS = 8
"""Items up to which a sequence is searched for names; longer ones describe frames, not people."""


def _words_of_names(dataset: Dataset, depth: int = 3) -> set[str]:
    words: set[str] = set()
    for tag, element in dataset.items():
        vr = element.VR or (dictionary_VR(tag) if dictionary_has_tag(tag) else None)
        if vr == "PN":
            words.update(word.lower() for word in re.findall(r"\w+", str(dataset[tag].value)))
        elif vr == "SQ" and depth and _may_hold_names(element) and isinstance(dataset[tag].value, Sequence):
            for item in dataset[tag].value[:MOST_ITEMS]:
                words |= _words_of_names(item, depth - 1)
    return words


def _may_hold_names(element: Element) -> bool:
    """Whether it is worth decoding a sequence: one that is still bytes in explicit VR shows its VRs."""
    return not (
        isinstance(element, RawDataElement) and not element.is_implicit_VR and b"PN" not in (element.value or b"")
    )
