"""What a generator is steered by: declared once, checked at the door, each with a learned null.

A declaration is plain JSON, travels with the model, and is all that is needed to turn named values into tensors:

    {"diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
     "diameter_mm": {"kind": "number", "range": [3.0, 40.0], "unit": "mm", "dropout": 0.1},
     "nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1},
     "grid": {"kind": "geometry", "grids": ["64x64x64@1x1x1", "96x96x48@1x1x2.5"], "dropout": 0.0}}

Encoded conditions are a dictionary of tensors, one entry per name, with a null that needs no second tensor:
category int64 [B], null -1; number float32 [B] in its unit, null NaN; mask uint8 [B, 1, X, Y, Z], null 255 everywhere.
A geometry is float32 [B, 6], the logarithms of spacing and size in millimetres, and has no null: a volume always lies on
some grid, so it is never withheld, not by guidance either, and has to be given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.config.grid import GRID, Grid, named_grid
from medsynth.errors import ConfigError

Declaration = dict[str, dict[str, Any]]
Value = str | float | None

CONDITION = "condition "
"""Goes before a condition's name among other tensors."""
TURNED = "turned (augmentation)"
"""No condition that anybody declares or asks for, and no name that one could have: how a training scan was turned."""
TURN_FEATURES = 4
"""Three angles, and 1 for a scan that was turned: cubic splines leave their mark however small the angles."""
TURN_UNIT_DEGREES = 10.0
"""In which a network is told angles."""
NULL_CATEGORY = -1
NULL_LABEL = 255


def declare(
    conditions: Mapping[str, CategoryCondition | NumberCondition | MaskCondition], grids: Sequence[Grid] = ()
) -> Declaration:
    """The declaration of those conditions that steer the generator, in the order given, and of its grids if several."""
    declaration: Declaration = {}
    for name, condition in conditions.items():
        if not condition.steer:
            continue
        entry: dict[str, Any] = {"kind": condition.kind}
        match condition:
            case CategoryCondition():
                entry["values"] = list(condition.values)
            case NumberCondition():
                entry |= {"range": [float(bound) for bound in condition.range], "unit": condition.unit}
            case MaskCondition():
                entry["labels"] = dict(condition.labels)
        declaration[name] = entry | {"dropout": float(condition.dropout)}
    if len(grids) > 1:
        declaration[GRID] = {"kind": "geometry", "grids": [str(grid) for grid in grids], "dropout": 0.0}
    return declaration


def mask_name(declaration: Declaration) -> str | None:
    """The name of the mask condition, if the declaration has one."""
    return next((name for name, entry in declaration.items() if entry["kind"] == "mask"), None)


