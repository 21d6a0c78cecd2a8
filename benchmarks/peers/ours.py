"""medsynth, as the task's shipped pipeline sets it up."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from benchmarks.peers.data import Request
from benchmarks.peers.method import Run, Trained, draw_scans, on_device, train_within
from medsynth.diffusion.device_denoiser import DeviceDenoiser
from medsynth.diffusion.guidance import Guidance, guided
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.progress import Silent
from medsynth.stages.autoencoder import new_autoencoder
from medsynth.stages.denoiser import new_network
from medsynth.training.autoencoder import AutoencoderTask
from medsynth.training.denoiser import DenoiserTask
from medsynth.training.latents import LatentStatistics, encode_latents
from medsynth.training.variants import AS_SCANNED, variants_of

AUTOENCODER_SHARE = 0.25
"""Of the budget."""


def medsynth(run: Run) -> Trained:
    """Train both networks within the budget."""
    splits, device = run.data.splits, run.device
    pipeline = run.data.pipeline.model_copy(update={"seed": run.seed})
    settings, denoising = (
        part.model_copy(update={"training": on_device(part.training, device)})
        for part in (pipeline.autoencoder, pipeline.denoiser)
    )
    autoencoder = new_autoencoder(pipeline)
    autoencoding = AutoencoderTask(
        autoencoder, splits["train"].volumes, splits["validation"].volumes, settings, run.seed
    )
    identity = {"method": "medsynth", "seed": run.seed, "minutes": run.minutes}
    share = run.minutes * AUTOENCODER_SHARE
    facts: dict[str, Any] = {
        "autoencoder": train_within(
            autoencoding, settings.training, share, run.folder / "autoencoder", identity, device
        )
    }
    variants = {"train": variants_of(pipeline.denoiser.augment), "validation": AS_SCANNED}
    stores = {
        name: encode_latents(
            autoencoder, splits[name], run.folder / "latents" / name, device, Silent(), variants=seen, seed=run.seed
        )
        for name, seen in variants.items()
    }
    statistics = LatentStatistics.of(stores["train"])
    autoencoder.set_latent_statistics(statistics.shift, statistics.scale)
    shape = stores["train"].latents.shape[1:]
    network = new_network(pipeline, run.data.declaration, shape[0])
    denoiser = Denoiser(network, Objective.from_settings(pipeline.denoiser.objective))
    denoising = DenoiserTask(denoiser, stores["train"], stores["validation"], statistics, pipeline.denoiser, run.seed)
    rest = run.minutes - share
    facts["denoiser"] = train_within(
        denoising, pipeline.denoiser.training, rest, run.folder / "denoiser", identity, device
    )
    sampling = pipeline.generate.sampling
    facts |= {"sampler": sampling.sampler, "evaluations": sampling.evaluations}

    def generate(request: Request) -> Tensor:
        guidance = Guidance.of(sampling)
        sampled = DeviceDenoiser(network, denoiser.objective, "fp32", device)
        return draw_scans(
            run.data,
            request,
            shape,
            lambda given: guided(sampled, given, guidance),
            autoencoder.decode_latent,
            device=device,
            sampler=sampling.sampler,
            evaluations=sampling.evaluations,
            shift=denoiser.objective.shift(math.prod(shape[1:])),
        )

    return Trained(generate, facts)
