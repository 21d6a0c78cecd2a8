"""Small invented scans: smooth background, one lesion of two kinds, patients with known labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from medsynth.evaluation.volumes import LabelledVolumes

World = Callable[..., LabelledVolumes]


def _world(
    count: int, seed: int, *, size: int = 16, contrast: float = 0.9, masks: bool = False, prefix: str = "P"
) -> LabelledVolumes:
    """`count` scans of `size`^3: class 1 has a bright lesion, class 0 a dark one; where and how large is random."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    coarse = torch.randn(count, 1, size // 4, size // 4, size // 4, generator=generator)
    background = 0.15 * F.interpolate(coarse, size=(size,) * 3, mode="trilinear")
    fine = 0.03 * torch.randn(count, 1, size, size, size, generator=generator)
    labels = torch.arange(count) % 2
    grid = torch.stack(torch.meshgrid(*[torch.arange(size).float()] * 3, indexing="ij"))
    centres = uniform(size * 0.3, size * 0.7, count, 3)
    radii = uniform(size * 0.12, size * 0.25, count)
    apart = (grid[None] - centres[:, :, None, None, None]).square().sum(1).sqrt()
    inside = (apart < radii[:, None, None, None])[:, None]
    sign = (2.0 * labels - 1)[:, None, None, None, None]
    voxels = background + fine + uniform(-0.2, 0.2, count, 1, 1, 1, 1) + 0.5 * contrast * sign * inside
    return LabelledVolumes(
        voxels=voxels.clamp(-1, 1),
        masks=inside.to(torch.uint8) if masks else None,
        labels=labels,
        classes=("benign", "malignant"),
        patients=tuple(f"{prefix}{seed}-{i}" for i in range(count)),
        cases=tuple(f"C{seed}-{i}" for i in range(count)),
    )


@pytest.fixture(scope="session")
def world() -> World:
    return _world
