"""The geometry as a condition: declared where there are several grids, told as a token, never withheld."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from medsynth.config.cohort import CategoryCondition
from medsynth.config.grid import Grid
from medsynth.errors import ConfigError
from medsynth.models.condition_encoder import ConditionEncoder
from medsynth.models.conditions import (
    Declaration,
    declare,
    drop,
    encode,
    geometry_of,
    random_drop,
    withholdable,
)
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.seeding import torch_generator

CPU = torch.device("cpu")
THIN = Grid(box=(8, 8, 8), spacing_mm=(1.0, 1.0, 1.0))
THICK = Grid(box=(8, 8, 8), spacing_mm=(1.0, 1.0, 4.0))
KINDS = {"kind_of": CategoryCondition(kind="category", values=("a", "b"))}
DECLARATION: Declaration = declare(KINDS, (THIN, THICK))


def test_it_is_declared_with_the_grids_where_there_are_several() -> None:
    assert declare(KINDS, (THIN,)) == declare(KINDS)
    assert DECLARATION["grid"] == {"kind": "geometry", "grids": [str(THIN), str(THICK)], "dropout": 0.0}
    assert json.loads(json.dumps(DECLARATION)) == DECLARATION
    assert withholdable(DECLARATION) == ["kind_of"]


def test_it_is_encoded_as_logarithms_of_spacing_and_size() -> None:
    encoded = encode(DECLARATION, [{"grid": str(THIN)}, {"grid": "8x8x8@1x1x4.0"}])["grid"]
    logs = [[0, 0, 0, *[math.log(8)] * 3], [0, 0, math.log(4), math.log(8), math.log(8), math.log(32)]]
    torch.testing.assert_close(encoded, torch.tensor(logs, dtype=torch.float32))


def test_a_grid_that_training_never_saw_is_refused_with_those_that_it_did() -> None:
    with pytest.raises(ConfigError) as caught:
        encode(DECLARATION, [{"grid": "8x8x8@1x1x2"}, {"kind_of": "a"}])
    unknown, missing = caught.value.mistakes
    assert unknown.startswith(
        "condition grid: expected one of 8x8x8@1x1x1, 8x8x8@1x1x4 (voxels@mm), found '8x8x8@1x1x2'"
    )
    assert missing == "condition grid: expected one of 8x8x8@1x1x1, 8x8x8@1x1x4 (voxels@mm), found none"


def test_it_is_never_withheld() -> None:
    encoded = encode(DECLARATION, [{"kind_of": "a", "grid": str(THICK)}] * 200)
    assert torch.equal(drop(encoded, ["kind_of", "grid"])["grid"], encoded["grid"])
    assert drop(encoded, ["kind_of"])["kind_of"].eq(-1).all()
    dropped = random_drop(DECLARATION, encoded, torch_generator(0, "drop"))
    assert torch.equal(dropped["grid"], encoded["grid"])
    assert dropped["kind_of"].eq(-1).any()


def test_its_features_are_scaled_by_the_known_grids() -> None:
    """What all grids share says nothing, what differs runs from -1 to 1; the token of a grid in between lies in between."""
    encoder = ConditionEncoder(declare({}, (THIN, THICK)), 16, 2, 4).geometry
    assert encoder is not None
    scaled = [
        [
            (value - middle) / half
            for value, middle, half in zip(geometry_of(g), encoder.middles, encoder.halves, strict=True)
        ]
        for g in (THIN, THICK)
    ]
    assert scaled == [[0, 0, -1, 0, 0, -1], [0, 0, 1, 0, 0, 1]]
    tokens, field = ConditionEncoder(DECLARATION, 16, 2, 4)(
        encode(DECLARATION, [{"grid": str(THIN)}]), 1, (4, 4, 4), CPU
    )
    assert tokens.shape == (1, 2, 16) and field is None
    with pytest.raises(KeyError, match="grid"):
        ConditionEncoder(DECLARATION, 16, 2, 4)({}, 1, (4, 4, 4), CPU)


def _network(kind: str, declaration: Declaration) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if kind == "unet":
            return LatentUNet(2, 2, widths=[16], blocks=1, head_channels=8, conditions=declaration)
        return LatentTransformer(2, 2, width=16, depth=1, head_channels=8, conditions=declaration)


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_network_learns_what_depends_on_spacing_alone_only_by_the_token(kind: str) -> None:
    """Latents of one size are +1 at one spacing and -1 at the other, and shown as pure noise: nothing else tells them."""

    def error(declaration: Declaration) -> float:
        network = _network(kind, declaration)
        optimiser = torch.optim.Adam(network.parameters(), 5e-3)
        losses = []
        for step in range(120):
            generator = torch_generator(step, "noise")
            noise = torch.randn(8, 2, 4, 4, 4, generator=generator)
            clean = torch.tensor([1.0, -1.0]).repeat(4).view(8, 1, 1, 1, 1)
            rows = [{"grid": str((THIN, THICK)[i % 2])} if declaration else {} for i in range(8)]
            answer = network(noise, torch.full((8,), math.pi / 2), encode(declaration, rows))
            loss = (answer - clean).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        return float(torch.stack(losses[-10:]).mean())

    assert error(declare({}, (THIN, THICK))) < 0.05
    assert error({}) > 0.8
