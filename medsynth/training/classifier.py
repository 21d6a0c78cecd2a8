"""Training a 3D classifier for a fixed number of steps, so that different training sets can be compared fairly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth.errors import DataError, DivergenceError
from medsynth.models.classifier import ClassifierKind, build_classifier
from medsynth.seeding import derive, torch_generator
from medsynth.training.augment import apply_augmentation, draw_augmentation
from medsynth.training.batches import Ahead, Batch, Order

WEIGHT_DECAY = 1e-2
WARMUP_SHARE = 0.1
SMOOTHING = 0.05
"""Label smoothing (Szegedy 2016): keeps few scans from being learned by heart."""
CLIP_NORM = 1.0
PREDICT_BATCH = 32
ALL_AXES = (0, 1, 2)


def train_classifier(
    volumes: Tensor,
    labels: Tensor,
    *,
    classes: int,
    kind: ClassifierKind = "small",
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    augment: bool = False,
    balance: bool = True,
    flip_axes: tuple[int, ...] = ALL_AXES,
    start: nn.Module | None = None,
) -> nn.Module:
    """A classifier after exactly `steps` optimiser steps, in eval mode; a function of its arguments alone on a CPU.

    volumes: [N, 1, X, Y, Z] float in [-1, 1]; labels: [N] int64 in 0..classes-1. `balance` weighs each class by the
    inverse of its share, so that the prior of a training set does not decide the comparison. `augment` mirrors along
    `flip_axes` (leave an axis out where the sides carry the label), turns, shifts, scales, recolours. `start` is a network
    to go on from instead of a fresh one, and is trained in place.

    Raises DataError for labels that do not fit, DivergenceError for a loss that is not finite.
    """
    _check(volumes, labels, classes)
    network = build_classifier(kind, classes, derive(seed, "classifier", "weights")) if start is None else start
    network = network.to(device).train()
    weight = class_weights(labels, classes).to(device) if balance else None
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY, fused=device.type in ("cpu", "cuda"))
    order = Order(len(volumes), batch_size, derive(seed, "classifier"))

    def draw(number: int) -> Batch:
        cases = order.batch(number)
        batch = volumes[cases].float()
        if augment:
            generator = torch_generator(seed, "classifier", "augmentation", number)
            batch = apply_augmentation(batch, draw_augmentation(batch.shape, generator, flip_axes))
        return {"volumes": batch, "labels": labels[cases]}

    with Ahead(draw, 0, device) as batches:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * one_cycle(step, steps)
            batch = batches.next()
            logits = network(batch["volumes"]).float()
            loss = F.cross_entropy(logits, batch["labels"], weight=weight, label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            norm = float(nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM))
            if not math.isfinite(norm):
                raise DivergenceError(
                    f"the classifier diverged at step {step + 1} of {steps}: expected a finite gradient, found {norm}; "
                    f"lower evaluate.benefit.learning_rate (now {learning_rate:g})"
                )
            optimiser.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, volumes: Tensor, *, batch_size: int = PREDICT_BATCH) -> Tensor:
    """Probabilities [N, classes] float32 on the CPU, for volumes [N, 1, X, Y, Z]; independent of the batch size."""
    network.eval()
    device = next(network.parameters()).device
    parts = [volumes[i : i + batch_size] for i in range(0, len(volumes), batch_size)]
    return torch.cat([network(part.to(device)).float().softmax(1).cpu() for part in parts])


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """[classes] weights N / (K n_k) over the K classes that occur; 0 for one that does not."""
    counts = torch.bincount(labels, minlength=classes).float()
    occurring = (counts > 0).sum()
    return torch.where(counts > 0, len(labels) / (occurring * counts.clamp_min(1)), 0.0)


def one_cycle(step: int, steps: int) -> float:
    """Learning-rate factor: up over the first tenth, then a half cosine down."""
    warm = max(1, round(WARMUP_SHARE * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _check(volumes: Tensor, labels: Tensor, classes: int) -> None:
    if not len(volumes) or len(volumes) != len(labels):
        raise DataError(f"the classifier: expected one label per volume, found {len(labels)} for {len(volumes)}")
    found = torch.unique(labels)
    if len(found) < 2 or int(found.min()) < 0 or int(found.max()) >= classes:
        raise DataError(
            f"the classifier: expected at least two classes with labels 0 to {classes - 1} among its training scans, "
            f"found {found.tolist()}"
        )
