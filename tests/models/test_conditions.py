"""Declaring, checking, withholding and encoding conditions."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.errors import ConfigError
from medsynth.models.condition_encoder import ConditionEncoder
from medsynth.models.conditions import (
    NULL_LABEL,
    TURNED,
    Declaration,
    declare,
    drop,
    encode,
    encode_turns,
    mask_name,
    never_withheld,
    random_drop,
    steering_values,
)
from medsynth.seeding import torch_generator

DECLARATION: Declaration = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [3.0, 40.0], "unit": "mm", "dropout": 0.5},
    "nodule": {"kind": "mask", "labels": {"nodule": 1, "vessel": 7}, "dropout": 0.25},
}

CPU = torch.device("cpu")
GRID = (3, 2, 4)


def masks(batch: int) -> Tensor:
    generator = torch_generator(0, "masks")
    chosen = torch.randint(0, 3, (batch, 1, 6, 4, 8), generator=generator)
    return torch.tensor([0, 1, 7], dtype=torch.uint8)[chosen]


def encoder(width: int = 12) -> ConditionEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return ConditionEncoder(DECLARATION, width, 2, 5).double()


def test_a_declaration_is_json_and_holds_what_steers() -> None:
    settings = {
        "diagnosis": CategoryCondition(kind="category", values=("benign", "malignant")),
        "diameter_mm": NumberCondition(kind="number", range=(3.0, 40.0), unit="mm", dropout=0.5),
        "sex": CategoryCondition(kind="category", values=("F", "M"), steer=False),
        "nodule": MaskCondition(kind="mask", labels={"nodule": 1, "vessel": 7}, dropout=0.25),
    }
    declaration = declare(settings)
    assert declaration == DECLARATION
    assert json.loads(json.dumps(declaration)) == declaration
    assert mask_name(declaration) == "nodule"


def test_values_become_tensors_and_absence_becomes_null() -> None:
    rows = [{"diagnosis": "malignant", "diameter_mm": 8}, {"diagnosis": None}, {"diameter_mm": math.nan}]
    encoded = encode(DECLARATION, rows, masks(3))
    assert encoded["diagnosis"].tolist() == [1, -1, -1]
    assert encoded["diagnosis"].dtype == torch.int64
    torch.testing.assert_close(
        encoded["diameter_mm"], torch.tensor([8.0, math.nan, math.nan]), equal_nan=True, rtol=0, atol=0
    )
    assert torch.equal(encoded["nodule"], masks(3))
    assert "nodule" not in encode(DECLARATION, rows)


def test_all_mistakes_are_named_with_the_nearest_right_value() -> None:
    rows = [{"diagnosis": "malignent"}, {"diameter_mm": 41.0}, {"diamter_mm": 4.0}, {"diameter_mm": "big"}]
    with pytest.raises(ConfigError) as error:
        encode(DECLARATION, rows)
    text = "\n".join(error.value.mistakes)
    assert len(error.value.mistakes) == 4
    assert "expected one of benign, malignant; found 'malignent'; did you mean 'malignant'?" in text
    assert "expected a number from 3 to 40 mm; found 41" in text
    assert "'diamter_mm' is unknown" in text
    assert "did you mean 'diameter_mm'?" in text
    assert "found 'big'" in text


@pytest.mark.parametrize("value", [True, math.inf, -math.inf, 2.999])
def test_numbers_outside_the_range_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="3 to 40 mm"):
        encode(DECLARATION, [{"diameter_mm": value}])


def test_the_ends_of_the_range_are_inside() -> None:
    assert encode(DECLARATION, [{"diameter_mm": 3}, {"diameter_mm": 40.0}])["diameter_mm"].tolist() == [3, 40]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            torch.full((1, 1, 2, 2, 2), 3, dtype=torch.uint8),
            r"0 \(background\), 1 \(nodule\), 7 \(vessel\); found \[3\]",
        ),
        (torch.zeros(2, 1, 2, 2, 2, dtype=torch.uint8), r"\[1, 1, X, Y, Z\]"),
        (torch.zeros(1, 1, 2, 2, 2), "integer masks"),
        (torch.tensor([255, 0], dtype=torch.uint8).view(1, 1, 2, 1, 1), r"found \[255\]"),
    ],
)
def test_masks_that_the_model_never_saw_are_refused(wrong: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encode(DECLARATION, [{}], wrong)


def test_a_null_mask_is_accepted_and_one_for_a_model_without_masks_is_not() -> None:
    null = torch.full((1, 1, 2, 2, 2), NULL_LABEL, dtype=torch.uint8)
    assert torch.equal(encode(DECLARATION, [{}], null)["nodule"], null)
    with pytest.raises(ConfigError, match="no mask condition"):
        encode({}, [{}], null)
    with pytest.raises(ConfigError, match="beside the values"):
        encode(DECLARATION, [{"nodule": "file.nii"}])


def test_steering_values_leaves_other_columns_out() -> None:
    row = {"diagnosis": "benign", "sex": "F", "nodule": None, "diameter_mm": 5.0}
    assert steering_values(DECLARATION, row) == {"diagnosis": "benign", "diameter_mm": 5.0}


def test_drop_sets_only_the_named_conditions_to_null() -> None:
    full = encode(DECLARATION, [{"diagnosis": "benign", "diameter_mm": 9.0}] * 2, masks(2))
    dropped = drop(full, ["diagnosis", "nodule"])
    assert dropped["diagnosis"].tolist() == [-1, -1]
    assert dropped["nodule"].eq(NULL_LABEL).all()
    assert torch.equal(dropped["diameter_mm"], full["diameter_mm"])
    assert drop(full, ["diameter_mm"])["diameter_mm"].isnan().all()
    assert full["diagnosis"].tolist() == [0, 0]


def test_random_drop_withholds_the_declared_shares_alone_and_together() -> None:
    batch = 20_000
    full = {
        "diagnosis": torch.ones(batch, dtype=torch.int64),
        "diameter_mm": torch.full((batch,), 9.0),
        "nodule": torch.ones(batch, 1, 1, 1, 1, dtype=torch.uint8),
    }
    dropped = random_drop(DECLARATION, full, torch_generator(3, "drop"))
    gone = [dropped["diagnosis"] == -1, dropped["diameter_mm"].isnan(), dropped["nodule"].flatten() == NULL_LABEL]
    for absent, share in zip(gone, (0.1, 0.5, 0.25), strict=True):
        assert abs(absent.float().mean().item() - share) < 4 * math.sqrt(share * (1 - share) / batch)
    alone = [(share - 0.05) / 0.95 for share in (0.1, 0.5, 0.25)]  # half of the smallest share goes to all at once
    for found, chance in (
        (gone[0] & gone[1], 0.05 + 0.95 * alone[0] * alone[1]),
        (gone[0] & gone[1] & gone[2], 0.05 + 0.95 * math.prod(alone)),
    ):
        assert abs(found.float().mean().item() - chance) < 4 * math.sqrt(chance * (1 - chance) / batch)
    assert dropped["diagnosis"][~gone[0]].eq(1).all()


def test_random_drop_of_one_condition_is_blind_to_the_others() -> None:
    full = {"diagnosis": torch.ones(64, dtype=torch.int64), "diameter_mm": torch.full((64,), 9.0)}
    alone = random_drop(DECLARATION, {"diameter_mm": full["diameter_mm"]}, torch_generator(3, "drop"))
    beside = random_drop(DECLARATION, full, torch_generator(3, "drop"))
    torch.testing.assert_close(alone["diameter_mm"], beside["diameter_mm"], equal_nan=True)
    assert random_drop(DECLARATION, {}, torch_generator(3, "drop")) == {}


def test_null_absent_and_dropped_are_one() -> None:
    network = encoder()
    full = encode(DECLARATION, [{"diagnosis": "benign", "diameter_mm": 9.0}] * 2, masks(2))
    nothing, empty = network(drop(full, full), 2, GRID, CPU), network({}, 2, GRID, CPU)
    assert torch.equal(nothing[0], empty[0])
    assert torch.equal(nothing[1], empty[1])
    assert not torch.allclose(network(full, 2, GRID, CPU)[0], nothing[0])


def test_conditions_add_up_and_do_not_mix() -> None:
    """A token each: what a category says does not depend on the number beside it."""
    network = encoder()
    rows = [{"diagnosis": d, "diameter_mm": n} for d in ("benign", "malignant") for n in (5.0, 30.0)]
    v = network(encode(DECLARATION, rows), 4, GRID, CPU)[0].sum(1)
    torch.testing.assert_close(v[2] - v[0], v[3] - v[1])
    assert (v[2] - v[0]).norm() > 0.1
    assert (v[1] - v[0]).norm() > 0.01


def test_near_numbers_are_near_and_far_numbers_are_far() -> None:
    network = encoder()
    rows = [{"diameter_mm": value} for value in (10.0, 10.01, 35.0)]
    v = network(encode(DECLARATION, rows), 3, GRID, CPU)[0]
    assert (v[1] - v[0]).norm() < 0.1 * (v[2] - v[0]).norm()


def test_the_mask_matters_through_its_content_and_place() -> None:
    network = encoder()
    empty = torch.zeros(1, 1, 6, 4, 8, dtype=torch.uint8)
    spot = empty.clone()
    spot[0, 0, 0, 0, 0] = 1
    other = empty.clone()
    other[0, 0, 0, 0, 0] = 7
    fields = [network({"nodule": m}, 1, GRID, CPU)[1] for m in (empty, spot, other)]
    changed = (fields[1] - fields[0]).abs().amax((0, -1)) > 1e-12
    assert changed[0, 0, 0]
    assert not changed[2].any()
    assert not torch.allclose(fields[1], fields[2])
    vectors = [network({"nodule": m}, 1, GRID, CPU)[0] for m in (empty, spot)]
    assert torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[0], network({}, 1, GRID, CPU)[0])


def test_every_voxel_of_the_mask_reaches_the_field() -> None:
    network = encoder()
    empty = torch.zeros(1, 1, 6, 4, 8, dtype=torch.uint8)
    blank = network({"nodule": empty}, 1, GRID, CPU)[1]
    for voxel in range(8):
        mask = empty.clone()
        mask[0, 0, 2 + voxel // 4, 2 + voxel // 2 % 2, 2 + voxel % 2] = 1
        assert not torch.allclose(network({"nodule": mask}, 1, GRID, CPU)[1], blank)


def test_samples_do_not_see_each_other() -> None:
    network = encoder()
    rows = [{"diagnosis": "benign"}, {"diagnosis": "malignant", "diameter_mm": 9.0}, {}]
    full = encode(DECLARATION, rows, masks(3))
    full["nodule"][2] = NULL_LABEL
    vector, field = network(full, 3, GRID, CPU)
    for i in range(3):
        alone = network({name: t[i : i + 1] for name, t in full.items()}, 1, GRID, CPU)
        torch.testing.assert_close(alone[0][0], vector[i])
        torch.testing.assert_close(alone[1][0], field[i])


def test_gradient_reaches_every_row_and_null() -> None:
    network = encoder()
    rows = [{"diagnosis": "benign", "diameter_mm": 4.0}, {"diagnosis": "malignant"}, {"diameter_mm": 20.0}]
    full = encode(DECLARATION, rows, masks(3))
    full["nodule"][2] = NULL_LABEL
    vector, field = network(full, 3, GRID, CPU)
    (vector.square().sum() + field.square().sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().flatten(1 if name.startswith("categories") else 0).amax(-1).gt(0).all(), name


def test_without_conditions_there_are_no_tokens() -> None:
    network = ConditionEncoder({}, 12, 2, 5)
    tokens, field = network({}, 2, GRID, CPU)
    assert tokens.shape == (2, 0, 12)
    assert field is None
    assert network.mask_channels == 0


def test_how_a_training_scan_was_turned_is_a_token_that_all_others_lack() -> None:
    rows = [{"diagnosis": "malignant", "diameter_mm": 9.0}] * 2
    given = encode(DECLARATION, rows, masks(2))
    network = ConditionEncoder(DECLARATION, 12, 2, 5, turned=True)
    turns = encode_turns([(5.0, 0.0, -10.0), None])
    torch.testing.assert_close(turns, torch.tensor([[0.5, 0.0, -1.0, 1.0], [0.0] * 4]))
    assert network.turns is not None
    torch.nn.init.normal_(network.turns.weight)
    asked, _ = network(given, 2, (3, 2, 4), CPU)
    told, _ = network({**given, TURNED: turns}, 2, (3, 2, 4), CPU)
    assert asked.shape == told.shape == (2, 3, 12)
    assert torch.equal(asked[1], told[1]), "as it was scanned, as it is asked for"
    assert torch.equal(asked[0, :2], told[0, :2]) and not torch.equal(asked[0, 2], told[0, 2])
    assert torch.equal(asked[:, 2], torch.zeros(2, 12))
    with pytest.raises(ConfigError, match="is unknown: the model knows diagnosis, diameter_mm, nodule"):
        encode(DECLARATION, [{TURNED: 1.0}])


def test_a_condition_alone_is_withheld_as_declared_and_one_never_withheld_never() -> None:
    batch = 20_000
    full = {"diagnosis": torch.ones(batch, dtype=torch.int64), "size": torch.full((batch,), 9.0)}
    alone = {"diagnosis": {"kind": "category", "values": ["a", "b"], "dropout": 0.3}}
    gone = random_drop(alone, {"diagnosis": full["diagnosis"]}, torch_generator(4, "drop"))["diagnosis"] == -1
    assert abs(gone.float().mean().item() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / batch)
    always = {**alone, "size": {"kind": "number", "range": [1.0, 9.0], "unit": "mm", "dropout": 0.0}}
    dropped = random_drop(always, full, torch_generator(4, "drop"))
    assert not dropped["size"].isnan().any()
    assert never_withheld(always) == ["size"]


@pytest.mark.parametrize("name", ["type", "half", "values", "keys", "training", "copy", "forward", "T_destination"])
@pytest.mark.parametrize("entry", [DECLARATION["diagnosis"], DECLARATION["diameter_mm"]], ids=["category", "number"])
def test_a_condition_may_bear_a_name_that_torch_uses(name: str, entry: dict[str, Any]) -> None:
    torch.manual_seed(0)
    declaration = {name: entry}
    value = "benign" if entry["kind"] == "category" else 9.0
    network = ConditionEncoder(declaration, 8, 2, 4)
    tokens, _ = network(encode(declaration, [{name: value}, {}]), 2, GRID, CPU)
    assert not torch.equal(tokens[0], tokens[1])
    again = ConditionEncoder(declaration, 8, 2, 4)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(encode(declaration, [{name: value}, {}]), 2, GRID, CPU)[0], tokens)
