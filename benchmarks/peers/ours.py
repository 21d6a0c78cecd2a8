"""medsynth, as the task's shipped pipeline sets it up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.data import Request
from benchmarks.peers.method import Run, Trained, train_within
from medsynth.diffusion.guidance import Guidance, guided
from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.diffusion.samplers import sample
from medsynth.models.conditions import encode
from medsynth.progress import Silent
from medsynth.seeding import torch_generator
from medsynth.stages.autoencoder import new_autoencoder
from medsynth.stages.denoiser import new_network
from medsynth.training.autoencoder import AutoencoderTask
from medsynth.training.denoiser import DenoiserTask
from medsynth.training.latents import LatentStatistics, encode_latents

AUTOENCODER_SHARE = 0.25
"""Of the budget."""


def medsynth(run: Run) -> Trained:
    """Train both networks within the budget."""
    splits, device = run.data.splits, torch.device("cpu")
    pipeline = run.data.pipeline.model_copy(update={"seed": run.seed})
    settings = pipeline.autoencoder
    autoencoder = new_autoencoder(pipeline)
    task = AutoencoderTask(autoencoder, splits["train"].volumes, splits["validation"].volumes, settings, run.seed)
    identity = {"method": "medsynth", "seed": run.seed, "minutes": run.minutes}
    share = run.minutes * AUTOENCODER_SHARE
    facts: dict[str, Any] = {
        "autoencoder": train_within(task, settings.training, share, run.folder / "autoencoder", identity)
    }
    stores = {
        name: encode_latents(autoencoder, splits[name], run.folder / "latents" / name, device, Silent())
        for name in ("train", "validation")
    }
    statistics = LatentStatistics.of(stores["train"])
    autoencoder.set_latent_statistics(statistics.shift, statistics.scale)
    shape = stores["train"].latents.shape[1:]
    network = new_network(pipeline, run.data.declaration, shape[0])
    denoiser = Denoiser(network, Objective.from_settings(pipeline.denoiser.objective))
    denoising = DenoiserTask(denoiser, stores["train"], stores["validation"], statistics, pipeline.denoiser, run.seed)
    rest = run.minutes - share
    facts["denoiser"] = train_within(denoising, pipeline.denoiser.training, rest, run.folder / "denoiser", identity)
    sampling = pipeline.generate.sampling
    facts |= {"sampler": sampling.sampler, "evaluations": sampling.evaluations}

    @torch.no_grad()
    def generate(request: Request) -> Tensor:
        conditions = encode(run.data.declaration, request.rows, request.masks)
        found = []
        for i, seed in enumerate(request.seeds):
            given = {name: value[i : i + 1] for name, value in conditions.items()}
            start = torch.randn(shape, generator=torch_generator(seed, "noise"))[None]
            z = sample(
                guided(denoiser, given, Guidance(sampling.guidance)),
                start,
                sampling.sampler,
                sampling.evaluations,
                [torch_generator(seed, "steps")],
                shift=denoiser.objective.shift(start[0, 0].numel()),
            )
            found.append(autoencoder.decode_latent(z).float().clamp(-1, 1))
        return torch.cat(found)

    return Trained(generate, facts)
