"""The features of what one sampler made, and of real scans, measured a few scans at a time and kept on disk."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth.cohort.grids import common_grid
from medsynth.cohort.manifest import Manifest
from medsynth.cohort.volumes import load_mask, load_volume, onto
from medsynth.config.generate import Sampling
from medsynth.diffusion.geometry import grids_of
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.evaluation.features import SPACES, extract
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import spacing_mm
from medsynth.progress import Advance, Silent
from medsynth.stages.files import write_bytes
from medsynth.stages.request import Request
from medsynth.stages.scans import generate_all, try_batch_sizes

AT_ONCE = 8
SECONDS = "seconds per volume"

Features = Mapping[str, NDArray[np.float64]]
"""By space, [N, D]."""
Piece = tuple[Tensor, Tensor | None]
"""A scan [1, X, Y, Z] in [-1, 1] and its mask, if there is one, on the one grid on which all can be compared."""


def make_cell(
    pipeline: LatentVolumePipeline,
    sampling: Sampling,
    requests: Sequence[Request],
    device: torch.device,
    advance: Advance,
    *,
    lesions: bool,
) -> tuple[float, Features]:
    """Seconds per volume, of sampling and decoding alone, and the features of all requests' scans."""
    rule, grid = IntensityRule.from_json(pipeline.intensity), common_grid(grids_of(pipeline.geometry))
    spent = 0.0

    try_batch_sizes(pipeline, requests, sampling)

    def pieces() -> Iterator[Piece]:
        nonlocal spent
        finished = generate_all(pipeline, requests, sampling, "auto", in_all=requests, progress=Silent())
        start = time.perf_counter()
        for _, scan, mask in finished:
            spent += time.perf_counter() - start
            voxels = onto(rule.normalise(scan.as_tensor(), rule.model_limits()), spacing_mm(scan), grid)
            yield voxels, None if mask is None else onto(mask.as_tensor(), spacing_mm(mask), grid)
            advance(1)
            start = time.perf_counter()

    features = _measure(pieces(), device, lesions=lesions)
    return spent / len(requests), features


def real_features(
    part: Manifest, pipeline: LatentVolumePipeline, device: torch.device, advance: Advance, *, lesions: bool
) -> Features:
    """Features of a manifest's scans."""
    rule, grid = IntensityRule.from_json(pipeline.intensity), common_grid(grids_of(pipeline.geometry))

    def pieces() -> Iterator[Piece]:
        for case in part.cases:
            mask = onto(load_mask(part, case), case.spacing_mm, grid) if lesions else None
            yield onto(load_volume(part, case, rule), case.spacing_mm, grid), mask
            advance(1)

    return _measure(pieces(), device, lesions=lesions)


def _measure(pieces: Iterable[Piece], device: torch.device, *, lesions: bool) -> Features:
    found: dict[str, list[NDArray[np.float64]]] = {space: [] for space in SPACES}
    left = iter(pieces)
    while chunk := list(islice(left, AT_ONCE)):
        voxels = torch.stack([scan for scan, _ in chunk])
        masks = torch.stack([mask for _, mask in chunk if mask is not None]) if lesions else None
        names = tuple(map(str, range(len(chunk))))
        volumes = LabelledVolumes(voxels, masks, None, (), names, names)
        measured = extract({"": volumes}, device, lambda done: None, lesions)
        for space in SPACES:
            found[space].append(measured[space][""])
    return {space: np.concatenate(parts) for space, parts in found.items()}


def write_cell(path: Path, seconds_per_volume: float, features: Features) -> None:
    """Keep a cell, whole or not at all."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {SECONDS: np.array(seconds_per_volume), **features}
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def read_cell(path: Path) -> tuple[float, Features]:
    """What `write_cell` kept."""
    with np.load(path, allow_pickle=False) as stored:
        return float(stored[SECONDS]), {space: stored[space] for space in SPACES}
