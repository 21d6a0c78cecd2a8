"""What an option kept on purpose, so that the search of the result does not take it for a leak."""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medsynth.imaging.deidentify.elements import Element
from medsynth.imaging.deidentify.table import Rules

BY_OPTION = {"A", "M", "R", "RCODE", "W"}
"""Actions of options that leave text. What they left in the result is what they were asked for."""


def retained_texts(clean: Dataset, rules: Rules) -> Iterator[str]:
    """Texts in a de-identified dataset that stand there because of an option, at any depth, in lower case."""
    for tag, element in clean.items():
        rule = rules.get(int(tag))
        if rule is None:
            if tag.is_private:
                yield from _texts(clean, tag, element)
        elif rule.action == "RCODE":
            for item in clean[tag].value:
                for part, kept in item.items():
                    yield from _texts(item, part, kept)
        elif rule.action in BY_OPTION:
            yield from _texts(clean, tag, element)
        elif rule.action == "S" and isinstance(clean[tag].value, Sequence):
            for item in clean[tag].value:
                yield from retained_texts(item, rule.items or {})


def _texts(dataset: Dataset, tag: int, element: Element) -> Iterator[str]:
    value = element.value
    if isinstance(value, bytes) and value.isascii():
        text = value.decode("ascii")
    elif isinstance(value, bytes):
        text = value.decode("utf-8", "ignore")
    else:
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue | list | tuple) else str(dataset[tag].value)
    yield from (part.strip(" \0").lower() for part in text.split("\\") if part.strip(" \0"))
