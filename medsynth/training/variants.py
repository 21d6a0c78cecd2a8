"""What is encoded of a training scan besides the scan itself: mirror images, and copies that are turned a little.

A mirrored scan stands for a patient that could be. A turned one does not have to: the network is told by how much each scan was
turned, and asked for scans that were not (Karras 2022, sec. 5). It only has to tell patients from what many views of few
patients have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation
from torch import Tensor

from medsynth.config.augment import Augment
from medsynth.seeding import numpy_generator

Degrees = tuple[float, float, float]
"""About x, y and z, in this order, counterclockwise seen against the axis."""


@dataclass(frozen=True)
class Variant:
    """One way in which every scan of a split is encoded."""

    mirrored: str = ""
    """Axes, such as `xy`."""
    copy: int = 0
    """0 is as it was scanned; each further copy is turned in its own way."""
    turn_degrees: float = 0.0
    """Largest turn about each axis."""

    def turn_of(self, case: str, seed: int) -> Degrees | None:
        """How this copy of a case is turned: uniform about each axis, the same whichever cases there are besides."""
        if self.copy == 0:
            return None
        generator = numpy_generator(seed, "turned", case, self.mirrored, self.copy)
        x, y, z = generator.uniform(-self.turn_degrees, self.turn_degrees, 3).tolist()
        return x, y, z


AS_SCANNED = (Variant(),)


def variants_of(augment: Augment) -> list[Variant]:
    """All of them, scans as they are first."""
    return [
        Variant("".join(axes), copy, augment.turn_degrees if copy else 0.0)
        for axes in augment.mirrored()
        for copy in range(1 + augment.turned_copies)
    ]


def mirrored(volumes: Tensor, axes: Sequence[str]) -> Tensor:
    """Volumes [B, C, X, Y, Z] mirrored along some of x, y and z."""
    return volumes.flip([2 + "xyz".index(axis) for axis in axes])


def turned(volume: Tensor, degrees: Degrees, spacing_mm: Sequence[float]) -> Tensor:
    """A volume [1, X, Y, Z] in [-1, 1], turned about its centre in millimetres; what comes into view mirrors what was there.

    Cubic splines, since trilinear interpolation would take grain and edges out of every copy.
    """
    moved = _turned(volume[0].numpy(), degrees, spacing_mm, order=3)
    return torch.from_numpy(moved)[None].clamp(-1, 1)


def turned_labels(mask: Tensor, degrees: Degrees, spacing_mm: Sequence[float]) -> Tensor:
    """Labels [1, X, Y, Z] turned like the volume that they belong to: where a voxel's cube is mostly of one label, that one."""
    labels = np.unique(mask.numpy())
    shares = [_turned((mask[0].numpy() == label).astype(np.float32), degrees, spacing_mm, order=1) for label in labels]
    return torch.from_numpy(labels[np.argmax(shares, axis=0)])[None]


def _turned(
    voxels: NDArray[np.float32], degrees: Degrees, spacing_mm: Sequence[float], order: int
) -> NDArray[np.float32]:
    steps = np.asarray(spacing_mm)
    matrix = (turn_matrix(degrees).T * steps[None, :]) / steps[:, None]  # a turned voxel -> where it came from
    centre = (np.asarray(voxels.shape) - 1) / 2
    moved: NDArray[np.float32] = affine_transform(
        voxels, matrix, centre - matrix @ centre, order=order, mode="mirror", output=np.float32
    )
    return moved


def turn_matrix(degrees: Degrees) -> NDArray[np.float64]:
    """[3, 3]: about x first, then y, then z."""
    return np.asarray(Rotation.from_euler("xyz", degrees, degrees=True).as_matrix())
