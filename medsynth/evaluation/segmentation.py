"""A small 3D segmenter that reads masks back out of scans."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.unet import UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynth.evaluation.volumes import NULL_MASK
from medsynth.progress import Advance
from medsynth.seeding import derive, numpy_generator

CHANNELS = (12, 24, 48)
PATCH = 32
BATCH = 4
LEARNING_RATE = 3e-3
MULTIPLE = 4
"""Two halvings: every axis of a patch is a multiple of this."""


def label_values(masks: Tensor) -> tuple[int, ...]:
    """The labels that occur in `masks`, background left out."""
    return tuple(v for v in torch.unique(masks).tolist() if v not in (0, NULL_MASK))


def train_segmenter(
    voxels: Tensor,
    masks: Tensor,
    labels: tuple[int, ...],
    *,
    steps: int,
    seed: int,
    device: torch.device,
    advance: Advance,
) -> nn.Module:
    """A U-Net (Ronneberger 2015; MONAI's) trained on patches for `steps` optimiser steps with Dice + cross-entropy.

    voxels: [N, 1, X, Y, Z] in [-1, 1].  masks: uint8, the same shape.  Output channel 0 is background, channel i + 1
    is `labels[i]`. Half of the patches are centred on a labelled voxel.
    """
    network = _build(len(labels) + 1, seed).to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=max(steps, 2))
    targets = _as_classes(masks, labels)
    for images, wanted in _patches(voxels, targets, steps, seed):
        optimiser.zero_grad(set_to_none=True)
        loss = _loss(network(images.to(device)), wanted.to(device))
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        advance(1)
    return network.eval()


def dice_scores(
    network: nn.Module, voxels: Tensor, masks: Tensor, labels: tuple[int, ...], *, device: torch.device
) -> NDArray[np.float64]:
    """Dice coefficient [N] between `masks` and what the network finds, averaged over the labels in the mask.

    NaN for a scan whose mask is empty: there is nothing to overlap with.
    """
    targets = _as_classes(masks, labels)
    scores = []
    for volume, wanted in zip(voxels, targets, strict=True):
        with torch.inference_mode():
            found = network(_pad(volume[None]).to(device))[0].argmax(0).cpu()
        found = found[tuple(slice(0, size) for size in wanted.shape)]
        each = []
        for number in range(1, len(labels) + 1):
            asked, seen = wanted == number, found == number
            if asked.any():
                each.append(2 * int((asked & seen).sum()) / int(asked.sum() + seen.sum()))
        scores.append(float(np.mean(each)) if each else np.nan)
    return np.array(scores)


def _build(channels: int, seed: int) -> nn.Module:
    # Layers draw their first weights from the global generator; the fork leaves that one as it was found.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "segmenter", "weights"))
        network: nn.Module = UNet(
            spatial_dims=3,
            in_channels=1,
            out_channels=channels,
            channels=CHANNELS,
            strides=(2,) * (len(CHANNELS) - 1),
            num_res_units=1,
        )
        return network


def _as_classes(masks: Tensor, labels: tuple[int, ...]) -> Tensor:
    """[N, X, Y, Z] int64: 0 background, i + 1 for `labels[i]`."""
    table = torch.zeros(256, dtype=torch.int64)
    table[list(labels)] = torch.arange(1, len(labels) + 1)
    return table[masks[:, 0].long()]


def _pad(volume: Tensor) -> Tensor:
    """Trailing planes repeated until every axis is a multiple of what the network's halvings need."""
    missing = [-size % MULTIPLE for size in volume.shape[2:]]
    return F.pad(volume, [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate") if any(missing) else volume


def _patches(voxels: Tensor, targets: Tensor, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of patches; which ones depends only on the seed and the step."""
    shape = np.array(targets.shape[1:])
    size = np.minimum(shape, PATCH)
    inside = [torch.nonzero(target).numpy() for target in targets]
    for step in range(steps):
        generator = numpy_generator(seed, "segmenter", "batch", step)
        images, wanted = [], []
        for number in generator.integers(len(voxels), size=BATCH):
            start = generator.integers(0, shape - size + 1)
            if generator.random() < 0.5 and len(inside[number]):
                centre = inside[number][generator.integers(len(inside[number]))]
                start = np.clip(centre - size // 2, 0, shape - size)
            at = tuple(slice(int(a), int(a + s)) for a, s in zip(start, size, strict=True))
            images.append(voxels[number][(slice(None), *at)])
            wanted.append(targets[number][at])
        images_batch, wanted_batch = torch.stack(images), torch.stack(wanted)
        yield _pad(images_batch), _pad(wanted_batch[:, None].float())[:, 0].long()


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy + soft Dice over the labels (Milletari 2016)."""
    shares = logits.softmax(1)
    truth = F.one_hot(wanted, logits.shape[1]).movedim(-1, 1).to(shares.dtype)
    overlap = (shares * truth).sum(dim=(0, 2, 3, 4))[1:]
    total = (shares + truth).sum(dim=(0, 2, 3, 4))[1:]
    return F.cross_entropy(logits, wanted) + (1 - (2 * overlap + 1) / (total + 1)).mean()
