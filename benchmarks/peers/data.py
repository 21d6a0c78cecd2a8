"""The two tasks of the comparison: prepared scans, their split, and what every generator is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth.cohort.manifest import Manifest
from medsynth.cohort.volumes import VolumeSet, load_volumes
from medsynth.config.cohort import CategoryCondition
from medsynth.config.load import load_pipeline
from medsynth.config.pipeline import Pipeline
from medsynth.console import Screen
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.vary import Body, Variation, varied
from medsynth.models.conditions import Declaration, declare, mask_name, steering_values
from medsynth.seeding import derive, numpy_generator
from medsynth.stages.files import digest, read_json
from medsynth.stages.request import MaskSource, by_kind, draw_shape
from medsynth.verbs import run_pipeline

PIPELINES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "hippocampus": ("hippocampus", ()),
    "nodules": ("lidc_nodules", ("conditions.diameter_mm.steer=false", "conditions.nodule.steer=false")),
}
"""The shipped pipeline of each task, and what is set differently: hippocampi by their mask, nodules by their class alone."""


@dataclass(frozen=True)
class Data:
    """One task: its settings, and the volumes of its splits, the same for every method and seed."""

    pipeline: Pipeline
    declaration: Declaration
    splits: Mapping[str, VolumeSet]
    label: str
    classes: tuple[str, ...]
    digest: str
    """Of the cases and their split: cells of one task can be compared where it is the same."""


@dataclass(frozen=True)
class Request:
    """What is asked for: one training case's conditions a scan, each scan with a seed of its own."""

    cases: tuple[int, ...]
    """Rows of the training split."""
    rows: tuple[Mapping[str, Any], ...]
    """The conditions that steer."""
    masks: Tensor | None
    """[N, 1, X, Y, Z] uint8, where the mask steers."""
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.cases)


def load_data(task: str, folder: Path) -> Data:
    """Prepare the task's scans in `folder`, or take what an earlier call left there."""
    name, changes = PIPELINES[task]
    pipeline = load_pipeline(name, [*changes, f"prepare.key_file={_key(folder.parent)}"])
    run_pipeline(pipeline, folder, "prepare", force=False, screen=Screen(quiet=True))
    return data_of(pipeline, folder)


def data_of(pipeline: Pipeline, folder: Path) -> Data:
    """What lies prepared in a workspace."""
    manifest = Manifest.read(folder / "prepare" / "manifest.csv", pipeline.conditions)
    rule = IntensityRule.from_json(read_json(folder / "prepare" / "intensity.json"))
    splits = {split: load_volumes(manifest.split(split), rule) for split in ("train", "validation", "test")}
    label = pipeline.category(pipeline.evaluate.benefit.label) or ""
    condition = pipeline.conditions[label]
    classes = condition.values if isinstance(condition, CategoryCondition) else ()
    # Not the digests of files: rounding differs among processors, the split does not.
    told = sorted([case.case, case.patient, case.split, dict(case.conditions)] for case in manifest.cases)
    return Data(pipeline, declare(pipeline.conditions), splits, label, classes, digest(told))


def _key(folder: Path) -> Path:
    """The key of the pseudonyms by which patients are split: no secret here, so that every machine splits alike."""
    path = folder / "public.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(hashlib.sha256(b"the splits of the comparison").hexdigest() + "\n", encoding="ascii")
    return path.resolve()


def draw_request(data: Data, count: int, seed: int, *, vary: bool = False) -> Request:
    """`count` training cases in random order, none twice before all came once: labels as the training split has them.

    `vary`: their masks are given other shapes, as the pipeline says, instead of being asked for as they are.
    """
    train = data.splits["train"]
    shuffled = numpy_generator(seed, "peers", "request").permutation(len(train))
    cases = tuple(int(shuffled[i % len(train)]) for i in range(count))
    rows = tuple(steering_values(data.declaration, train.cases[case].conditions) for case in cases)
    masks = None
    if mask_name(data.declaration) is not None and train.masks is not None:
        masks = torch.stack([train.masks[case] for case in cases])
        if vary:
            masks = _varied(data, cases, seed)
    return Request(cases, rows, masks, tuple(derive(seed, "peers", "scan", number) for number in range(count)))


class TrainingMasks:
    """The training split's masks, and what `generate` would make of them. A source's path is its row."""

    def __init__(self, data: Data) -> None:
        train = data.splits["train"]
        assert train.masks is not None
        self.labels = train.masks[:, 0].numpy()
        self.spacings = [case.spacing_mm for case in train.cases]
        self.sources = [
            MaskSource(Path(str(row)), case.conditions, case.patient) for row, case in enumerate(train.cases)
        ]
        self._bodies = [Body.of(*each) for each in zip(self.labels, self.spacings, strict=True)]

    def shaped(self, row: int, variation: Variation | None, others: Sequence[Path]) -> NDArray[np.uint8]:
        """The mask [X, Y, Z] of a row, changed as drawn."""
        if variation is None:
            return np.asarray(self.labels[row])
        mixed = [self._bodies[int(str(path))] for path in others]
        return varied(self.labels[row], self.spacings[row], variation, mixed)


def _varied(data: Data, cases: tuple[int, ...], seed: int) -> Tensor:
    """The cases' masks [N, 1, X, Y, Z] in other shapes."""
    masks, settings = TrainingMasks(data), data.pipeline.generate.vary_masks
    alike = by_kind(masks.sources)
    found = []
    for number, row in enumerate(cases):
        generator = numpy_generator(seed, "peers", "variation", number)
        found.append(masks.shaped(row, *draw_shape(settings, masks.sources[row], alike, generator)))
    return torch.from_numpy(np.stack(found))[:, None]
