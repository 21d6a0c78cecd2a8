"""Guidance as one line of text, and back."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from medsynth.config.generate import Sampling

TEXTS = [
    ({}, "1"),
    ({"guidance": 2.0}, "2"),
    ({"guidance": 0.1 + 0.2}, "0.30000000000000004"),
    ({"guidance": {}}, ""),
    ({"guidance": {"size": 1e-7, "class": 4.0}}, "class=4 size=1e-07"),
    ({"guidance": 1.5, "guidance_interval": (0.2, 0.8)}, "1.5; interval 0.2 0.8"),
    ({"guidance": 1.5, "guidance_interval": (0.0, 1 / 3)}, "1.5; interval 0 0.3333333333333333"),
    ({"guidance": {}, "guidance_rescale": 0.5}, "; rescale 0.5"),
    (
        {"guidance": {"interval": 3.0}, "guidance_interval": (0.2, 1.0), "guidance_rescale": 1.0},
        "interval=3; interval 0.2 1; rescale 1",
    ),
]


@pytest.mark.parametrize(("settings", "text"), TEXTS)
def test_guidance_is_told_exactly_and_read_back(settings: dict[str, object], text: str) -> None:
    sampling = Sampling.model_validate({"sampler": "ddim", "evaluations": 7, **settings})
    assert sampling.guidance_text == text
    assert Sampling.from_texts("ddim", "7", text) == sampling


@pytest.mark.parametrize(
    ("sampler", "evaluations", "guidance"),
    [
        ("dim", "7", "1"),
        ("ddim", "seven", "1"),
        ("ddim", "7", "much"),
        ("ddim", "7", "1 2"),
        ("ddim", "7", "=2"),
        ("ddim", "7", "-1"),
        ("ddim", "7", "1; interval"),
        ("ddim", "7", "1; interval 0.5"),
        ("ddim", "7", "1; interval 0.8 0.2"),
        ("ddim", "7", "1; rescale 2"),
        ("ddim", "7", "1; scale 2"),
        ("ddim", "7", "1;"),
    ],
)
def test_other_texts_are_refused(sampler: str, evaluations: str, guidance: str) -> None:
    with pytest.raises(ValueError):
        Sampling.from_texts(sampler, evaluations, guidance)


def test_an_interval_rises() -> None:
    with pytest.raises(ValidationError, match="low below high"):
        Sampling(guidance_interval=(0.8, 0.2))
