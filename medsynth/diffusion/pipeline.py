"""The generator as people use it: conditions and seeds in, scans out.

pipe = LatentVolumePipeline.from_pretrained("model")
out = pipe({"diagnosis": "malignant"}, count=2, seeds=[1, 2])
out.scans[0]      # a MetaTensor [1, X, Y, Z] in the original unit, with its affine
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

from medsynth.config.grid import Grid
from medsynth.config.training import TILE_VOXELS, Precision
from medsynth.diffusion.angle import from_flow_time
from medsynth.diffusion.batch_size import MOST_BY_TRIAL, BatchSize, BatchSizes, unless_out_of_memory
from medsynth.diffusion.device_decoder import DeviceDecoder
from medsynth.diffusion.device_denoiser import DeviceDenoiser, Series
from medsynth.diffusion.geometry import centred_affine, naming
from medsynth.diffusion.guidance import Guidance, Scales, guided
from medsynth.diffusion.model_folder import PARTS, check_parts, check_weights, read_json, save_model, verify_model
from medsynth.diffusion.objective import Objective
from medsynth.diffusion.order import Order, take_order
from medsynth.diffusion.samplers import evaluations_used, sample
from medsynth.errors import ConfigError, ModelFolderError
from medsynth.imaging.intensity import IntensityRule
from medsynth.imaging.scan import Scan, make_scan
from medsynth.imaging.words import HU
from medsynth.models.conditions import NULL_LABEL, Declaration, Value, encode, mask_name, never_withheld, withholdable
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.precision import sampling_precision
from medsynth.progress import Progress, Silent
from medsynth.seeding import torch_generator


@dataclass(frozen=True)
class Volume:
    """One generated volume.

    `scan`: [1, X, Y, Z], int16 where the unit is HU, else float32. `mask`: the mask it was conditioned on, on the same
    grid, or None. `seed`: gives the scan again. `latent`: [C, x, y, z] float32, on the CPU.
    """

    scan: Scan
    mask: Scan | None
    seed: int
    latent: Tensor


@dataclass(frozen=True)
class VolumeOutput:
    """What was generated, in the order that was asked for; each as in `Volume`. `latents`: [N, C, x, y, z]."""

    scans: list[Scan]
    masks: list[Scan | None]
    seeds: list[int]
    latents: Tensor


@dataclass(frozen=True)
class _Way:
    """How a volume is drawn; `used` counts the network calls that come of it."""

    sampler: str
    evaluations: int
    used: int
    guidance: Guidance


DenoisingNetwork = LatentUNet | LatentTransformer


class LatentVolumePipeline(DiffusionPipeline):
    """A diffusers pipeline of an autoencoder and a latent denoiser, and what is needed to use them.

    `objective`, `conditions`, `intensity` and `geometry` are JSON objects: `Objective.to_json`, a declaration
    (`models.conditions`), `IntensityRule.to_json`, and what `diffusion.geometry` says. `tile_voxels`: most voxels that are
    decoded at once, of one volume; it bounds the memory that decoding takes. The attribute `precision` is that of the
    networks' products: `auto` is bf16 on a GPU that computes it and fp32 elsewhere. Where it is bf16 on a GPU, the decoder
    takes float16 instead, which is as fast and eight times as fine. The sampler's own arithmetic keeps the type of the weights.
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
        self.precision: Precision = "auto"
        self.provenance: dict[str, Any] = {}
        self._sizes = BatchSizes()
        check_parts(autoencoder.config, denoiser.config, conditions, geometry)
        IntensityRule.from_json(intensity)
        Objective(objective)
        self._series = Series(lambda: self._on_device())
        self._denoiser = self._on_device()

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
        is none, incomplete, altered, or of another version.
        """
        folder = Path(folder)
        verify_model(folder)
        check_weights(folder)
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

    def __call__(
        self, conditions: Mapping[str, Value] | Sequence[Mapping[str, Value]] = (), **asked: Any
    ) -> VolumeOutput:
        """Generate volumes and return them together; takes and raises what `stream` does."""
        volumes = list(self.stream(conditions, **asked))
        return VolumeOutput(
            scans=[volume.scan for volume in volumes],
            masks=[volume.mask for volume in volumes],
            seeds=[volume.seed for volume in volumes],
            latents=torch.stack([volume.latent for volume in volumes]),
        )

    def stream(
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
        batch_size: BatchSize = "auto",
        progress: Progress | None = None,
    ) -> Iterator[Volume]:
        """Generate volumes one after another: latents in batches, each decoded when it is asked for.

        `conditions`: one mapping for all volumes, or one each; a declared condition that is left out or None is not
        steered; only `grid`, which a model of several grids has, must be given, and be the same for all. `masks`: integer
        [N, 1, X, Y, Z] of the grid's box (N = 1 serves all; 255 everywhere: no mask). `seeds`:
        one per volume, drawn afresh unless given, and returned. `count`: number of volumes; that of the conditions,
        seeds or masks unless given. `guidance`, `guidance_interval`, `guidance_rescale`: see `diffusion.guidance.Guidance`.
        `batch_size`: as for `batch_size_for`.

        A volume depends on its seed and on what is asked for it, and not on the rest of the call. Kernels add up in
        another order for another batch (measured: 5e-6 after one call), so everything but a CUDA device computes one
        volume at a time, which costs 15 % on a CPU: the same bits whatever the batch size. A CUDA device computes
        batches of one size, the last one filled up, so that all volumes meet the same kernels: the same volumes whatever
        the batch size, within rounding. Where its memory runs out after all, the batch is halved and drawn again.

        Raises ConfigError for a condition, value, sampler or scale that the model does not know or numbers that do not
        agree, DataError for masks of another shape than the box, UsageError where memory suffices for no volume.
        """
        order = take_order(self.condition_declaration, self.geometry, conditions, masks, seeds, count)
        steering = Guidance(guidance, guidance_interval, guidance_rescale)
        masked = masks is not None
        size = self.batch_size_for(batch_size, len(order.rows), grid=order.grid, guidance=steering, masked=masked)
        used = evaluations_used(sampler, evaluations)
        return self._volumes(order, _Way(sampler, evaluations, used, steering), size, progress or Silent())

    def keeping(self) -> AbstractContextManager[None]:
        """Within this context calls of `stream` share what was recorded on a GPU; the networks must stay where they are."""
        return self._series.kept()

    def batch_size_for(self, wanted: BatchSize, volumes: int, *, grid: Grid, guidance: Guidance, masked: bool) -> int:
        """How many of `volumes` on `grid` are computed at once.

        One on everything but a CUDA device. There `wanted`, less where memory ran out before; `auto` finds the largest
        that one network call gets through, remembers it for calls like this one, and makes the batches even. Raises
        ConfigError, and UsageError where memory suffices for no volume.
        """
        if wanted != "auto" and wanted < 1:
            raise ConfigError([f"batch_size: expected at least 1, found {wanted}"])
        guidance.check(withholdable(self.condition_declaration), never_withheld(self.condition_declaration))
        if not self.fills_a_device:
            return 1
        kind = self._kind(grid, guidance, masked)
        if wanted != "auto":
            return self._sizes.limited(kind, min(wanted, volumes))
        most = min(volumes, MOST_BY_TRIAL)
        if most == 1:
            return 1
        fits = self._sizes.find(kind, most, lambda size: self._try(size, grid, guidance, masked))
        return math.ceil(volumes / math.ceil(volumes / fits))

    @property
    def fills_a_device(self) -> bool:
        """Whether volumes are computed in batches."""
        return self.denoiser.device.type == "cuda"

    @property
    def computes_in(self) -> Literal["fp32", "bf16"]:
        """What `precision` comes to on the device that the networks are on."""
        return sampling_precision(self.precision, self.denoiser.device)

    def decode(self, latent: Tensor) -> Tensor:
        """Voxels [1, X, Y, Z] float32, about [-1, 1], of a latent [C, x, y, z]: as `stream` decodes. Raises as
        `DeviceDecoder` does.
        """
        half = self.computes_in == "bf16" and self.autoencoder.device.type == "cuda"
        forget = self._denoiser.forget
        return DeviceDecoder(self.autoencoder, self.tile_voxels, half=half, sizes=self._sizes, forget=forget)(latent)

    def _kind(self, grid: Grid, guidance: Guidance, masked: bool) -> Hashable:
        """What the memory of a network call depends on besides the number of volumes."""
        scales = frozenset(guidance.scales.items()) if isinstance(guidance.scales, Mapping) else guidance.scales
        return self.denoiser.device, self.denoiser.dtype, self.precision, grid.box, scales, masked

    @torch.no_grad()
    def _try(self, size: int, grid: Grid, guidance: Guidance, masked: bool) -> None:
        """One network call for `size` volumes, whatever comes of it."""
        box = torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8).expand(size, 1, *grid.box) if masked else None
        given = encode(self.condition_declaration, [naming(self.geometry, grid)] * size, box)
        noise = torch.zeros(size, *self._latent_shape(grid), device=self.denoiser.device)
        time = torch.full((size,), sum(guidance.interval) / 2, device=noise.device)  # where guidance acts
        given = {name: values.to(noise.device) for name, values in given.items()}
        with self._on_device() as denoiser:
            guided(denoiser, given, guidance.only(given))(noise, from_flow_time(time))

    @torch.no_grad()
    def _volumes(self, order: Order, way: _Way, size: int, progress: Progress) -> Iterator[Volume]:
        kind, total, start = self._kind(order.grid, way.guidance, order.masks is not None), len(order.rows), 0
        with progress.task("generating", total * way.used) as advance, self._series.next() as self._denoiser:
            while start < total:
                chosen = [min(start + i, total - 1) for i in range(size)]
                kept, calls = min(size, total - start), itertools.count()

                def tick(kept: int = kept, calls: Iterator[int] = calls) -> None:
                    next(calls)
                    advance(kept)

                drawn = unless_out_of_memory(partial(self._draw, order, chosen, way, tick))
                if drawn is None:
                    self._denoiser.forget()
                    advance(-kept * next(calls))
                    size = self._sizes.halve(kind, size)
                    continue
                for index, latent in enumerate(drawn[:kept].cpu(), start=start):
                    yield Volume(self._scan(latent, order.grid), self._mask(order, index), order.seeds[index], latent)
                start += kept

    def _draw(self, order: Order, chosen: list[int], way: _Way, tick: Callable[[], None]) -> Tensor:
        """Latents [len(chosen), C, x, y, z] float32 on the device."""
        device, shape = self.denoiser.device, self._latent_shape(order.grid)
        seeds = [order.seeds[i] for i in chosen]
        noise = torch.stack([torch.randn(shape, generator=torch_generator(seed, "volume", "noise")) for seed in seeds])
        given = {name: values[chosen] for name, values in order.encoded.items()}
        mask = mask_name(self.condition_declaration)
        if mask in given and bool((given[mask] == NULL_LABEL).all()):
            del given[mask]  # so that a volume without a mask is computed alike whoever else in the call has one
        given = {name: values.to(device) for name, values in given.items()}
        denoise = guided(self._denoiser, given, way.guidance.only(given))

        def counted(x: Tensor, angle: Tensor) -> Tensor:
            clean = denoise(x, angle)
            tick()
            return clean

        return sample(
            counted,
            noise.to(device),
            way.sampler,
            way.evaluations,
            [torch_generator(seed, "volume", "steps") for seed in seeds],
            shift=Objective(self.objective).shift(math.prod(shape[1:])),
        )

    def _on_device(self) -> DeviceDenoiser:
        return DeviceDenoiser(self.denoiser, Objective(self.objective), self.precision, self.denoiser.device)

    def _scan(self, latent: Tensor, grid: Grid) -> Scan:
        """One latent [C, x, y, z] as a scan in the original unit, the box's centre at the origin of the world."""
        voxels = IntensityRule.from_json(self.intensity).restore(self.decode(latent))
        unit = self.geometry["unit"]
        if unit == HU:
            voxels = voxels.round().to(torch.int16)
        return make_scan(voxels.cpu(), centred_affine(grid), modality=self.geometry["modality"], unit=unit)

    def _mask(self, order: Order, index: int) -> Scan | None:
        if order.masks is None or bool((order.masks[index] == NULL_LABEL).all()):
            return None
        mask = order.masks[index].to("cpu", torch.uint8)
        return make_scan(mask, centred_affine(order.grid), modality=self.geometry["modality"], unit="label")

    def _latent_shape(self, grid: Grid) -> tuple[int, ...]:
        sizes = (size // self.autoencoder.config.downsampling for size in grid.box)
        return (int(self.denoiser.config.latent_channels), *sizes)
