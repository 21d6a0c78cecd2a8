"""Scans damaged on purpose, to show that the instruments move the right way on the data at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsynth.evaluation.evidence import Rung
from medsynth.evaluation.features import Frame, extract
from medsynth.evaluation.fidelity import MINIMUM, point_figures
from medsynth.evaluation.volumes import LabelledVolumes
from medsynth.progress import Advance
from medsynth.seeding import numpy_generator, torch_generator

Floats = NDArray[np.float64]
Damage = Literal["noise", "blur", "intensity shift"]

DAMAGES: tuple[Damage, ...] = get_args(Damage)
CHECKED: dict[Damage, float] = {"noise": 0.1, "blur": 0.5, "intensity shift": 0.1}
"""Strengths of the instrument check: noise and shift of 5 % of the intensity range, every voxel half blurred."""
PLANTED_NOISE = 0.02
HALVES = 20
"""Random halves that the loss of half of the modes is compared with."""


def damage(voxels: Tensor, kind: Damage, strength: float, generator: torch.Generator) -> Tensor:
    """`voxels` [N, 1, X, Y, Z] in [-1, 1] with one damage, clipped back to [-1, 1].

    strength: standard deviation of the noise; share of each voxel that is replaced by its neighbourhood's mean; shift
    of all intensities. 0 leaves the scans as they are.
    """
    if kind == "noise":
        changed = voxels + strength * torch.randn(voxels.shape, generator=generator)
    elif kind == "blur":
        padded = F.pad(voxels, [1] * 6, mode="replicate")
        changed = (1 - strength) * voxels + strength * F.avg_pool3d(padded, 3, stride=1)
    else:
        changed = voxels + strength
    return changed.clamp(-1, 1)


def planted_copies(training: LabelledVolumes, count: int, seed: int) -> LabelledVolumes:
    """Up to `count` training scans, moved by one voxel along an axis and with a little noise: what a memorising model
    would give out."""
    chosen = numpy_generator(seed, "planted", "which").permutation(len(training))[:count]
    copies = training.take(chosen)
    noise = PLANTED_NOISE * torch.randn(copies.voxels.shape, generator=torch_generator(seed, "planted", "noise"))
    moved = _shift_one_voxel(copies.voxels)
    masks = None if copies.masks is None else _shift_one_voxel(copies.masks)
    return replace(copies, voxels=(moved + noise).clamp(-1, 1), masks=masks)


def _shift_one_voxel(volume: Tensor) -> Tensor:
    """Moved by one voxel along the first axis; the plane at the edge is repeated."""
    return torch.cat([volume[:, :, :1], volume[:, :, :-1]], dim=2)


def half_of_the_modes(features: Floats) -> NDArray[np.int64]:
    """The half of the rows [N, D] that lies on one side of their main axis of variation."""
    main = np.linalg.svd(features - features.mean(0), full_matrices=False)[2][0]
    return np.sort(np.argsort(features @ main, kind="stable")[: len(features) // 2])


def ladder(
    held_out: LabelledVolumes,
    training: dict[str, Floats],
    undamaged: dict[str, Floats],
    *,
    with_lesions: bool,
    seed: int,
    device: torch.device,
    advance: Advance,
) -> tuple[Rung, ...]:
    """Every damage in every feature space, with what the metrics did.

    training, undamaged: raw features per space of the training and the held-out scans. Noise, blur and an intensity
    shift must raise the Frechet distance and KID; losing half of the modes (either half) must lower recall and coverage,
    compared with as many scans taken at random. A rung that is not as expected says that this many scans cannot show
    that damage in that space.
    """
    rungs = []
    frames = {space: Frame.fit(raw) for space, raw in training.items()}
    reference = {space: frames[space].standardise(raw) for space, raw in training.items()}
    before = {
        space: point_figures(frames[space], reference[space], frames[space].standardise(raw))
        for space, raw in undamaged.items()
    }
    for kind, strength in CHECKED.items():
        voxels = damage(held_out.voxels, kind, strength, torch_generator(seed, "ladder", kind))
        raw = extract({kind: replace(held_out, voxels=voxels)}, device, advance, with_lesions)
        for space, frame in frames.items():
            after = point_figures(frame, reference[space], frame.standardise(raw[space][kind]))
            rungs += [_rung(kind, space, m, before[space][m], after[m], rises=True) for m in ("frechet", "kid")]
    if len(held_out) // 2 >= MINIMUM:
        for space, frame in frames.items():
            judged = frame.standardise(undamaged[space])
            kept = half_of_the_modes(frame.reduce(judged))
            lost = np.setdiff1d(np.arange(len(judged)), kept)[: len(kept)]
            generator = numpy_generator(seed, "ladder", "modes")
            at_random = [generator.permutation(len(judged))[: len(kept)] for _ in range(HALVES)]
            whole = [point_figures(frame, reference[space], judged[half]) for half in at_random]
            halves = [point_figures(frame, reference[space], judged[half]) for half in (kept, lost)]
            for metric in ("recall", "coverage"):
                undamaged_mean, damaged_mean = (
                    float(np.mean([one[metric] for one in some])) for some in (whole, halves)
                )
                rungs.append(_rung("half of the modes lost", space, metric, undamaged_mean, damaged_mean, rises=False))
    return tuple(rungs)


def _rung(kind: str, space: str, metric: str, undamaged: float, damaged: float, *, rises: bool) -> Rung:
    moved = damaged > undamaged if rises else damaged < undamaged
    return Rung(kind, space, metric, undamaged, damaged, as_expected=bool(moved))
