"""What varying masks hides and what it costs: masks as they are, turned and bent, and mixed, beside held-out patients'.

    python -m benchmarks.masks --task hippocampus
    python -m benchmarks.masks --task nodules

Twice as many masks are asked for as there are training scans, as `generate` asks for them. `closer` and `membership` are the
report's figures for masks. `shape` is the Frechet distance to the training masks in how long, wide and rugged a body is, where
it is thickest, how it lies, and where its labels lie to one another, each in units of its spread among training masks:
small where masks look like patients'. Needs the real scans that MEDSYNTH_DATA names.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import machine, write

if TYPE_CHECKING:
    from benchmarks.peers.data import Data, TrainingMasks
    from medsynth.cohort.volumes import VolumeSet
    from medsynth.evaluation.evidence import Estimate

Floats = NDArray[np.float64]
Labels = NDArray[np.uint8]

NAME = "masks"
WAYS: Mapping[str, Mapping[str, float]] = {
    "as they are": {"mix": 0, "rotate_degrees": 0, "bend": 0},
    "turned and bent": {"mix": 0},
    **{f"mixed of {count}": {"mix": count} for count in (3, 6, 12, 24)},
}
SEED = 1
LEAST_SPREAD = 0.01
"""Of a number among training masks; less than that is rounding to voxels."""


def measure(data: Data) -> list[dict[str, Any]]:
    """A row for every way of varying masks, and one for held-out patients' masks."""
    from benchmarks.peers.data import TrainingMasks
    from medsynth.evaluation import privacy
    from medsynth.evaluation.statistics import Resampling

    training, held_out = data.splits["train"], [data.splits[name] for name in ("validation", "test")]
    spacing = training.cases[0].spacing_mm
    known, others = TrainingMasks(data), np.concatenate([_masks(split) for split in held_out])
    patients = tuple(case.patient for split in (training, *held_out) for case in split.cases)
    vectors = [_vectors(masks) for masks in (known.labels, others)]
    scale = np.stack([_shape(mask, spacing) for mask in known.labels])
    rows = [{"way": "held-out patients'", "shape": round(_distance(scale, others, spacing), 2)}]
    for way, settings in WAYS.items():
        made, sources = _made(known, settings)
        view = privacy.View(*vectors, _vectors(made), vectors[0], *vectors, _vectors(made))
        audit, _ = privacy.audit_space(privacy.MASKS, view, patients, Resampling(1000, 0.95), seed=SEED)
        alike = [_dice(mask, known.labels[source]) for mask, source in zip(made, sources, strict=True)]
        rows.append(
            {
                "way": way,
                "dice_with_own": round(float(np.mean(alike)), 3),
                "closer": _rounded(audit.closer),
                "nominal": round(audit.nominal, 3),
                "membership": _rounded(audit.membership),
                "shape": round(_distance(scale, made, spacing), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _masks(split: VolumeSet) -> Labels:
    assert split.masks is not None
    return np.asarray(split.masks[:, 0].numpy(), np.uint8)


def _made(known: TrainingMasks, settings: Mapping[str, float]) -> tuple[list[Labels], list[int]]:
    """Masks as `generate` would ask for them, and the training case that each was drawn from."""
    from medsynth.config.generate import Generate
    from medsynth.stages.request import draw_requests

    asked = Generate.model_validate({"vary_masks": dict(settings)})
    profile = {"by": None, "values": {"": {"share": 1.0}}}
    requests = draw_requests(asked, {}, profile, known.sources, count=2 * len(known.sources), seed=SEED)
    rows = [int(str(request.mask)) for request in requests]
    made = [known.shaped(row, each.variation, each.others) for row, each in zip(rows, requests, strict=True)]
    return made, rows


def _rounded(estimate: Estimate) -> list[float]:
    return [round(x, 3) for x in (estimate.value, estimate.low, estimate.high)]


def _vectors(masks: Labels | list[Labels]) -> Floats:
    import torch

    from medsynth.evaluation.privacy import mask_vectors

    return mask_vectors(torch.from_numpy(np.stack(list(masks)))[:, None])


def _dice(one: Labels, other: Labels) -> float:
    return float(2 * ((one > 0) & (other > 0)).sum() / max(1, (one > 0).sum() + (other > 0).sum()))


def _distance(known: Floats, masks: Labels | list[Labels], spacing: tuple[float, ...]) -> float:
    from medsynth.evaluation.distances import frechet, gaussian_fit

    centre, spread = known.mean(0), np.maximum(known.std(0), LEAST_SPREAD)
    judged = np.stack([_shape(mask, spacing) for mask in masks if mask.any()])
    return frechet(*gaussian_fit((known - centre) / spread), *gaussian_fit((judged - centre) / spread)).item()


def _shape(mask: Labels, spacing: tuple[float, ...]) -> Floats:
    """[D], of a mask's body, whatever its size and place."""
    from scipy.ndimage import distance_transform_edt

    voxel = np.asarray(spacing)
    inside = np.argwhere(mask > 0) * voxel
    radius = (3 * len(inside) * voxel.prod() / (4 * np.pi)) ** (1 / 3)
    spreads, axes = np.linalg.eigh(np.cov(inside.T) + 1e-9 * np.eye(3))
    lengths = np.sqrt(spreads[::-1])
    body = np.pad(mask > 0, 1)
    faces = [np.abs(np.diff(body.astype(np.int8), axis=axis)).sum() * voxel.prod() / voxel[axis] for axis in range(3)]
    thickest = distance_transform_edt(body, sampling=voxel).max()
    centres = [(np.argwhere(mask == label) * voxel).mean(0) for label in np.unique(mask[mask > 0])]
    apart = [(each - centres[0]) / radius for each in centres[1:]]
    shape = [lengths[1] / lengths[0], lengths[2] / lengths[1], sum(faces) / radius**2, thickest / radius]
    return np.concatenate([shape, np.abs(axes[:, -1]), *apart])


def main(arguments: list[str] | None = None) -> None:
    """Measure one task and put it into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["hippocampus", "nodules"], default="hippocampus")
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="where prepared scans are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    from benchmarks.peers.data import load_data

    data = load_data(options.task, options.folder / options.task / "data")
    name = f"{NAME}-{options.task}"
    print(
        write(name, {"task": options.task, "seed": SEED, "machine": machine("cpu"), "rows": measure(data)}, options.out)
    )


if __name__ == "__main__":
    main()
