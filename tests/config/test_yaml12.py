"""Scalars as YAML 1.2 says, and the line of every key."""

from __future__ import annotations

import math

import pytest

from medsynth.config.yaml12 import YamlError, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1.5e3", 1500.0), (".5", 0.5), ("-2", -2), ("012", 12), ("0o17", 15), ("0xff", 255),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("'012'", "012"), ('"true"', "true"), ("2026-11-20", "2026-11-20"), ("1:30", "1:30"), ("1_000", "1_000"),
        (".inf", math.inf),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = parse(f"key: {text}")[0]["key"]
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_kept() -> None:
    assert math.isnan(parse("key: .nan")[0]["key"])


def test_lines_are_those_of_the_keys() -> None:
    _, lines = parse("a:\n  b: 1\n  c:\n    - 2\n    - d: 3\n")
    assert lines["a",] == 1
    assert lines["a", "b"] == 2
    assert lines["a", "c", 1, "d"] == 5


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: 2\na: 3", 3), ("a: 1\nb: [1, 2", 2), ("a: 1\n  b: 2", 2), ("? [x]\n: 1", 1)]
)
def test_mistakes_name_their_line(text: str, line: int) -> None:
    with pytest.raises(YamlError) as raised:
        parse(text)
    assert raised.value.line == line
