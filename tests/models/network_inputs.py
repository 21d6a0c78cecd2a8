"""Conditions and inputs that tests of the denoising networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medsynth.models.conditions import Declaration, encode
from medsynth.seeding import torch_generator

DECLARATION: Declaration = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [3.0, 40.0], "unit": "mm", "dropout": 0.1},
    "nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1},
}


def inputs(batch: int, grid: tuple[int, int, int] = (4, 6, 4)) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch_generator(0, "inputs")
    x = torch.randn(batch, 3, *grid, generator=generator, dtype=torch.float64)
    angle = torch.rand(batch, generator=generator, dtype=torch.float64) * (math.pi / 2)
    voxels = [2 * size for size in grid]
    mask = torch.randint(0, 2, (batch, 1, *voxels), generator=generator, dtype=torch.uint8)
    rows = [{"diagnosis": "benign", "diameter_mm": 5.0}, {"diagnosis": "malignant"}, {"diameter_mm": 30.0}, {}]
    conditions = encode(DECLARATION, [rows[i % 4] for i in range(batch)], mask)
    if batch > 2:
        conditions["nodule"][2] = 255
    return x, angle, conditions


def saved_values(network: nn.Module, *given: object) -> int:
    """Forward and backward; returns how many values the forward pass kept for the backward one, weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(*given)
    count = sum(kept.values())
    out.square().sum().backward()
    return count
