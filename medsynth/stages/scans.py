"""Requests to scans and masks, in batches that fill the device."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from functools import partial

import numpy as np
import torch

from medsynth.config.generate import Sampling
from medsynth.diffusion.batch_size import BatchSize
from medsynth.diffusion.geometry import centred_affine, grid_of
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.errors import DataError
from medsynth.imaging.grid import in_axis_order_of
from medsynth.imaging.nifti import read_nifti
from medsynth.imaging.scan import Scan, describe_mm, make_scan, same_grid, spacing_mm
from medsynth.imaging.synthetic.segmentation import read_segmentation
from medsynth.imaging.vary import varied
from medsynth.models.conditions import mask_labels
from medsynth.progress import Progress
from medsynth.stages.request import Request


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

    Masks are read for one batch at a time. `in_all`: the scans for which the size of the batches is chosen, the same
    before and after an interruption.
    """
    kind_of = partial(_kind_of, pipeline)
    counts = Counter(map(kind_of, in_all))
    with pipeline.keeping():
        for kind, group in itertools.groupby(sorted(requests, key=kind_of), kind_of):
            left = list(group)
            while left:
                size = _batch_size(pipeline, left[0], counts[kind], sampling, batch_size)
                batch, left = left[:size], left[size:]
                masks = [mask for request in batch if (mask := _load_mask(pipeline, request)) is not None]
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


def _kind_of(pipeline: LatentVolumePipeline, request: Request) -> tuple[str, bool]:
    """Requests alike in the grid and in having a mask can be computed together."""
    return str(grid_of(pipeline.geometry, request.conditions)), request.mask is not None


def _batch_size(
    pipeline: LatentVolumePipeline, request: Request, count: int, sampling: Sampling, wanted: BatchSize
) -> int:
    """For `count` requests like this one."""
    guidance = Guidance.of(sampling)
    grid = grid_of(pipeline.geometry, request.conditions)
    return pipeline.batch_size_for(wanted, count, grid=grid, guidance=guidance, masked=request.mask is not None)


def check_masks(pipeline: LatentVolumePipeline, requests: Sequence[Request]) -> int:
    """Raise DataError for a mask that cannot be used, before anything is written. Returns how many hold no label at all."""
    masks = [_load_mask(pipeline, request) for request in {request.mask: request for request in requests}.values()]
    return sum(mask is not None and not bool(mask.as_tensor().any()) for mask in masks)


def _load_mask(pipeline: LatentVolumePipeline, request: Request) -> Scan | None:
    """A mask of the box and spacing of its grid, turned so that its axes run as the model's; where it lies in the world does
    not matter, because a synthetic scan has its own place.

    Raises DataError where it is on another grid or holds other values than the declared labels. Errors name the scan that was
    asked for, and not the file: it may be called after a patient.
    """
    if request.mask is None:
        return None
    geometry = pipeline.geometry
    grid = grid_of(geometry, request.conditions)
    like = make_scan(
        np.zeros(grid.box, np.float32), centred_affine(grid), modality=geometry["modality"], unit=geometry["unit"]
    )
    try:
        if request.mask.suffix == ".dcm":
            mask = read_segmentation(request.mask, mask_labels(pipeline.condition_declaration), like)
        else:
            mask = in_axis_order_of(read_nifti(request.mask), like)
    except DataError as error:
        raise type(error)(f"mask for {request.case}: {error}".replace(request.mask.name, "the file")) from None
    if not grid.fits(mask.shape[1:], spacing_mm(mask)):
        raise DataError(
            f"mask for {request.case}: expected {list(grid.box)} voxels of {describe_mm(grid.spacing_mm)}, as the model's box, "
            f"found {list(mask.shape[1:])} of {describe_mm(spacing_mm(mask))}; prepare it with the same settings"
        )
    values, declared = np.asarray(mask), mask_labels(pipeline.condition_declaration)
    unknown = np.setdiff1d(values, [0, *declared.values()])
    if len(unknown):
        stated = ", ".join(f"{value} ({name})" for name, value in declared.items())
        raise DataError(
            f"mask for {request.case}: expected no values but 0 and {stated}, found {len(unknown)} others, such as "
            f"{unknown[0]:g}; renumber its labels"
        )
    labels = values.astype(np.uint8)
    if request.variation is not None:
        labels = varied(labels[0], grid.spacing_mm, request.variation)[None]
    return same_grid(like, labels)
