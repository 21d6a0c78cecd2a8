"""Scans with their labels, as the evidence takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medsynth.errors import DataError

if TYPE_CHECKING:
    from medsynth.cohort.volumes import VolumeSet

UNLABELLED = -1
"""Label of a scan whose category is not known."""

NULL_MASK = 255
"""Voxel value of a mask that was withheld."""


@dataclass(frozen=True)
class LabelledVolumes:
    """Scans of one split on one grid.

    voxels: float32 [N, 1, X, Y, Z] in [-1, 1].  masks: uint8 [N, 1, X, Y, Z] or None, 0 is background.
    labels: int64 [N], indices into `classes`, -1 where unknown; None where there is no category at all.
    patients, cases: N pseudonyms each; of a synthetic scan, both are the case.
    """

    voxels: Tensor
    masks: Tensor | None
    labels: Tensor | None
    classes: tuple[str, ...]
    patients: tuple[str, ...]
    cases: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.voxels)
        if self.voxels.ndim != 5 or self.voxels.shape[1] != 1:
            raise DataError(f"scans to judge: expected voxels [N, 1, X, Y, Z], found {list(self.voxels.shape)}")
        if self.masks is not None and self.masks.shape != self.voxels.shape:
            raise DataError(
                f"scans to judge: expected masks {list(self.voxels.shape)}, found {list(self.masks.shape)}; "
                "prepare scans and masks on one grid"
            )
        if len(self.patients) != count or len(self.cases) != count:
            raise DataError(
                f"scans to judge: expected {count} patients and cases, found {len(self.patients)} and {len(self.cases)}"
            )
        if self.labels is not None:
            if len(self.labels) != count:
                raise DataError(f"scans to judge: expected {count} labels, found {len(self.labels)}")
            if count and not (int(self.labels.min()) >= UNLABELLED and int(self.labels.max()) < len(self.classes)):
                raise DataError(f"scans to judge: expected labels from -1 to {len(self.classes) - 1}, found others")
        if count and not bool(torch.isfinite(self.voxels).all()):
            raise DataError("scans to judge: found voxels that are not finite; prepare or generate those scans again")

    @classmethod
    def from_volume_set(cls, volumes: VolumeSet, label: str | None, classes: Sequence[str]) -> LabelledVolumes:
        """The scans of `volumes` with their category `label`, whose values are `classes`.

        `label` None: no labels.  Raises DataError for a value that is not among `classes`.
        """
        labels = None
        if label is not None:
            index = {name: number for number, name in enumerate(classes)}
            found = [case.conditions.get(label) for case in volumes.cases]
            unknown = sum(value is not None and value not in index for value in found)
            if unknown:
                raise DataError(
                    f"{label}: expected one of {', '.join(classes)}, found another value in {unknown} scans"
                )
            labels = torch.tensor([UNLABELLED if value is None else index[str(value)] for value in found])
        return cls(
            voxels=volumes.volumes,
            masks=volumes.masks,
            labels=labels,
            classes=tuple(classes) if label is not None else (),
            patients=tuple(case.case if case.origin == "synthetic" else case.patient for case in volumes.cases),
            cases=tuple(case.case for case in volumes.cases),
        )

    def __len__(self) -> int:
        return len(self.voxels)

    def take(self, indices: Sequence[int] | np.ndarray) -> LabelledVolumes:
        """The scans at `indices`, in that order; an index may come more than once."""
        at = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return replace(
            self,
            voxels=self.voxels[at],
            masks=None if self.masks is None else self.masks[at],
            labels=None if self.labels is None else self.labels[at],
            patients=tuple(self.patients[i] for i in at.tolist()),
            cases=tuple(self.cases[i] for i in at.tolist()),
        )

    def labelled(self) -> LabelledVolumes | None:
        """The scans whose category is known; None where no scan has one."""
        if self.labels is None:
            return None
        known = np.flatnonzero(self.labels.numpy() != UNLABELLED)
        if not len(known):
            return None
        return self if len(known) == len(self) else self.take(known)

    def label_array(self) -> np.ndarray:
        """Labels as an int64 array; only to be asked for where there are labels."""
        if self.labels is None:
            raise DataError("scans to judge: expected labels, found none")
        return np.asarray(self.labels.numpy(), dtype=np.int64)

    def with_masks(self) -> Tensor:
        """The masks; only to be asked for where there are some."""
        if self.masks is None:
            raise DataError("scans to judge: expected masks, found none")
        return self.masks

    def foreground(self) -> Tensor | None:
        """Boolean [N, 1, X, Y, Z]: voxels of any label; None where there are no masks."""
        return None if self.masks is None else (self.masks > 0) & (self.masks != NULL_MASK)


def join(first: LabelledVolumes, second: LabelledVolumes) -> LabelledVolumes:
    """Both, one after the other. Raises DataError where their grids or classes differ.

    Masks and labels are kept only where both have them.
    """
    if first.voxels.shape[1:] != second.voxels.shape[1:]:
        raise DataError(
            f"scans to judge: expected one grid, found {list(first.voxels.shape[2:])} and {list(second.voxels.shape[2:])} "
            "voxels; generate with a model trained on this cohort's grid"
        )
    both_masks = first.masks is not None and second.masks is not None
    both_labels = first.labels is not None and second.labels is not None
    if both_labels and first.classes != second.classes:
        raise DataError("scans to judge: expected the same classes in every split, found different ones")
    return LabelledVolumes(
        voxels=torch.cat([first.voxels, second.voxels]),
        masks=torch.cat([first.masks, second.masks])
        if both_masks and first.masks is not None and second.masks is not None
        else None,
        labels=torch.cat([first.labels, second.labels])
        if both_labels and first.labels is not None and second.labels is not None
        else None,
        classes=first.classes if both_labels else (),
        patients=first.patients + second.patients,
        cases=first.cases + second.cases,
    )
