"""Which mirrored variants there are, and which conditions forbid them."""

import pytest
from pydantic import ValidationError

from medsynth.config.augment import Augment, contradicted
from medsynth.config.base import plain
from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.config.pipeline import Pipeline

SIDE = CategoryCondition(kind="category", values=("Left", "Right"))


def test_mirrored_are_all_sets_of_the_axes_and_the_scan_itself_comes_first():
    assert Augment().mirrored() == [()]
    assert Augment(mirror=("x",)).mirrored() == [(), ("x",)]
    assert Augment(mirror=("z", "x")).mirrored() == [(), ("x",), ("z",), ("x", "z")]
    assert Augment(mirror=("x", "x")).mirrored() == [(), ("x",)]


def test_without_turned_copies_settings_are_those_of_earlier_versions():
    """What is encoded already stays."""
    assert plain(Augment(mirror=("x",))) == {"mirror": ["x"]}
    assert plain(Augment(turned_copies=3)) == {"mirror": [], "turned_copies": 3}


@pytest.mark.parametrize(
    "wrong", [{"turned_copies": -1}, {"turned_copies": 1.5}, {"turn_degrees": 0}, {"turn_degrees": 90}]
)
def test_turns_that_no_scan_could_have_are_refused(wrong):
    with pytest.raises(ValidationError):
        Augment(**wrong)


@pytest.mark.parametrize(
    ("axis", "name", "condition"),
    [
        ("x", "kidney", SIDE),
        ("x", "laterality", CategoryCondition(kind="category", values=("1", "2"))),
        ("x", "lungs", MaskCondition(kind="mask", labels={"left_lung": 1, "right_lung": 2})),
        ("x", "lungs", MaskCondition(kind="mask", labels={"LeftLung": 1, "RIGHT": 2})),
        ("x", "hand", CategoryCondition(kind="category", values=("L", "R"))),
        ("y", "hippocampus", MaskCondition(kind="mask", labels={"anterior": 1, "posterior": 2})),
        ("z", "lobe", CategoryCondition(kind="category", values=("upper lobe", "lower lobe"))),
    ],
)
def test_what_a_mirror_would_make_false_is_told(axis, name, condition):
    (sentence,) = contradicted(Augment(mirror=(axis,)), {name: condition})
    assert f"condition {name}" in sentence
    assert "steer: false" in sentence
    others = tuple({"x", "y", "z"} - {axis})
    assert contradicted(Augment(mirror=others), {name: condition}) == []
    assert contradicted(Augment(mirror=(axis,)), {name: condition.model_copy(update={"steer": False})}) == []


def test_what_has_no_side_may_be_mirrored():
    conditions = {
        "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
        "lymph_node": MaskCondition(kind="mask", labels={"node": 1}),
        "diameter_mm": NumberCondition(kind="number", range=(1.0, 9.0), unit="mm"),
    }
    assert contradicted(Augment(mirror=("x", "y", "z")), conditions) == []


def test_a_pipeline_that_contradicts_itself_is_refused():
    settings = {"name": "kidneys", "cohort": {"kind": "phantom", "patients": 4}, "conditions": {"kidney": SIDE}}
    Pipeline(**settings)
    with pytest.raises(ValueError, match="x swaps what the condition kidney tells apart \\(left, right\\)"):
        Pipeline(**settings, denoiser={"augment": {"mirror": ("x",)}})
