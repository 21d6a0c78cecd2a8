"""Scans that are the same under two names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class DuplicateGroup:
    """Cases with the same pixels, in the order they were given in."""

    digest: str
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    """The patient of each case."""

    @property
    def across_patients(self) -> bool:
        """Whether the same pixels are said to be of different patients: one of the labels must be wrong."""
        return len(set(self.patients)) > 1

    @property
    def surplus(self) -> tuple[str, ...]:
        """All cases but the first."""
        return self.cases[1:]


def pixel_digest(voxels: torch.Tensor | NDArray[np.generic]) -> str:
    """A digest of intensities alone: sha256 of the size and the values of [X, Y, Z] or [1, X, Y, Z].

    The same pixels have the same digest whatever the file's name, format, header or number type (a CT stored as int16
    and as float32, say). Voxel order counts: bring scans to one orientation first.
    """
    array = voxels.detach().cpu().numpy() if isinstance(voxels, torch.Tensor) else np.asarray(voxels)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    digest = hashlib.sha256(repr(tuple(int(size) for size in array.shape)).encode())
    # Adding zero turns -0.0 into 0.0, which compares equal but has other bytes.
    digest.update(np.ascontiguousarray(array.astype("<f4") + np.float32(0)).tobytes())
    return digest.hexdigest()


def find_duplicates(digests: Sequence[tuple[str, str, str]]) -> list[DuplicateGroup]:
    """Groups of two and more cases that share a pixel digest, from (case, patient, digest); ordered by first case."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case, patient, digest in digests:
        groups.setdefault(digest, []).append((case, patient))
    return [
        DuplicateGroup(digest, tuple(case for case, _ in members), tuple(patient for _, patient in members))
        for digest, members in groups.items()
        if len(members) > 1
    ]
