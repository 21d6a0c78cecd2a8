"""YAML 1.2 in, with the line of every key.

PyYAML follows YAML 1.1, in which `no` is False, `012` is ten and `1e-4` is a string. Here scalars follow the core schema
of YAML 1.2 (section 10.3), duplicate keys are mistakes, and each key's line is kept for error messages.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

_CORE = (
    (re.compile(r"(?:null|Null|NULL|~|)\Z"), lambda text: None),
    (re.compile(r"(?:true|True|TRUE)\Z"), lambda text: True),
    (re.compile(r"(?:false|False|FALSE)\Z"), lambda text: False),
    (re.compile(r"[-+]?[0-9]+\Z"), int),
    (re.compile(r"0o[0-7]+\Z"), lambda text: int(text[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+\Z"), lambda text: int(text[2:], 16)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z"), lambda text: float(text.replace(".", ""))),
    (re.compile(r"\.(?:nan|NaN|NAN)\Z"), lambda text: float("nan")),
)


class YamlError(ValueError):
    """The text is not YAML, or says one thing twice; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        self.line = line
        super().__init__(message)


def parse(text: str) -> tuple[Any, Lines]:
    """The value of one YAML document, and the line of each key path in it. Raises YamlError."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise YamlError(1, f"not valid YAML: {error}") from None
    lines: Lines = {}
    return (None if node is None else _build(node, (), lines)), lines


def _build(node: yaml.Node, path: KeyPath, lines: Lines) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(line, "expected a plain word as key")
            key = str(key_node.value)
            if key in mapping:
                raise YamlError(line, f"{key} is given twice; keep one")
            mapping[key] = _build(value_node, (*path, key), lines)
            lines[(*path, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, place), lines) for place, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: Any) -> Any:
    text: str = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    for pattern, convert in _CORE:
        if pattern.match(text):
            return convert(text)
    return text
