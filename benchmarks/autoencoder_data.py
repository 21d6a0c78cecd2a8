"""Real crops to judge autoencoders on: a training and a held-out part that share no voxel and, where a cohort has several patients,
no patient.

The folder is that of the environment variable MEDSYNTH_DATA. Crops are cubes [N, 1, s, s, s] in [-1, 1].
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsynth.imaging.nifti import read_nifti
from medsynth.seeding import numpy_generator

HU_WINDOW = (-1000.0, 400.0)
PERCENTILES = (0.5, 99.5)
MOST_TRAINING, MOST_HELD_OUT = 120, 24
FLAT = 0.05
"""Blocks whose values deviate by less than this from their mean are air or background, and are left out."""

Parts = tuple[Tensor, Tensor]


def hippocampus(folder: Path, side: int) -> Parts:
    """T1 MR crops of one patient each: the middle of each."""
    paths = sorted((folder / "hippocampus" / "images").glob("*.nii*"))
    return _by_name(paths, lambda path: _middle(between_percentiles(_voxels(path)), side))


def nodules(folder: Path, side: int) -> Parts:
    """CT around one lung nodule for each patient, at the source's own voxel size."""
    first: dict[str, Path] = {}
    with (folder / "lidc_nodules" / "nodules.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            first.setdefault(row["patient"], folder / "lidc_nodules" / row["image"])
    return _by_name(sorted(first.values()), lambda path: _middle(windowed(_voxels(path)), side))


def ct_body(folder: Path, side: int) -> Parts:
    """Blocks of one whole-body CT."""
    return _by_block(windowed(_voxels(folder / "volumes" / "ct_body" / "image.nii.gz")), side)


def ms_lesions(folder: Path, side: int) -> Parts:
    """Blocks of one FLAIR MR of a head with lesions."""
    return _by_block(between_percentiles(_voxels(folder / "volumes" / "ms_lesions" / "flair.nii.gz")), side)


COHORTS: dict[str, Callable[[Path, int], Parts]] = {
    "hippocampus": hippocampus,
    "nodules": nodules,
    "ct_body": ct_body,
    "ms_lesions": ms_lesions,
}


def data_folder() -> Path:
    """The folder of real scans. Exits with a message where there is none."""
    folder = Path(os.environ.get("MEDSYNTH_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit("expected a folder of real scans in MEDSYNTH_DATA, found none; set it")
    return folder


def windowed(voxels: np.ndarray) -> np.ndarray:
    """HU of the lung and bone window to [-1, 1]."""
    low, high = HU_WINDOW
    return np.clip((voxels - low) / (high - low), 0, 1) * 2 - 1


def between_percentiles(voxels: np.ndarray) -> np.ndarray:
    """Each scan between two percentiles of its own to [-1, 1]."""
    low, high = np.percentile(voxels, PERCENTILES)
    return np.clip((voxels - low) / max(high - low, 1e-6), 0, 1) * 2 - 1


def blocks(voxels: np.ndarray, side: int) -> list[np.ndarray]:
    """The cubes of a grid over a volume that hold more than background; none shares a voxel with another."""
    starts = [range(0, size - side + 1, side) for size in voxels.shape]
    cubes = (voxels[x : x + side, y : y + side, z : z + side] for x, y, z in itertools.product(*starts))
    return [cube for cube in cubes if cube.std() > FLAT]


def _by_name(paths: Sequence[Path], cube: Callable[[Path], np.ndarray]) -> Parts:
    order = numpy_generator(0, "autoencoder data").permutation(len(paths))
    chosen = [paths[i] for i in order[: MOST_TRAINING + MOST_HELD_OUT]]
    return _parts([cube(path) for path in chosen])


def _by_block(voxels: np.ndarray, side: int) -> Parts:
    found = blocks(voxels, side)
    order = numpy_generator(0, "autoencoder data").permutation(len(found))
    return _parts([found[i] for i in order[: MOST_TRAINING + MOST_HELD_OUT]])


def _parts(cubes: Sequence[np.ndarray]) -> Parts:
    held_out = min(MOST_HELD_OUT, len(cubes) // 4)
    stacked = torch.from_numpy(np.stack(cubes).astype(np.float32))[:, None]
    return stacked[held_out:], stacked[:held_out]


def _voxels(path: Path) -> np.ndarray:
    return np.asarray(read_nifti(path)[0], dtype=np.float64)


def _middle(voxels: np.ndarray, side: int) -> np.ndarray:
    """The cube in the middle, its edge values repeated where the volume is shorter."""
    missing = [max(side - size, 0) for size in voxels.shape]
    voxels = np.pad(voxels, [(n // 2, n - n // 2) for n in missing], mode="edge")
    starts = [(size - side) // 2 for size in voxels.shape]
    return voxels[tuple(slice(start, start + side) for start in starts)]
