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
from torch import Tensor, nn

from medsynth.config.cohort import CategoryCondition, MaskCondition, NumberCondition
from medsynth.config.grid import GRID, Grid, named_grid
from medsynth.errors import ConfigError
from medsynth.models.blocks import Convolution, fold, fourier_features

Declaration = dict[str, dict[str, Any]]
Value = str | float | None

CONDITION = "condition "
"""Goes before a condition's name among other tensors."""
NULL_CATEGORY = -1
NULL_LABEL = 255
NUMBER_FREQUENCIES = 8
INITIAL_STD = 0.5


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


def withholdable(declaration: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The names of the conditions that have a null: all but the geometry."""
    return [name for name, entry in declaration.items() if entry["kind"] != "geometry"]


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
    which `ConditionEncoder` reads as null for every sample.

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


def drop(conditions: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The same conditions with those in `names` set to their null for every sample; a geometry, which has none, stays."""
    dropped = {name for name in names if name not in conditions or has_null(conditions[name])}
    return {name: torch.full_like(t, _null(t)) if name in dropped else t for name, t in conditions.items()}


def random_drop(
    declaration: Declaration, conditions: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """The same conditions, each withheld from a random share of samples: classifier-free guidance (Ho 2022, alg. 1).

    One uniform number per sample and *declared* condition is drawn from `generator` (on the CPU), whatever the batch
    holds, so that the stream does not depend on which conditions are present.
    """
    if not conditions:
        return {}
    batch = next(iter(conditions.values())).shape[0]
    result = dict(conditions)
    for name, entry in declaration.items():
        withheld = torch.rand(batch, generator=generator) < entry["dropout"]
        if name in conditions:
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


class GeometryEncoder(nn.Module):
    """Spacing and size of a volume to one token: an MLP of Fourier features of six numbers.

    They are the logarithms of spacing and size in millimetres per axis, each scaled to [-1, 1] by its range over the
    grids of the training split; one that is the same for all of them is 0.
    """

    def __init__(self, grids: Sequence[Grid], width: int) -> None:
        super().__init__()
        known = list(zip(*(geometry_of(grid) for grid in grids), strict=True))
        # Numbers and no buffers: those would follow the weights into a coarser type.
        self.middles = [(max(values) + min(values)) / 2 for values in known]
        self.halves = [(max(values) - min(values)) / 2 or math.inf for values in known]
        features = len(known) * (1 + 2 * NUMBER_FREQUENCIES)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, geometry: Tensor) -> Tensor:
        """[B, 6] as `geometry_of` gives it -> [B, width]."""
        columns = zip(geometry.unbind(1), self.middles, self.halves, strict=True)
        scaled = torch.stack([(column - middle) / half for column, middle, half in columns], 1)
        waves = fourier_features(scaled.flatten() * (math.pi / 2), NUMBER_FREQUENCIES).view(len(geometry), -1)
        return self.mlp(torch.cat([scaled, waves], 1).to(next(self.mlp.parameters()).dtype))


class ConditionEncoder(nn.Module):
    """Conditions to a few tokens per sample and, where there is a mask, a field of features on the latent grid.

    A token is an embedding row of a category (the last row is the null), or an MLP of Fourier features of a number
    scaled to [-1, 1] by its range, or that number's learned null. The mask is compared with every label voxel by voxel,
    folded by `downsampling` so that no voxel is lost, mixed per latent voxel and then convolved; a null mask becomes a
    learned constant field. No flag says that a mask is there: only its content reaches the network, and no token knows
    of it.
    """

    def __init__(self, declaration: Declaration, width: int, downsampling: int, mask_channels: int) -> None:
        super().__init__()
        self.declaration = declaration
        self.width = width
        self.downsampling = downsampling
        self.categories = nn.ModuleDict()
        self.numbers = nn.ModuleDict()
        self.number_nulls = nn.ParameterDict()
        self.geometry: GeometryEncoder | None = None
        for name, entry in declaration.items():
            match entry["kind"]:
                case "category":
                    rows = len(entry["values"]) + 1
                    weight = torch.randn(rows, width) * INITIAL_STD
                    self.categories[name] = nn.Embedding(rows, width, _weight=weight)
                case "number":
                    features = 1 + 2 * NUMBER_FREQUENCIES
                    self.numbers[name] = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
                    self.number_nulls[name] = nn.Parameter(torch.randn(width) * INITIAL_STD)
                case "geometry":
                    self.geometry = GeometryEncoder([Grid.parse(text) for text in entry["grids"]], width)
        self.mask = mask_name(declaration)
        self.mask_channels = mask_channels if self.mask else 0
        if self.mask:
            self.labels = sorted(declaration[self.mask]["labels"].values())
            self.mask_mix = nn.Linear(len(self.labels) * downsampling**3, mask_channels)
            self.mask_convolution = Convolution(mask_channels, mask_channels)
            self.mask_null = nn.Parameter(torch.randn(mask_channels) * INITIAL_STD)

    def forward(
        self, conditions: Mapping[str, Tensor], batch: int, grid: Sequence[int], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """A token per category, number and geometry [B, T, width], and the mask's features [B, x, y, z, mask_channels].

        `grid` is the latent one, `device` that of the network; the features are None where no mask is declared. A
        declared condition that `conditions` lacks is null for every sample. Raises KeyError where that is the geometry.
        """
        tokens: list[Tensor] = []
        for name, embedding in self.categories.items():
            rows = len(self.declaration[name]["values"]) + 1
            index = conditions.get(name)
            if index is None:
                index = torch.full((batch,), NULL_CATEGORY, device=device)
            tokens.append(embedding(index.to(device) % rows))  # -1 wraps to the last row, the null
        for name, mlp in self.numbers.items():
            value = conditions.get(name)
            if value is None:
                value = torch.full((batch,), math.nan, device=device)
            value = value.to(device)
            absent = value.isnan()
            low, high = self.declaration[name]["range"]
            scaled = torch.where(absent, 0.0, (value - low) * (2 / (high - low)) - 1)
            features = torch.cat([scaled[:, None], fourier_features(scaled * (math.pi / 2), NUMBER_FREQUENCIES)], 1)
            null = self.number_nulls[name]
            tokens.append(torch.where(absent[:, None], null, mlp(features.to(null.dtype))))
        if self.geometry is not None:
            tokens.append(self.geometry(conditions[GRID].to(device)))
        stacked = torch.stack(tokens, 1) if tokens else torch.zeros(batch, 0, self.width, device=device)
        return stacked, self._field(conditions, batch, grid) if self.mask else None

    def _field(self, conditions: Mapping[str, Tensor], batch: int, grid: Sequence[int]) -> Tensor:
        null = self.mask_null.expand(batch, *grid, -1)
        mask = conditions.get(self.mask or "")
        if mask is None:
            return null
        folded = fold(mask.to(null.device).movedim(1, -1), self.downsampling)  # [B, x, y, z, f^3]
        content = torch.cat([folded == label for label in self.labels], -1).to(null.dtype)
        features = self.mask_convolution(nn.functional.silu(self.mask_mix(content)))
        absent = mask.flatten(1)[:, 0] == NULL_LABEL
        return torch.where(absent.to(null.device).view(-1, 1, 1, 1, 1), null.to(features.dtype), features)


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
