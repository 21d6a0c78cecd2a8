"""MONAI's latent diffusion, of the sizes of its 3D tutorial, trained with the tutorial's losses.

What its tutorial leaves to be wished is mended in its favour, so that it is judged at its best:

- the posterior's mean is cached, not a draw; the latents' scale comes from the whole training split;
- bf16 where the processor has it, an average of the weights, clipped gradients, a learning rate that falls to zero
  with the budget: medsynth's training loop;
- MONAI's schedulers are not used: the network is sampled through medsynth's contract, which the exact-score test covers.

No perceptual loss: its weights are a download. The mask condition joins the latents as the share of each label in every
latent voxel; the class condition is the network's own class embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.data import Data, Request
from benchmarks.peers.method import GPU_AT_ONCE, Run, Trained, draw_scans, on_device, train_within
from medsynth.config.training import Training
from medsynth.diffusion.angle import from_alpha_bar, mix
from medsynth.models.conditions import encode, mask_name
from medsynth.seeding import derive, torch_generator
from medsynth.training.batches import Batch, Order, noise
from medsynth.training.loop import Task
from medsynth.training.losses import peak_signal_to_noise, structural_similarity

LATENT_CHANNELS = 3
DOWNSAMPLING = 4
GRID_FACTOR = 4
"""The U-Net halves its grid twice; latents are padded up to a multiple of this."""
KL_WEIGHT = 1e-6
"""Of the divergence summed over a latent, as the tutorial has it."""
BETAS = (0.0015, 0.0195)
LEVELS = 1000
AUTOENCODER_SHARE = 0.4
"""Of the budget."""
SAMPLER, EVALUATIONS = "dpm_solver++", 50
AUTOENCODER_TRAINING = Training(
    optimiser="adamw",
    batch_size=2,
    learning_rate=5e-4,
    warmup_steps=20,
    weight_decay=0.0,
    ema_decay=0.99,
    validate_every=100,
    log_every=10,
)
DENOISER_TRAINING = Training(
    optimiser="adamw",
    batch_size=8,
    learning_rate=5e-4,
    warmup_steps=50,
    weight_decay=0.0,
    ema_decay=0.995,
    validate_every=250,
)


def monai_ldm(run: Run) -> Trained:
    """Train both networks within the budget."""
    networks = _build(run)
    volumes = {name: run.data.splits[name].volumes for name in ("train", "validation")}
    encoding, denoising = (on_device(each, run.device) for each in (AUTOENCODER_TRAINING, DENOISER_TRAINING))
    autoencoder = AutoencoderTask(networks[0], volumes["train"], volumes["validation"], encoding.batch_size, run.seed)
    identity = {"method": "monai", "seed": run.seed, "minutes": run.minutes}
    share = run.minutes * AUTOENCODER_SHARE
    facts: dict[str, Any] = {
        "autoencoder": train_within(autoencoder, encoding, share, run.folder / "autoencoder", identity, run.device)
    }
    latents = {name: _encode(networks[0], split) for name, split in volumes.items()}
    scale = float(latents["train"].std())
    latents = {name: values / scale for name, values in latents.items()}
    denoiser = DenoiserTask(networks[1], run.data, latents, run.seed)
    coarsest = min(-(-size // GRID_FACTOR) for size in denoiser.latents["train"].shape[2:])
    # The bf16 gradient of a convolution's weights comes out NaN on a grid of one voxel along an axis (torch 2.13, CPU).
    if coarsest == 1 and run.device.type == "cpu":
        denoising = denoising.model_copy(update={"precision": "fp32"})
    rest = run.minutes - share
    facts["denoiser"] = train_within(denoiser, denoising, rest, run.folder / "denoiser", identity, run.device)
    facts |= {"sampler": SAMPLER, "evaluations": EVALUATIONS}

    def generate(request: Request) -> Tensor:
        return draw_scans(
            run.data,
            request,
            latents["train"].shape[1:],
            lambda given: lambda x, angle: denoiser.clean(x, angle, given),
            lambda z: networks[0].decode(z * scale),
            device=run.device,
            sampler=SAMPLER,
            evaluations=EVALUATIONS,
        )

    return Trained(generate, facts)


def _build(run: Run) -> tuple[Any, Any]:
    """AutoencoderKL and DiffusionModelUNet, with first weights from the seed."""
    declaration = run.data.declaration
    mask = mask_name(declaration)
    labels = len(declaration[mask]["labels"]) if mask else 0
    category = next((entry for entry in declaration.values() if entry["kind"] == "category"), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(run.seed, "monai", "weights"))
        autoencoder = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            num_res_blocks=1,
            channels=(32, 64, 64),
            attention_levels=(False, False, True),
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=16,
        )
        unet = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=LATENT_CHANNELS + labels,
            out_channels=LATENT_CHANNELS,
            num_res_blocks=1,
            channels=(32, 64, 64),
            attention_levels=(False, True, True),
            num_head_channels=(0, 64, 64),
            num_class_embeds=len(category["values"]) if category else None,
            use_flash_attention=True,
        )
    return autoencoder, unet


@torch.no_grad()
def _encode(network: Any, volumes: Tensor) -> Tensor:
    device = next(network.parameters()).device
    return torch.cat([network.encode(volume[None].to(device))[0].float().cpu() for volume in volumes])


class AutoencoderTask(Task):
    """L1 and KL, as the tutorial weighs them."""

    selected_by = "l1"

    def __init__(self, network: nn.Module, volumes: Tensor, validation: Tensor, batch_size: int, seed: int) -> None:
        super().__init__()
        self.network = network
        self.volumes, self.validation = volumes, validation
        self.seed = derive(seed, "monai autoencoder")
        self.order = Order(len(volumes), batch_size, self.seed)
        self.latent_shape = (LATENT_CHANNELS, *(size // DOWNSAMPLING for size in volumes.shape[2:]))

    def draw(self, number: int, rows: slice) -> Batch:
        """Volumes, and the noise of the posterior's draw."""
        cases = self.order.batch(number)[rows]
        return {"volumes": self.volumes[cases], "noise": noise(self.latent_shape, self.seed, "posterior", number, rows)}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss and its terms."""
        mean, sigma = self.network.encode(batch["volumes"])
        reconstruction = self.network.decode(mean + sigma * batch["noise"]).float()
        mean, variance = mean.float(), sigma.float().square()
        kl = 0.5 * (mean.square() + variance - variance.clamp_min(1e-12).log() - 1).flatten(1).sum(1).mean()
        l1 = (reconstruction - batch["volumes"]).abs().mean()
        return {"loss": l1 + KL_WEIGHT * kl, "l1": l1, "kl": kl}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """L1, PSNR (dB) and SSIM through the posterior's mean."""
        device = next(self.network.parameters()).device
        totals = torch.zeros(3, device=device)
        for volumes in self.validation.split(1 if device.type == "cpu" else GPU_AT_ONCE):
            volumes = volumes.to(device)
            found = self.network.decode(self.network.encode(volumes)[0]).float().clamp(-1, 1)
            l1 = (found - volumes).abs().flatten(1).mean(1)
            figures = (l1, peak_signal_to_noise(found, volumes), structural_similarity(found, volumes))
            totals += torch.stack([figure.sum() for figure in figures])
        return dict(zip(("l1", "psnr", "ssim"), (totals / len(self.validation)).tolist(), strict=True))


