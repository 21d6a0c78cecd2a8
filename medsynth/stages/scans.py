"""Requests to scans and masks, in batches that fill the device."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from medsynth.config.generate import Sampling
from medsynth.config.grid import Grid
from medsynth.diffusion.batch_size import BatchSize
from medsynth.diffusion.geometry import centred_affine, grid_of, grids_of
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.errors import DataError
from medsynth.imaging.grid import in_axis_order_of
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.scan import Scan, describe_mm, make_scan, same_grid, spacing_mm
from medsynth.imaging.synthetic.segmentation import read_segmentation
from medsynth.imaging.vary import Body, varied
from medsynth.models.conditions import mask_labels
from medsynth.progress import Progress
from medsynth.stages.background import ahead
from medsynth.stages.request import Request

MASK_THREADS = 8
"""That make masks ready for a device; each takes seconds where they are large, as long as many volumes."""
BODIES_BYTES = 2**30
"""Memory for what masks are mixed with."""


def generate_all(
    pipeline: LatentVolumePipeline,
    requests: Sequence[Request],
    sampling: Sampling,
    batch_size: BatchSize,
    *,
    in_all: Sequence[Request],
    progress: Progress,
) -> Generator[tuple[Request, Scan, Scan | None]]:
    """Each request with its scan and mask, as they get finished, those of one grid after those of another.

    Masks are made ready for one batch at a time, and a few ahead on a device that computes scans in batches. `in_all`: the
    scans for which the size of the batches is chosen, the same before and after an interruption.
    """
    kind_of = partial(_kind_of, pipeline)
    counts = Counter(map(kind_of, in_all))
    mask_of = mask_reader(pipeline)
    threads = min(MASK_THREADS, os.cpu_count() or 1) if pipeline.fills_a_device else 0
    with pipeline.keeping():
        for kind, group in itertools.groupby(sorted(requests, key=kind_of), kind_of):
            left = list(group)
            with closing(ahead(mask_of, left, threads)) as loaded:
                while left:
                    size = _batch_size(pipeline, left[0], counts[kind], sampling, batch_size)
                    batch, left = left[:size], left[size:]
                    masks = [mask for _ in batch if (mask := next(loaded)) is not None]
                    volumes = pipeline.stream(
                        [
                            {name: request.conditions.get(name) for name in pipeline.condition_declaration}
                            for request in batch
                        ],
                        masks=torch.stack([torch.as_tensor(np.asarray(mask)) for mask in masks]) if masks else None,
                        seeds=[request.seed for request in batch],
                        batch_size=size,
                        progress=progress,
                        **sampling.model_dump(),
                    )
                    for request, volume in zip(batch, volumes, strict=True):
                        yield request, volume.scan, volume.mask


def try_batch_sizes(pipeline: LatentVolumePipeline, requests: Sequence[Request], sampling: Sampling) -> None:
    """Find the batch sizes that these requests will be generated in beforehand, so that trying them is in nobody's clock."""
    alike: dict[tuple[str, bool], list[Request]] = defaultdict(list)
    for request in requests:
        alike[_kind_of(pipeline, request)].append(request)
    for group in alike.values():
        _batch_size(pipeline, group[0], len(group), sampling, "auto")


def _grid(pipeline: LatentVolumePipeline, request: Request) -> Grid:
    return grid_of(pipeline.geometry, request.conditions)


def _kind_of(pipeline: LatentVolumePipeline, request: Request) -> tuple[str, bool]:
    """Requests alike in the grid and in having a mask can be computed together."""
    return str(_grid(pipeline, request)), request.mask is not None


def _batch_size(
    pipeline: LatentVolumePipeline, request: Request, count: int, sampling: Sampling, wanted: BatchSize
) -> int:
    """For `count` requests like this one."""
    guidance = Guidance.of(sampling)
    return pipeline.batch_size_for(
        wanted, count, grid=_grid(pipeline, request), guidance=guidance, masked=request.mask is not None
    )


def check_masks(pipeline: LatentVolumePipeline, requests: Sequence[Request]) -> int:
    """Raise DataError for a mask that cannot be used, before anything is written. Returns how many hold no label at all."""
    first = {request.mask: request for request in requests if request.mask is not None}
    masks = [_read(pipeline, path, _grid(pipeline, request), request.case) for path, request in first.items()]
    mixed = {path: request for request in requests for path in request.others if path not in first}
    for path, request in mixed.items():
        _read(pipeline, path, _grid(pipeline, request), request.case)
    return sum(not bool(mask.as_tensor().any()) for mask in masks)


def mask_reader(pipeline: LatentVolumePipeline) -> Callable[[Request], Scan | None]:
    """The masks of requests, varied as these say. Bodies to mix with are kept as far as `BODIES_BYTES` go."""

    def body(path: Path, grid: Grid) -> Body | None:
        return Body.of(np.asarray(_read(pipeline, path, grid, "others"))[0], grid.spacing_mm)

    largest = max(math.prod(grid.box) for grid in grids_of(pipeline.geometry))
    depths = 1 + len(mask_labels(pipeline.condition_declaration))
    kept_body = lru_cache(BODIES_BYTES // (largest * depths * np.float32().nbytes))(body)

    def mask_of(request: Request) -> Scan | None:
        if request.mask is None:
            return None
        grid = _grid(pipeline, request)
        mask = _read(pipeline, request.mask, grid, request.case)
        if request.variation is None:
            return mask
        others = [kept_body(path, grid) for path in request.others]
        return same_grid(mask, varied(np.asarray(mask)[0], grid.spacing_mm, request.variation, others)[None])

    return mask_of


def _read(pipeline: LatentVolumePipeline, path: Path, grid: Grid, wanted_for: str) -> Scan:
    """A mask of a grid's box and spacing, turned so that its axes run as the model's; where it lies in the world does not
    matter, because a synthetic scan has its own place.

    Raises DataError where it is on another grid or holds other values than the declared labels. Errors name what it is wanted
    for, and not the file: it may be called after a patient.
    """
    geometry = pipeline.geometry
    like = make_scan(
        np.zeros(grid.box, np.float32), centred_affine(grid), modality=geometry["modality"], unit=geometry["unit"]
    )
    try:
        if path.suffix == ".dcm":
            mask = read_segmentation(path, mask_labels(pipeline.condition_declaration), like)
        else:
            mask = in_axis_order_of(read_nifti(path), like)
    except DataError as error:
        raise type(error)(f"mask for {wanted_for}: {error}".replace(path.name, "the file")) from None
    if not grid.fits(mask.shape[1:], spacing_mm(mask)):
        raise DataError(
            f"mask for {wanted_for}: expected {list(grid.box)} voxels of {describe_mm(grid.spacing_mm)}, as the model's box, "
            f"found {list(mask.shape[1:])} of {describe_mm(spacing_mm(mask))}; prepare it with the same settings"
        )
    values, declared = np.asarray(mask), mask_labels(pipeline.condition_declaration)
    unknown = np.setdiff1d(values, [0, *declared.values()])
    if len(unknown):
        stated = ", ".join(f"{value} ({name})" for name, value in declared.items())
        raise DataError(
            f"mask for {wanted_for}: expected no values but 0 and {stated}, found {len(unknown)} others, such as "
            f"{unknown[0]:g}; renumber its labels"
        )
    return same_grid(like, values.astype(np.uint8))
