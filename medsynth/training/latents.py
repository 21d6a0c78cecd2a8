"""Latents on disk: every volume encoded once, as the mean of its posterior, and memory mapped ever after."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth.cohort.manifest import Case
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.training import TILE_VOXELS
from medsynth.digests import file_sha256
from medsynth.errors import DataError, UnreadableError
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.progress import Progress
from medsynth.training.batches import per_grid
from medsynth.training.variants import AS_SCANNED, Degrees, Variant, mirrored, turned, turned_labels

FORMAT = 1
LATENTS, MASKS, INDEX = "latents.npy", "masks.npy", "store.json"
PARTIAL = ".partial"
SMALLEST_SCALE = 1e-6
"""A channel that is constant over the training split holds nothing; this keeps it at zero instead of dividing by it."""

Row = Mapping[str, str | float | None]
Wanted = Sequence[tuple[Variant, Sequence[Degrees | None]]]
"""Every variant, and how it turns each case."""


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel over a whole training split."""

    shift: Tensor
    """[C] float32."""
    scale: Tensor
    """[C] float32."""

    @classmethod
    def of(cls, stores: LatentStore | Sequence[LatentStore]) -> LatentStatistics:
        """The statistics of every latent of the training split, in a store or in one per grid; summed in float64.

        Every latent voxel counts alike, so a large volume counts for more than a small one.
        """
        parts = per_grid(stores)
        count = sum(len(store) * math.prod(store.latents.shape[2:]) for store in parts)
        shift = sum(latent.sum((1, 2, 3), dtype=np.float64) for store in parts for latent in store.latents) / count
        centred = (latent - shift[:, None, None, None] for store in parts for latent in store.latents)
        variance = sum(np.square(latent).sum((1, 2, 3)) for latent in centred) / count
        scale = torch.from_numpy(np.sqrt(variance)).clamp_min(SMALLEST_SCALE)
        return cls(torch.from_numpy(shift).float(), scale.float())

    def normalise(self, latents: Tensor) -> Tensor:
        """(latents - shift) / scale, [B, C, x, y, z]."""
        return (latents - self.shift.view(-1, 1, 1, 1)) / self.scale.view(-1, 1, 1, 1)

    def write(self, path: Path) -> None:
        """Save as JSON."""
        _write_json(path, {"shift": self.shift.tolist(), "scale": self.scale.tolist()})

    @classmethod
    def read(cls, path: Path) -> LatentStatistics:
        """What `write` saved. Raises UnreadableError."""
        data = _read_json(path)
        try:
            return cls(torch.tensor(data["shift"]), torch.tensor(data["scale"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableError(f"{path.name} holds no latent statistics; encode again with --force") from error


@dataclass(frozen=True)
class LatentCase:
    """What a latent belongs to."""

    case: str
    patient: str
    split: str
    sha256: str
    """Digest of the image file that was encoded."""
    mirrored: str = ""
    """Axes along which the volume was mirrored before it was encoded, such as `xy`."""
    turned: Degrees | None = None
    """How it was turned then."""


@dataclass(frozen=True)
class LatentStore:
    """Raw latents (posterior means, not yet normalised) of a split on one grid, with masks and conditions in the same order."""

    latents: NDArray[np.float32]
    """[N, C, x, y, z], memory mapped."""
    masks: NDArray[np.uint8] | None
    """[N, 1, X, Y, Z] on the volumes' own grid, memory mapped."""
    rows: tuple[Row, ...]
    """Conditions of each case."""
    cases: tuple[LatentCase, ...]
    digest: str
    """sha256 of the index, and so of everything."""

    def __len__(self) -> int:
        return len(self.cases)

    @classmethod
    def open(cls, folder: Path) -> LatentStore:
        """What `encode_latents` wrote. Raises UnreadableError where a file is missing, altered or of another format."""
        index = _read_json(folder / INDEX)
        found = index.get("format") if isinstance(index, dict) else None
        if found != FORMAT:
            raise UnreadableError(f"latents: expected format {FORMAT}, found {found!r}; encode again with --force")
        try:
            return cls._listed(folder, index)
        except (AttributeError, KeyError, TypeError) as error:
            raise UnreadableError(f"latents: {INDEX} is not what was written; encode again with --force") from error

    @classmethod
    def _listed(cls, folder: Path, index: Mapping[str, Any]) -> LatentStore:
        arrays: dict[str, NDArray[Any]] = {}
        for name, entry in index["arrays"].items():
            path = folder / name
            if not path.is_file() or file_sha256(path) != entry["sha256"]:
                raise UnreadableError(f"latents: {name} is missing or was altered; encode again with --force")
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        digest = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
        rows = tuple(index["rows"])
        cases = tuple(
            LatentCase(**{**case, "turned": tuple(turn) if (turn := case.get("turned")) else None})
            for case in index["cases"]
        )
        return cls(arrays[LATENTS], arrays.get(MASKS), rows, cases, digest)

    def take(self, cases: Sequence[int] | Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents [B, C, x, y, z] and masks [B, 1, X, Y, Z] of the cases with these numbers, copied into memory."""
        picked = np.asarray(cases, dtype=np.int64)
        masks = None if self.masks is None else torch.from_numpy(self.masks[picked])
        return torch.from_numpy(self.latents[picked]), masks


def open_stores(folder: Path) -> tuple[LatentStore, ...]:
    """The store in `folder`, or one for each grid in the folders within, in the order of their names."""
    if (folder / INDEX).is_file():
        return (LatentStore.open(folder),)
    places = sorted(place for place in folder.glob("*") if place.is_dir() and place.suffix != PARTIAL)
    if not places:
        raise UnreadableError(f"latents: {folder.name} is missing; encode again with --force")
    return tuple(LatentStore.open(place) for place in places)


def encode_latents(
    autoencoder: VolumeAutoencoder,
    volumes: VolumeSet,
    folder: Path,
    device: torch.device,
    progress: Progress,
    *,
    variants: Sequence[Variant] = AS_SCANNED,
    seed: int = 0,
    tile_voxels: int = TILE_VOXELS,
) -> LatentStore:
    """Encode `volumes` and write a latent store at `folder`, whole or not at all; one that is there is replaced.

    The mean of each posterior is kept, never a draw. All volumes come once per variant, masks along with them; `seed` decides
    how copies are turned. They are mirrored and turned before they are encoded, because a mirrored latent is not the latent of
    the mirrored volume. At most `tile_voxels` voxels are encoded at once. Raises DataError where a latent is not finite.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    wanted = [(variant, [variant.turn_of(case.case, seed) for case in volumes.cases]) for variant in variants]
    try:
        _write_latents(autoencoder.to(device).eval(), volumes, wanted, partial / LATENTS, device, progress, tile_voxels)
        if volumes.masks is not None:
            _write_masks(volumes.masks, volumes.cases, wanted, partial / MASKS)
        names = [LATENTS] if volumes.masks is None else [LATENTS, MASKS]
        index = {
            "format": FORMAT,
            "arrays": {name: {"sha256": file_sha256(partial / name)} for name in names},
            "cases": [
                asdict(LatentCase(c.case, c.patient, c.split, c.sha256, variant.mirrored, turn))
                for variant, turns in wanted
                for c, turn in zip(volumes.cases, turns, strict=True)
            ],
            "rows": [dict(c.conditions) for _ in variants for c in volumes.cases],
        }
        _write_json(partial / INDEX, index)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return LatentStore.open(folder)


# Arrays are written and not memory mapped: on a full disk a write is an error, a mapped page the death of the process.


@torch.no_grad()
def _write_latents(
    autoencoder: VolumeAutoencoder,
    volumes: VolumeSet,
    wanted: Wanted,
    path: Path,
    device: torch.device,
    progress: Progress,
    tile_voxels: int,
) -> None:
    factor, channels = autoencoder.config["downsampling"], autoencoder.config["latent_channels"]
    grid = volumes.volumes.shape[2:]
    count = len(wanted) * len(volumes.cases)
    shape = (count, channels, *(size // factor for size in grid))
    at_once = max(1, tile_voxels // math.prod(grid))
    with path.open("wb") as file, progress.task("encoding", count) as advance:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for (variant, turns), start in product(wanted, range(0, len(volumes.cases), at_once)):
            chosen = range(start, min(start + at_once, len(volumes.cases)))
            scans = mirrored(volumes.volumes[chosen.start : chosen.stop], variant.mirrored)
            views = [_view(turned, scan, turns[i], volumes.cases[i]) for i, scan in zip(chosen, scans, strict=True)]
            part = torch.stack(views).to(device)
            means = _means(autoencoder, part, tile_voxels).float().cpu()
            if not bool(means.isfinite().all()):
                raise DataError(
                    f"encoding: expected finite latents, found others among cases {start + 1} to {start + len(means)}; "
                    "the autoencoder's training went wrong: train it again with a lower learning rate"
                )
            file.write(means.contiguous().numpy().astype("<f4", copy=False).tobytes())
            advance(len(means))


def _write_masks(masks: Tensor, cases: Sequence[Case], wanted: Wanted, path: Path) -> None:
    shape = (len(wanted) * len(masks), *masks.shape[1:])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for variant, turns in wanted:
            for mask, turn, case in zip(masks, turns, cases, strict=True):
                view = _view(turned_labels, mirrored(mask[None], variant.mirrored)[0], turn, case)
                file.write(view.contiguous().numpy().tobytes())


def _view(turn: Callable[..., Tensor], volume: Tensor, degrees: Degrees | None, case: Case) -> Tensor:
    return volume if degrees is None else turn(volume, degrees, case.spacing_mm)


def _means(autoencoder: VolumeAutoencoder, volumes: Tensor, tile_voxels: int) -> Tensor:
    """Raw posterior means; in tiles where a volume is too large for one call."""
    if math.prod(volumes.shape[2:]) <= tile_voxels:
        return autoencoder.encode(volumes).mean
    return autoencoder.restore(autoencoder.encode_tiled(volumes, tile_voxels))


def _write_json(path: Path, data: Any) -> None:
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"latents: {path.name} is missing or damaged; encode again with --force") from error
    return data
