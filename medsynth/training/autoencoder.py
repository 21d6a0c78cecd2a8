"""Training the autoencoder: reconstruct volumes through a latent that stays near a standard normal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsynth.cohort.manifest import Case
from medsynth.cohort.volumes import VolumeSet
from medsynth.config.autoencoder import Autoencoder, MaisiNetwork
from medsynth.config.base import plain
from medsynth.config.training import TILE_VOXELS
from medsynth.errors import CohortError
from medsynth.models.volume_autoencoder import VolumeAutoencoder
from medsynth.seeding import derive, torch_generator
from medsynth.training.adversary import Adversary
from medsynth.training.batches import Batch, GridOrder, noise, per_grid
from medsynth.training.loop import Task, train
from medsynth.training.losses import (
    gradient_difference,
    multi_scale_similarity,
    peak_signal_to_noise,
    spectral_difference,
    structural_similarity,
)
from medsynth.training.records import Record

SSIM_STRIDE = 2
"""In training every second window along each axis: an eighth of the windows, at a third of the cost."""


class AutoencoderTask(Task):
    """L1, structure, edges, spectrum and KL, on volumes [N, 1, X, Y, Z] in [-1, 1]; late, by setting, a discriminator.

    Volumes come on one grid or on several; a batch is of one. No augmentation: scans have sides, and a generator that
    has seen mirrored patients would draw mirrored ones.
    """

    def __init__(
        self,
        network: VolumeAutoencoder,
        volumes: Tensor | Sequence[Tensor],
        validation: Tensor | Sequence[Tensor],
        settings: Autoencoder,
        seed: int,
    ) -> None:
        super().__init__()
        self.network: VolumeAutoencoder = network
        self.volumes = per_grid(volumes)
        self.validation = per_grid(validation)
        self.weights = settings.loss
        self.batch_size = settings.training.batch_size
        self.seed = derive(seed, "autoencoder")
        self.order = GridOrder([len(part) for part in self.volumes], self.batch_size, self.seed)
        factor, channels = network.config["downsampling"], network.config["latent_channels"]
        self.opponent: Adversary | None
        self.opposing = False
        self.selected_by = selected_by(settings)
        if settings.loss.adversarial > 0:
            self.opponent = Adversary(settings.loss.adversarial, torch_generator(self.seed, "discriminator"))
        self.latent_shapes = [(channels, *(size // factor for size in part.shape[2:])) for part in self.volumes]

    def draw(self, number: int, rows: slice) -> Batch:
        """Volumes, and the noise by which the posterior is drawn from."""
        grid, cases = self.order.batch(number)
        drawn = noise(self.latent_shapes[grid], self.seed, "posterior", number, rows)
        return {"volumes": self.volumes[grid][cases[rows]], "noise": drawn}

    def begin_step(self, share: float) -> None:
        """The opponent comes in where the settings say."""
        self.opposing = share >= self.weights.adversarial_from

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted sum `loss`, and its terms unweighted."""
        volumes = batch["volumes"]
        reconstruction, posterior = self.network(volumes, batch["noise"])
        with torch.autocast(volumes.device.type, enabled=False):
            losses = self._judged(reconstruction.float(), volumes)
            kl = posterior.kl().mean()
            return {**losses, "loss": losses["loss"] + self.weights.kl * kl, "kl": kl}

    def _judged(self, reconstruction: Tensor, volumes: Tensor) -> dict[str, Tensor]:
        if self.opponent is not None:
            return self._opposed(self.opponent, reconstruction, volumes)
        terms = self._terms(reconstruction, volumes, SSIM_STRIDE)
        return {"loss": self._weighted(terms), **terms}

    @torch.compiler.disable  # a compiled graph has no gradient between two of its own results
    def _opposed(self, opponent: Adversary, reconstruction: Tensor, volumes: Tensor) -> dict[str, Tensor]:
        terms = self._terms(reconstruction, volumes, SSIM_STRIDE)
        distance = self._weighted(terms)
        contest = opponent.contest(reconstruction, volumes, distance) if self.opposing else opponent.rest(distance)
        return {
            "loss": distance + contest.pull,
            **terms,
            "adversarial": contest.adversarial,
            "opponent": contest.opponent,
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The reconstruction's terms, PSNR (dB) and SSIM through the posterior's mean, averaged over the volumes."""

        def figures(volumes: Tensor) -> dict[str, Tensor]:
            reconstruction, posterior = self.network(volumes)
            with torch.autocast(volumes.device.type, enabled=False):
                found, kl = self._figures(reconstruction.float().clamp(-1, 1), volumes), posterior.kl().mean()
                return {**found, "loss": found["loss"] + self.weights.kl * kl, "kl": kl}

        return self._averaged(self.batch_size, figures)

    @torch.no_grad()
    def judge(self, tile_voxels: int) -> dict[str, float]:
        """As `validate`, without the KL divergence: one volume at a time, in tiles where it is larger than these."""

        def figures(volume: Tensor) -> dict[str, Tensor]:
            decoded = self.network.decode_tiled(self.network.encode_tiled(volume, tile_voxels), tile_voxels)
            return self._figures(decoded.float().clamp(-1, 1), volume)

        return self._averaged(1, figures)

    def _averaged(self, at_once: int, figures: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, float]:
        """Over the validation volumes, the figures of so many at once."""
        device = next(self.network.parameters()).device
        totals: dict[str, float] = {}
        for volumes in (batch.to(device) for part in self.validation for batch in torch.split(part, at_once)):
            for name, value in figures(volumes).items():
                totals[name] = totals.get(name, 0.0) + float(value) * len(volumes)
        count = sum(len(part) for part in self.validation)
        return {name: total / count for name, total in totals.items()}

    def _figures(self, reconstruction: Tensor, volumes: Tensor) -> dict[str, Tensor]:
        terms = self._terms(reconstruction, volumes, 1)
        return {
            "loss": self._weighted(terms),
            "psnr": peak_signal_to_noise(reconstruction, volumes).mean(),
            "ssim": structural_similarity(reconstruction, volumes).mean(),
            **terms,
        }

    def _terms(self, reconstruction: Tensor, volumes: Tensor, stride: int) -> dict[str, Tensor]:
        terms = {
            "l1": (reconstruction - volumes).abs().mean(),
            "structural": 1 - multi_scale_similarity(reconstruction, volumes, stride=stride).mean(),
            "gradient": gradient_difference(reconstruction, volumes),
        }
        if self.weights.frequency > 0:
            terms["frequency"] = spectral_difference(reconstruction, volumes)
        return terms

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        weights = plain(self.weights)
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def selected_by(settings: Autoencoder) -> str | None:
    """As `Task.selected_by`: no distance to the scan can judge what an opponent has added."""
    return None if settings.loss.adversarial > 0 else "loss"


def train_autoencoder(
    network: VolumeAutoencoder,
    train_set: VolumeSet | Sequence[VolumeSet],
    validation: VolumeSet | Sequence[VolumeSet],
    settings: Autoencoder,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    tile_voxels: int = TILE_VOXELS,
) -> Iterator[Record]:
    """Train `network` on the training split; see `loop.train` for checkpoints, records and errors.

    A split comes as a set, or as one per grid. When the iterator ends, the network holds the averaged weights of the
    validation whose weighted loss was lowest: past some point, more steps on a small cohort make an autoencoder worse
    on scans that it has not seen, and all that follows is built on its latents. With an adversarial loss it holds the
    last average. Weights that are there already and are not to be tuned (`MaisiNetwork`) are judged on the validation
    split, at most `tile_voxels` voxels at once, in one record of step 0, and left alone. Raises CohortError where a split is
    empty.
    """
    parts = {"training": per_grid(train_set), "validation": per_grid(validation)}
    cases = {name: [case for part in sets for case in part.cases] for name, sets in parts.items()}
    for name, found in cases.items():
        if not found:
            raise CohortError(f"the autoencoder: expected volumes in the {name} split, found none; add patients to it")
    volumes = {name: [part.volumes for part in sets] for name, sets in parts.items()}
    task = AutoencoderTask(network, volumes["training"], volumes["validation"], settings, seed)
    if isinstance(settings.network, MaisiNetwork) and not settings.network.fine_tune:
        yield _as_it_is(task, device, tile_voxels)
        return
    identity = {
        "kind": "autoencoder",
        "seed": seed,
        "network": plain(settings.network),
        "loss": plain(settings.loss),
        "data": data_identity(cases["training"], cases["validation"]),
    }
    yield from train(task, settings.training, folder=folder, identity=identity, device=device)


def _as_it_is(task: AutoencoderTask, device: torch.device, tile_voxels: int) -> Record:
    """What the validation split says of weights that are not trained."""
    began = time.monotonic()
    task.network.to(device).eval()
    figures = task.judge(tile_voxels)
    return Record(
        step=0,
        total=0,
        seconds=time.monotonic() - began,
        losses={},
        learning_rate=0.0,
        validation=figures,
        waiting=0.0,
    )


def data_identity(train_cases: Sequence[Case], validation: Sequence[Case]) -> dict[str, Any]:
    """Which cases a run learns from, for its checkpoints: digests only."""
    return {"train": [case.sha256 for case in train_cases], "validation": [case.sha256 for case in validation]}
