"""Training the autoencoder: reconstruct volumes through a latent that stays near a standard normal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsynth.cohort.manifest import Case
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.autoencoder import Autoencoder
from medsynth.config.base import plain
from medsynth.errors import CohortError
from medsynth.models.autoencoder import KLAutoencoder
from medsynth.seeding import derive
from medsynth.training.batches import Batch, Order, noise
from medsynth.training.loop import Task, train
from medsynth.training.losses import gradient_difference, peak_signal_to_noise, structural_similarity
from medsynth.training.records import Record

SSIM_STRIDE = 2
"""In training every second window along each axis: an eighth of the windows, at a third of the cost."""


class AutoencoderTask(Task):
    """L1, structure, edges and KL, on volumes [N, 1, X, Y, Z] in [-1, 1].

    No augmentation: scans have sides, and a generator that has seen mirrored patients would draw mirrored ones.
    """

    selected_by = "loss"

    def __init__(
        self, network: KLAutoencoder, volumes: Tensor, validation: Tensor, settings: Autoencoder, seed: int
    ) -> None:
        super().__init__()
        self.network: KLAutoencoder = network
        self.volumes = volumes
        self.validation = validation
        self.weights = settings.loss
        self.batch_size = settings.training.batch_size
        self.seed = derive(seed, "autoencoder")
        self.order = Order(len(volumes), self.batch_size, self.seed)
        factor, channels = network.config["downsampling"], network.config["latent_channels"]
        self.latent_shape = (channels, *(size // factor for size in volumes.shape[2:]))

    def draw(self, number: int, rows: slice) -> Batch:
        """Volumes, and the noise by which the posterior is drawn from."""
        cases = self.order.batch(number)[rows]
        return {"volumes": self.volumes[cases], "noise": noise(self.latent_shape, self.seed, "posterior", number, rows)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum `loss`, and its terms unweighted."""
        volumes = batch["volumes"]
        reconstruction, posterior = self.network(volumes, batch["noise"])
        with torch.autocast(volumes.device.type, enabled=False):
            terms = self._terms(reconstruction.float(), volumes, SSIM_STRIDE)
            terms["kl"] = posterior.kl().mean()
            return {"loss": self._weighted(terms), **terms}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The reconstruction's terms, PSNR (dB) and SSIM through the posterior's mean, averaged over the volumes."""
        device = next(self.network.parameters()).device
        totals: dict[str, float] = {}
        for start in range(0, len(self.validation), self.batch_size):
            volumes = self.validation[start : start + self.batch_size].to(device)
            reconstruction, posterior = self.network(volumes)
            with torch.autocast(device.type, enabled=False):
                reconstruction = reconstruction.float().clamp(-1, 1)
                terms = self._terms(reconstruction, volumes, 1) | {"kl": posterior.kl().mean()}
                figures = {
                    "loss": self._weighted(terms),
                    "psnr": peak_signal_to_noise(reconstruction, volumes).mean(),
                    "ssim": 1 - terms["structural"],
                    **terms,
                }
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(volumes)
        return {name: total / len(self.validation) for name, total in totals.items()}

    def _terms(self, reconstruction: Tensor, volumes: Tensor, stride: int) -> dict[str, Tensor]:
        return {
            "l1": (reconstruction - volumes).abs().mean(),
            "structural": 1 - structural_similarity(reconstruction, volumes, stride=stride).mean(),
            "gradient": gradient_difference(reconstruction, volumes),
        }

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weights = plain(self.weights)
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def train_autoencoder(
    network: KLAutoencoder,
    train_set: VolumeSet,
    validation: VolumeSet,
    settings: Autoencoder,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
) -> Iterator[Record]:
    """Train `network` on the training split; see `loop.train` for checkpoints, records and errors.

    When the iterator ends, the network holds the averaged weights of the validation whose weighted loss was lowest:
    past some point, more steps on a small cohort make an autoencoder worse on scans that it has not seen, and all that
    follows is built on its latents. Raises CohortError where a split is empty.
    """
    for name, volumes in (("training", train_set), ("validation", validation)):
        if not volumes.cases:
            raise CohortError(f"the autoencoder: expected volumes in the {name} split, found none; add patients to it")
    task = AutoencoderTask(network, train_set.volumes, validation.volumes, settings, seed)
    identity = {
        "kind": "autoencoder",
        "seed": seed,
        "network": plain(settings.network),
        "loss": plain(settings.loss),
        "data": data_identity(train_set.cases, validation.cases),
    }
    yield from train(task, settings.training, folder=folder, identity=identity, device=device)


def data_identity(train_cases: Sequence[Case], validation: Sequence[Case]) -> dict[str, Any]:
    """Which cases a run learns from, for its checkpoints: digests only."""
    return {"train": [case.sha256 for case in train_cases], "validation": [case.sha256 for case in validation]}