def mask_labels(declaration: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Names and values of the mask condition's labels; empty where a model has none."""
    return next((dict(entry["labels"]) for entry in declaration.values() if entry["kind"] == "mask"), {})


def withholdable(declaration: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the conditions that have a null: all but the geometry."""
    return [name for name, entry in declaration.items() if entry["kind"] != "geometry"]


def never_withheld(declaration: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of those whose null was not trained: guidance must not ask for it."""
    return [name for name in withholdable(declaration) if declaration[name]["dropout"] == 0]


def steering_values(declaration: Declaration, row: Mapping[str, Value]) -> dict[str, Value]:
    """The entries of `row` that the declaration knows by name, masks aside.

    For rows of a manifest, which also hold labels that only a classifier uses. A request for synthetic scans goes to
    `encode` as it is, so that a misspelt name is refused instead of ignored.
    """
    return {name: row[name] for name, entry in declaration.items() if entry["kind"] != "mask" and name in row}


def encode(
    declaration: Declaration, rows: Sequence[Mapping[str, Value]], masks: Tensor | None = None
) -> dict[str, Tensor]:
    """Named values as tensors on the CPU (masks stay on their device).

    `rows` holds one mapping per sample; a value that is missing, None or NaN becomes the null. `masks` is an integer
    tensor [B, 1, X, Y, Z] of label values (255 everywhere in a sample: null), or None: then there is no mask entry,
    which `condition_encoder` reads as null for every sample.

    Raises ConfigError, with every mistake, for a name or value that the declaration does not have.
    """
    mistakes: list[str] = []
    for row in rows:
        mistakes += [_unknown_name(name, declaration) for name in row if name not in declaration]
    encoded: dict[str, Tensor] = {}
    for name, entry in declaration.items():
        values = [row.get(name) for row in rows]
        match entry["kind"]:
            case "category":
                encoded[name] = torch.tensor([_category(name, entry, v, mistakes) for v in values], dtype=torch.int64)
            case "number":
                encoded[name] = torch.tensor([_number(name, entry, v, mistakes) for v in values], dtype=torch.float32)
            case "geometry":
                encoded[name] = torch.tensor([_geometry(name, entry, v, mistakes) for v in values])
            case "mask":
                if any(value is not None for value in values):
                    mistakes.append(f"condition {name}: expected a mask volume beside the values, found it among them")
                if masks is not None:
                    mistakes += _mask_mistakes(name, entry, masks, len(rows))
                    encoded[name] = masks.to(torch.uint8)
    if masks is not None and mask_name(declaration) is None:
        mistakes.append("masks: expected none, because the model has no mask condition; leave them out")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return encoded


def encode_turns(turns: Sequence[Sequence[float] | None]) -> Tensor:
    """How scans were turned: degrees about x, y and z, or None as they were scanned -> [B, 4] float32, zeros for the latter."""
    told = [[0.0] * TURN_FEATURES if turn is None else [*(d / TURN_UNIT_DEGREES for d in turn), 1.0] for turn in turns]
    return torch.tensor(told)


def drop(conditions: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The same conditions with those in `names` set to their null for every sample; a geometry, which has none, stays."""
    dropped = {name for name in names if name not in conditions or has_null(conditions[name])}
    return {name: torch.full_like(t, _null(t)) if name in dropped else t for name, t in conditions.items()}


def random_drop(
    declaration: Declaration, conditions: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The same conditions, each withheld from its `dropout` of the samples: classifier-free guidance (Ho 2022, alg. 1).

    Guidance withholds one condition or all of them. Half of the smallest dropout goes to samples that lose all at once, which
    would be next to none were each withheld on its own. One uniform number per sample, and one more for every *declared*
    condition, is drawn from `generator` (on the CPU), whatever the batch holds, so that the stream does not depend on which
    conditions are present.
    """
    if not conditions:
        return {}
    batch = next(iter(conditions.values())).shape[0]
    result = dict(conditions)
    together = min((declaration[name]["dropout"] for name in withholdable(declaration)), default=0.0) / 2
    all_of_them = torch.rand(batch, generator=generator) < together
    for name, entry in declaration.items():
        alone = max(0.0, (entry["dropout"] - together) / (1 - together))
        withheld = all_of_them | (torch.rand(batch, generator=generator) < alone)
        if name in conditions and entry["kind"] != "geometry":
            value = conditions[name]
            where = withheld.to(value.device).view(-1, *[1] * (value.ndim - 1))
            result[name] = torch.where(where, torch.full_like(value, _null(value)), value)
    return result


def named(conditions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions under names that set them apart among other tensors, such as those of a batch."""
    return {CONDITION + name: value for name, value in conditions.items()}


def conditions_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The conditions among tensors that `named` named."""
    return {name.removeprefix(CONDITION): v for name, v in tensors.items() if name.startswith(CONDITION)}


def has_null(encoded: Tensor) -> bool:
    """Whether an encoded condition can be withheld: all but a geometry [B, 6] can."""
    return encoded.ndim != 2


def _null(tensor: Tensor) -> float:
    if tensor.dtype == torch.uint8:
        return NULL_LABEL
    return math.nan if tensor.is_floating_point() else NULL_CATEGORY


def _nearest(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unknown_name(name: str, declaration: Declaration) -> str:
    known = ", ".join(declaration) or "no condition"
    return f"condition {name!r} is unknown: the model knows {known}{_nearest(name, declaration)}"


def _category(name: str, entry: Mapping[str, Any], value: Value, mistakes: list[str]) -> int:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NULL_CATEGORY
    if value in entry["values"]:
        return int(entry["values"].index(value))
    allowed = ", ".join(entry["values"])
    nearest = _nearest(str(value), entry["values"])
    mistakes.append(f"condition {name}: expected one of {allowed}; found {value!r}{nearest}")
    return NULL_CATEGORY


def _number(name: str, entry: Mapping[str, Any], value: Value, mistakes: list[str]) -> float:
    if value is None:
        return math.nan
    low, high = entry["range"]
    allowed = f"{low:g} to {high:g} {entry['unit']}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float):
        mistakes.append(f"condition {name}: expected a number from {allowed}; found {value!r}")
        return math.nan
    if not math.isnan(value) and not low <= value <= high:
        mistakes.append(f"condition {name}: expected a number from {allowed}; found {value:g}")
    return float(value)


def geometry_of(grid: Grid) -> list[float]:
    """What a network is told of a grid: the logarithms of its spacing and of its size in millimetres, along x, y, z."""
    return [math.log(length) for length in (*grid.spacing_mm, *grid.extent_mm)]


def _geometry(name: str, entry: Mapping[str, Any], value: Value, mistakes: list[str]) -> list[float]:
    if value is None:
        mistakes.append(f"condition {name}: expected one of {', '.join(entry['grids'])} (voxels@mm), found none")
        return [math.nan] * 6
    try:
        return geometry_of(named_grid([Grid.parse(text) for text in entry["grids"]], str(value)))
    except ValueError as error:
        mistakes.append(f"condition {name}: {error}")
        return [math.nan] * 6


def _mask_mistakes(name: str, entry: Mapping[str, Any], masks: Tensor, batch: int) -> list[str]:
    if masks.ndim != 5 or masks.shape[:2] != (batch, 1) or masks.is_floating_point():
        found = f"{masks.dtype} {list(masks.shape)}"
        return [f"condition {name}: expected integer masks [{batch}, 1, X, Y, Z]; found {found}"]
    allowed = torch.tensor([0, *entry["labels"].values()], device=masks.device)
    null = (masks == NULL_LABEL).flatten(1).all(1)
    if not bool((torch.isin(masks, allowed).flatten(1).all(1) | null).all()):
        strange = sorted(set(masks.flatten().tolist()) - set(allowed.tolist()) - {NULL_LABEL}) or [NULL_LABEL]
        labels = ", ".join(f"{label} ({text})" for text, label in entry["labels"].items())
        return [f"condition {name}: expected the labels 0 (background), {labels}; found {strange}"]
    return []