class DenoiserTask(Task):
    """The error of the predicted noise at levels drawn evenly (Ho 2020, eq. 14), conditions always given."""

    selected_by = "loss"

    def __init__(self, network: nn.Module, data: Data, latents: Mapping[str, Tensor], seed: int) -> None:
        super().__init__()
        self.network = network
        self.latents = latents
        self.seed = derive(seed, "monai denoiser")
        self.order = Order(len(latents["train"]), DENOISER_TRAINING.batch_size, self.seed)
        betas = torch.linspace(math.sqrt(BETAS[0]), math.sqrt(BETAS[1]), LEVELS, dtype=torch.float64) ** 2
        self.angles = from_alpha_bar(torch.cumprod(1 - betas, 0))
        self.mask = mask_name(data.declaration)
        self.labels = sorted(data.declaration[self.mask]["labels"].values()) if self.mask else []
        self.category = next((n for n, entry in data.declaration.items() if entry["kind"] == "category"), None)
        self.conditions = {}
        for name in ("train", "validation"):
            split = data.splits[name]
            rows = [{n: case.conditions.get(n) for n in data.declaration if n != self.mask} for case in split.cases]
            self.conditions[name] = encode(data.declaration, rows, split.masks if self.mask else None)

    def draw(self, number: int, rows: slice) -> Batch:
        """Latents, noise, levels and conditions."""
        cases = self.order.batch(number)[rows]
        levels = torch.randint(LEVELS, (len(cases),), generator=torch_generator(self.seed, "levels", number))
        return self._batch(
            "train", cases, levels, noise(self.latents["train"].shape[1:], self.seed, "noise", number, rows)
        )

    def _batch(self, split: str, cases: Tensor, levels: Tensor, drawn: Tensor) -> Batch:
        given = {name: value[cases] for name, value in self.conditions[split].items()}
        angles = self.angles[levels].float()
        return {"latents": self.latents[split][cases], "levels": levels, "angles": angles, "noise": drawn, **given}

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The loss."""
        return {"loss": self._errors(batch).mean()}

    def _errors(self, batch: Batch) -> Tensor:
        x = mix(batch["latents"], batch["noise"], batch["angles"])
        found = self._predict(x, batch["levels"].float(), batch)
        return (found.float() - batch["noise"]).square().flatten(1).mean(1)

    def _predict(self, x: Tensor, levels: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The noise in x [B, C, X, Y, Z] at `levels` [B], which may lie between the trained ones."""
        if self.mask:
            mask = conditions[self.mask]
            shares = [F.avg_pool3d((mask == label).float(), DOWNSAMPLING) for label in self.labels]
            x = torch.cat([x, *shares], 1)
        grid = x.shape[2:]
        pads = [side for size in reversed(grid) for side in (0, -size % GRID_FACTOR)]
        found = self.network(
            F.pad(x, pads), timesteps=levels, class_labels=conditions[self.category] if self.category else None
        )
        return found[:, :, : grid[0], : grid[1], : grid[2]]

    def clean(self, x: Tensor, angle: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The contract of medsynth's samplers: the clean latent, given the noisy one and its angle."""
        table = self.angles.numpy()
        angle = angle.double().cpu().clamp(float(table[0]), float(table[-1]))
        levels = torch.from_numpy(np.interp(angle.numpy(), table, np.arange(LEVELS))).float().to(x.device)
        cos, sin = (f(angle).float().view(-1, 1, 1, 1, 1).to(x.device) for f in (torch.cos, torch.sin))
        return (x - sin * self._predict(x, levels, conditions).float()) / cos

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on the validation split, the noise and levels the same every time."""
        count = len(self.latents["validation"])
        levels = torch.randint(LEVELS, (count,), generator=torch_generator(self.seed, "validation levels"))
        drawn = noise(self.latents["validation"].shape[1:], self.seed, "validation noise", 0, slice(0, count))
        device = next(self.network.parameters()).device
        total = 0.0
        for rows in torch.arange(count).split(DENOISER_TRAINING.batch_size):
            batch = self._batch("validation", rows, levels[rows], drawn[rows])
            total += float(self._errors({name: value.to(device) for name, value in batch.items()}).sum())
        return {"loss": total / count}
