"""The comparison with MONAI's latent diffusion: the peer is sampled rightly, and the record keeps every cell once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.peers.__main__ import add, read, table
from benchmarks.peers.data import Data
from benchmarks.peers.monai_ldm import EVALUATIONS, SAMPLER, DenoiserTask
from medsynth.diffusion.samplers import sample
from medsynth.seeding import torch_generator

MEAN, STD = 0.3, 0.5
GRID = (3, 5, 6, 4)


class IdealNoise(nn.Module):
    """The noise expected in x where the latents are N(MEAN, STD^2), at MONAI's own levels; padding holds nothing."""

    def __init__(self, angles: Tensor) -> None:
        super().__init__()
        self.angles = angles
        self.grids: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor, timesteps: Tensor, class_labels: None) -> Tensor:
        self.grids.add(tuple(x.shape[2:]))
        below = timesteps.long().clamp_max(len(self.angles) - 2)
        angle = torch.lerp(self.angles[below], self.angles[below + 1], (timesteps - below).double())
        cos, sin = (f(angle).float().view(-1, 1, 1, 1, 1) for f in (torch.cos, torch.sin))
        return sin * (x - cos * MEAN) / ((cos * STD) ** 2 + sin**2)


def peer() -> DenoiserTask:
    latents = {name: torch.zeros(2, *GRID) for name in ("train", "validation")}
    task = DenoiserTask(nn.Identity(), Data(None, {}, _empty(), "", (), ""), latents, 0)  # type: ignore[arg-type]
    task.network = IdealNoise(task.angles)
    return task


def _empty() -> Any:
    class Split:
        cases = ()
        masks = None

    return {"train": Split(), "validation": Split()}


def test_an_ideal_peer_gives_the_distribution_that_it_knows() -> None:
    task = peer()
    start = torch.randn(64, *GRID, generator=torch_generator(0, "start"))
    generators = [torch_generator(0, "steps", i) for i in range(len(start))]
    found = sample(lambda x, angle: task.clean(x, angle, {}), start, SAMPLER, EVALUATIONS, generators)
    # The same numbers, moved and scaled: the probability flow of a Gaussian is affine.
    expected = MEAN + STD * start
    assert (found - expected).abs().max() < 0.03
    assert found.std() == pytest.approx(STD, rel=0.015)


def test_the_peers_network_sees_a_grid_that_it_can_halve_twice() -> None:
    task = peer()
    task.clean(torch.zeros(1, *GRID), torch.tensor([0.5]), {})
    assert task.network.grids == {(8, 8, 4)}


def cell(method: str, kid: float, device: str = "one") -> dict[str, Any]:
    def beside(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 1, "high": value + 1}

    metrics = [{"name": name, "synthetic": beside(kid), "real": beside(0.5)} for name in ("kid", "frechet")]
    return {
        "task": "nodules",
        "method": method,
        "minutes": 60.0,
        "seed": 1,
        "device": device,
        "autoencoder": {"validation": {"psnr": 30.0}},
        "fidelity": [{"space": "radiomics", "metrics": metrics}],
        "mask_overlap": None,
        "label": {"real": beside(0.9), "synthetic": beside(0.8)},
        "diversity": {"real": beside(0.3), "synthetic": beside(0.2)},
        "seconds_per_scan": 1.0,
    }


def test_a_cell_that_is_run_again_takes_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    for found in (cell("monai", 9.0), cell("medsynth", 4.0), cell("monai", 8.0)):
        add(found, path)
    assert [(c["method"], c["fidelity"][0]["metrics"][0]["synthetic"]["value"]) for c in read(path)] == [
        ("medsynth", 4.0),
        ("monai", 8.0),
    ]
    add(cell("monai", 7.0, "another"), path)
    assert [(c["method"], c["device"]) for c in read(path)] == [
        ("medsynth", "one"),
        ("monai", "another"),
        ("monai", "one"),
    ]
    assert json.loads(path.read_text())["cells"] == read(path)
    add({**cell("medsynth", 3.0), "varied": True}, path)
    assert [c.get("varied", False) for c in read(path)] == [False, True, False, False]
    assert "medsynth, masks varied" in table(read(path))


def test_the_table_puts_real_against_real_beside_each_figure() -> None:
    lines = table([cell("medsynth", 4.0)]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "4 [3, 5] / 0.5" in lines[-1]
    assert "0.8 [-0.2, 1.8] / 0.9" in lines[-1]


def test_the_table_shows_the_space_that_looks_worst_for_copies() -> None:
    def space(closer: float, membership: float) -> dict[str, Any]:
        found = {"closer": closer, "membership": membership}
        return {"nominal": 0.05, **{name: {"value": v, "low": v / 2, "high": v * 1.5} for name, v in found.items()}}

    judged = {**cell("medsynth", 4.0), "privacy": [space(0.02, 0.6), space(0.1, 0.5)]}
    before, now = (table([one]).splitlines() for one in (cell("medsynth", 4.0), judged))
    assert before[0] == now[0]
    assert "0.1 [0.05, 0.15] / 0.05 | 0.6 [0.3, 0.9]" in now[-1]
    assert "| - | - | - |" in before[-1]  # not judged so, and no mask
