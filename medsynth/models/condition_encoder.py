"""Encoded conditions to tokens and, where there is a mask, to features on the latent grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medsynth.config.grid import GRID, Grid
from medsynth.models.blocks import Convolution, fold, fourier_features
from medsynth.models.conditions import (
    NULL_CATEGORY,
    NULL_LABEL,
    TURN_FEATURES,
    TURNED,
    Declaration,
    geometry_of,
    mask_name,
)

NUMBER_FREQUENCIES = 8
INITIAL_STD = 0.5


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
    of it. With `turned` one more token tells how a training scan was turned (`encode_turns`), and is zero for all others.
    """

    def __init__(
        self, declaration: Declaration, width: int, downsampling: int, mask_channels: int, turned: bool = False
    ) -> None:
        super().__init__()
        self.declaration = declaration
        self.width = width
        self.downsampling = downsampling
        self.names: dict[str, str] = {}
        """Key in the dictionaries below -> name of the condition."""
        self.categories = nn.ModuleDict()
        self.numbers = nn.ModuleDict()
        self.number_nulls = nn.ParameterDict()
        self.geometry: GeometryEncoder | None = None
        for name, entry in declaration.items():
            key = _key(name)
            self.names[key] = name
            match entry["kind"]:
                case "category":
                    rows = len(entry["values"]) + 1
                    weight = torch.randn(rows, width) * INITIAL_STD
                    self.categories[key] = nn.Embedding(rows, width, _weight=weight)
                case "number":
                    features = 1 + 2 * NUMBER_FREQUENCIES
                    self.numbers[key] = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
                    self.number_nulls[key] = nn.Parameter(torch.randn(width) * INITIAL_STD)
                case "geometry":
                    self.geometry = GeometryEncoder([Grid.parse(text) for text in entry["grids"]], width)
        self.turns: nn.Linear | None = None
        if turned:
            self.turns = nn.Linear(TURN_FEATURES, width, bias=False)
            nn.init.zeros_(self.turns.weight)
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
        """A token per category, number, geometry and turn [B, T, width], and the mask's features [B, x, y, z, mask_channels].

        `grid` is the latent one, `device` that of the network; the features are None where no mask is declared. A
        declared condition that `conditions` lacks is null for every sample. Raises KeyError where that is the geometry.
        """
        tokens: list[Tensor] = []
        for key, embedding in self.categories.items():
            name = self.names[key]
            rows = len(self.declaration[name]["values"]) + 1
            index = conditions.get(name)
            if index is None:
                index = torch.full((batch,), NULL_CATEGORY, device=device)
            tokens.append(embedding(index.to(device) % rows))  # -1 wraps to the last row, the null
        for key, mlp in self.numbers.items():
            name = self.names[key]
            value = conditions.get(name)
            if value is None:
                value = torch.full((batch,), math.nan, device=device)
            value = value.to(device)
            absent = value.isnan()
            low, high = self.declaration[name]["range"]
            scaled = torch.where(absent, 0.0, (value - low) * (2 / (high - low)) - 1)
            features = torch.cat([scaled[:, None], fourier_features(scaled * (math.pi / 2), NUMBER_FREQUENCIES)], 1)
            null = self.number_nulls[key]
            tokens.append(torch.where(absent[:, None], null, mlp(features.to(null.dtype))))
        if self.geometry is not None:
            tokens.append(self.geometry(conditions[GRID].to(device)))
        if self.turns is not None:
            turns = conditions.get(TURNED)
            turns = torch.zeros(batch, TURN_FEATURES, device=device) if turns is None else turns.to(device)
            tokens.append(self.turns(turns.to(self.turns.weight.dtype)))
        # No tokens at all are of whole numbers, which take on the type of whatever they are joined with.
        none = torch.zeros(batch, 0, self.width, device=device, dtype=torch.int8)
        stacked = torch.stack(tokens, 1) if tokens else none
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


def _key(name: str) -> str:
    """What a condition is kept under: its name, unless torch's dictionaries use that for themselves (`type`, `values`)."""
    return f"{name} (condition)" if hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name) else name
