"""The generator as people use it: conditions and seeds in, scans out.

pipe = LatentVolumePipeline.from_pretrained("model")
out = pipe({"diagnosis": "malignant"}, count=2, seeds=[1, 2])
out.scans[0]      # a MetaTensor [1, X, Y, Z] in the original unit, with its affine
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from medsynth.config.training import TILE_VOXELS
from medsynth.diffusion.guidance import Guidance, Scales, guided
from medsynth.diffusion.model_folder import PARTS, read_json, save_model, verify_model
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.diffusion.samplers import evaluations_used, sample
from medsynth.errors import ConfigError, DataError, ModelFolderError
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import Scan, make_scan
from medsynth.imaging.words import HU
from medsynth.models.conditions import NULL_LABEL, Declaration, Value, encode, mask_name
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.progress import Advance, Progress, Silent
from medsynth.seeding import torch_generator


@dataclass(frozen=True)
class VolumeOutput:
    """What was generated, in the order that was asked for.

    `scans`: [1, X, Y, Z] each, int16 where the unit is HU, else float32. `masks`: the mask each was conditioned on, on
    the same grid, or None. `seeds`: each gives its scan again. `latents`: [N, C, x, y, z] float32, on the CPU.
    """

    scans: list[Scan]
    masks: list[Scan | None]
    seeds: list[int]
    latents: Tensor


@dataclass(frozen=True)
class _Order:
    """Everything a call asks for, checked: one row, one seed and perhaps one mask per volume."""

    rows: list[Mapping[str, Value]]
    seeds: list[int]
    masks: Tensor | None
    encoded: dict[str, Tensor]


DenoisingNetwork = LatentUNet | LatentTransformer


class LatentVolumePipeline(DiffusionPipeline):
    """A diffusers pipeline of an autoencoder and a latent denoiser, and what is needed to use them.

    `objective`, `conditions`, `intensity` and `geometry` are JSON objects: `Objective.to_json`, a declaration
    (`models.conditions`), `IntensityRule.to_json`, and {"spacing_mm", "box", "modality", "unit", "orientation": "RAS"}.
    `tile_voxels`: most voxels that are decoded at once, of one volume; it bounds the memory that decoding takes.
    Raises ModelFolderError where the parts do not belong together.
    """

    def __init__(
        self,
        autoencoder: VolumeAutoencoder,
        denoiser: DenoisingNetwork,
        objective: dict[str, Any] | None = None,
        conditions: dict[str, Any] | None = None,
        intensity: dict[str, Any] | None = None,
        geometry: dict[str, Any] | None = None,
        tile_voxels: int = TILE_VOXELS,
    ) -> None:
        super().__init__()
        if objective is None or conditions is None or intensity is None or geometry is None:
            raise ModelFolderError(f"expected {', '.join(PARTS)} beside the networks; load the model from its folder")
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser)
        self.objective = objective
        self.condition_declaration: Declaration = conditions
        self.intensity = intensity
        self.geometry = geometry
        self.tile_voxels = tile_voxels
        self.provenance: dict[str, Any] = {}
        self._check_parts()

    @property
    def parameters(self) -> dict[str, Any]:
        """What the constructor takes besides the networks."""
        return {
            "objective": self.objective,
            "conditions": self.condition_declaration,
            "intensity": self.intensity,
            "geometry": self.geometry,
        }

    @classmethod
    def from_pretrained(cls, folder: Path | str, **kwargs: Any) -> Self:
        """The pipeline in a model folder on this disk, verified first; nothing is fetched and no code is run.

        `kwargs` as diffusers takes them (`torch_dtype`, `device_map`, ...). Raises ModelFolderError for a folder that
        is none, incomplete, altered, or of a newer format.
        """
        folder = Path(folder)
        verify_model(folder)
        parts = {part: read_json(folder, f"{part}.json") for part in PARTS}
        fixed = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
        shows_bars = diffusers_logging.is_progress_bar_enabled()
        diffusers_logging.disable_progress_bar()
        try:
            pipeline = super().from_pretrained(str(folder), **{**kwargs, **parts, **fixed})
        finally:
            if shows_bars:
                diffusers_logging.enable_progress_bar()
        pipeline.provenance = read_json(folder, "provenance.json")
        return pipeline

    def save_pretrained(self, save_directory: Path | str, **kwargs: Any) -> None:
        """Write a model folder, with the provenance the pipeline was loaded with. Takes no other option."""
        if kwargs:
            raise ConfigError([f"save_pretrained: expected a folder alone, found {', '.join(kwargs)} as well"])
        save_model(self, save_directory, self.provenance)

    @torch.no_grad()
    def __call__(
        self,
        conditions: Mapping[str, Value] | Sequence[Mapping[str, Value]] = (),
        *,
        masks: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        count: int | None = None,
        sampler: str = "flow_heun",
        evaluations: int = 30,
        guidance: Scales = 1.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        guidance_rescale: float = 0.0,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> VolumeOutput:
        """Generate volumes.

        `conditions`: one mapping for all volumes, or one each; a declared condition that is left out or None is not
        steered. `masks`: integer [N, 1, X, Y, Z] of the model's box (N = 1 serves all; 255 everywhere: no mask). `seeds`:
        one per volume, drawn afresh unless given, and returned. `count`: number of volumes; that of the conditions,
        seeds or masks unless given. `guidance`, `guidance_interval`, `guidance_rescale`: see `diffusion.guidance.Guidance`.

        A volume depends on its seed and on what is asked for it, and not on the rest of the call. Kernels add up in
        another order for another batch size (measured: 5e-6 after one call), so the CPU computes one volume at a time,
        which costs 15 % there; a GPU computes full batches of `batch_size`, the last one filled up, and gives the same
        voxels for the same `batch_size`.

        Raises ConfigError for a condition, value, sampler or scale that the model does not know or numbers that do not
        agree, DataError for masks of another shape than the box.
        """
        order = self._order(conditions, masks, seeds, count)
        used = evaluations_used(sampler, evaluations)
        device = self.denoiser.device
        size = 1 if device.type == "cpu" else batch_size
        if batch_size < 1:
            raise ConfigError([f"batch_size: expected at least 1, found {batch_size}"])
        steering = Guidance(guidance, guidance_interval, guidance_rescale)
        steering.check(self.condition_declaration)
        latents = []
        with (progress or Silent()).task("generating", len(order.rows) * used) as advance:
            for start in range(0, len(order.rows), size):
                chosen = [min(start + i, len(order.rows) - 1) for i in range(size)]
                kept = min(size, len(order.rows) - start)
                drawn = self._draw(order, chosen, sampler, evaluations, steering, _per_call(advance, kept))
                latents.append(drawn[:kept].cpu())
        stacked = torch.cat(latents)
        return VolumeOutput(
            scans=[self._scan(latent) for latent in stacked],
            masks=[self._mask(order, i) for i in range(len(order.rows))],
            seeds=order.seeds,
            latents=stacked,
        )

    def _draw(
        self, order: _Order, chosen: list[int], sampler: str, evaluations: int, guidance: Guidance, tick: Advance
    ) -> Tensor:
        """Latents [len(chosen), C, x, y, z] float32 on the device."""
        device, objective = self.denoiser.device, Objective(self.objective)
        shape = (self.denoiser.config.latent_channels, *self._grid())
        seeds = [order.seeds[i] for i in chosen]
        noise = torch.stack([torch.randn(shape, generator=torch_generator(seed, "volume", "noise")) for seed in seeds])
        given = {name: values[chosen].to(device) for name, values in order.encoded.items()}
        mask = mask_name(self.condition_declaration)
        if mask in given and bool((given[mask] == NULL_LABEL).all()):
            del given[mask]  # so that a volume without a mask is computed alike whoever else in the call has one
        denoise = guided(Denoiser(self.denoiser, objective), given, guidance.only(given))

        def counted(x: Tensor, angle: Tensor) -> Tensor:
            clean = denoise(x, angle)
            tick(1)
            return clean

        return sample(
            counted,
            noise.to(device),
            sampler,
            evaluations,
            [torch_generator(seed, "volume", "steps") for seed in seeds],
            shift=objective.shift(math.prod(shape[1:])),
        )

    def _scan(self, latent: Tensor) -> Scan:
        """One latent [C, x, y, z] as a scan in the original unit, the box's centre at the origin of the world."""
        latent = latent[None].to(self.autoencoder.device, self.autoencoder.dtype)
        voxels = self.autoencoder.decode_tiled(latent, self.tile_voxels)[0].float().cpu()
        voxels = IntensityRule.from_json(self.intensity).restore(voxels)
        unit = self.geometry["unit"]
        if unit == HU:
            voxels = voxels.round().to(torch.int16)
        return make_scan(voxels, self._affine(), modality=self.geometry["modality"], unit=unit)

    def _mask(self, order: _Order, index: int) -> Scan | None:
        if order.masks is None or bool((order.masks[index] == NULL_LABEL).all()):
            return None
        mask = order.masks[index].to("cpu", torch.uint8)
        return make_scan(mask, self._affine(), modality=self.geometry["modality"], unit="label")

    def _affine(self) -> list[list[float]]:
        spacing, box = self.geometry["spacing_mm"], self.geometry["box"]
        rows = [[0.0] * 4 for _ in range(3)]
        for axis, (mm, voxels) in enumerate(zip(spacing, box, strict=True)):
            rows[axis][axis] = float(mm)
            rows[axis][3] = -float(mm) * (voxels - 1) / 2
        return [*rows, [0.0, 0.0, 0.0, 1.0]]

    def _grid(self) -> tuple[int, ...]:
        return tuple(size // self.autoencoder.config.downsampling for size in self.geometry["box"])

    def _order(
        self,
        conditions: Mapping[str, Value] | Sequence[Mapping[str, Value]],
        masks: Tensor | None,
        seeds: Sequence[int] | None,
        count: int | None,
    ) -> _Order:
        """The call with its numbers brought together."""
        rows = [conditions] if isinstance(conditions, Mapping) else list(conditions) or [{}]
        shared = isinstance(conditions, Mapping) or not conditions
        if masks is not None:
            masks = self._checked_masks(masks)
        numbers = {"count": count, "seeds": None if seeds is None else len(seeds)}
        numbers["conditions"] = None if shared else len(rows)
        numbers["masks"] = None if masks is None or len(masks) == 1 else len(masks)
        given = {name: number for name, number in numbers.items() if number is not None}
        if len(set(given.values())) > 1:
            told = ", ".join(f"{name} {number}" for name, number in given.items())
            raise ConfigError([f"expected as many conditions, masks and seeds as volumes, found {told}"])
        total = next(iter(given.values()), 1)
        if total < 1:
            raise ConfigError([f"count: expected at least 1 volume, found {total}"])
        rows = rows * total if shared else rows
        if masks is not None and len(masks) == 1:
            masks = masks.expand(total, *masks.shape[1:])
        drawn = [secrets.randbits(53) for _ in range(total)] if seeds is None else [int(seed) for seed in seeds]
        return _Order(rows, drawn, masks, encode(self.condition_declaration, rows, masks))

    def _checked_masks(self, masks: Tensor) -> Tensor:
        if mask_name(self.condition_declaration) is None:
            raise ConfigError(["masks: expected none, because this model is not conditioned on masks; leave them out"])
        expected = (1, *self.geometry["box"])
        if masks.ndim != 5 or tuple(masks.shape[1:]) != expected or masks.is_floating_point() or len(masks) == 0:
            raise DataError(
                f"expected integer masks [N, {', '.join(map(str, expected))}], found {masks.dtype} {list(masks.shape)}; "
                "prepare them on the model's grid"
            )
        return masks.as_subclass(Tensor)

    def _check_parts(self) -> None:
        autoencoder, denoiser = self.autoencoder.config, self.denoiser.config
        pairs = {
            "latent channels": (autoencoder.latent_channels, denoiser.latent_channels),
            "downsampling": (autoencoder.downsampling, denoiser.downsampling),
            "conditions": (self.condition_declaration, dict(denoiser.conditions or {})),
        }
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise ModelFolderError(f"the model's parts disagree about its {what}; copy the whole folder again")
        if any(size % autoencoder.downsampling for size in self.geometry["box"]):
            raise ModelFolderError(
                f"the model's box {self.geometry['box']} is no multiple of {autoencoder.downsampling}"
            )
        IntensityRule.from_json(self.intensity)
        Objective(self.objective)


def _per_call(advance: Advance, volumes: int) -> Advance:
    return lambda calls: advance(calls * volumes)
