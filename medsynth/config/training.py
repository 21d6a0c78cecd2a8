"""Settings of a training loop, and of the machine that it runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medsynth.config.base import Positive, Settings

Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]

TILE_VOXELS = 192**3
"""Voxels of a tile unless told otherwise: about 1 GB of activations in an autoencoder of width 64."""


NEUTRAL = frozenset({"log_every", "checkpoint_minutes", "compile", "replay"})
"""Settings of a training loop that do not touch the weights: a checkpoint may differ in them, and a finished stage too."""


class Training(Settings):
    """One training loop."""

    steps: Count = 2000
    max_minutes: Positive | None = None
    """Stop after this much training time even where steps are left; the learning rate's end is planned for it."""
    batch_size: Count = 8
    accumulate: Count = 1
    """Batches per optimiser step."""
    learning_rate: Positive = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    optimiser: Literal["muon", "adamw"] = "muon"
    """`muon`: matrices take steps of equal strength in every direction, the other weights follow AdamW. `adamw`: all do."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    clip_norm: Positive = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    precision: Precision = "auto"
    """`auto`: bf16 where the device computes it natively, else fp32."""
    compile: bool = False
    """Compile the step first: a minute and more, then faster steps. It needs a C++ compiler."""
    replay: bool = True
    """On a GPU, record a step and replay it: Python no longer holds small networks up. Not for several processes or
    accumulated batches."""
    checkpoint_minutes: Positive = 5.0
    validate_every: Count = 250
    log_every: Count = 25


class Compute(Settings):
    """Where computing happens."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    deterministic: bool = True
    tile_voxels: Count = TILE_VOXELS
    """Most voxels that the autoencoder encodes or decodes at once; more go by overlapping tiles, or one volume after
    another. It bounds the memory beyond the volumes and latents themselves, whatever their size."""
