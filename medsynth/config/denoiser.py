"""Settings of the denoiser: network, objective, training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medsynth.config.augment import Augment
from medsynth.config.base import Positive, Settings, kind_or
from medsynth.config.training import Count, Training

Attention = Literal["linear", "softmax", "grouped_linear", "grouped_softmax", "none"]


def _check_width(width: int, head_channels: int, attention: str, group_width: int) -> None:
    """Raise ValueError where heads or groups of channels are not whole, or grouped attention would find nothing to group."""
    if width % head_channels:
        raise ValueError(f"every width must be a multiple of head_channels ({head_channels})")
    if attention.startswith("grouped") and (width // head_channels) % 2:
        raise ValueError(
            f"attention: {attention} needs an even number of heads, found {width // head_channels} at width {width}; "
            f"change the width or head_channels ({head_channels})"
        )
    if 16 < group_width < width and width % group_width:
        raise ValueError(f"every width above group_width ({group_width}) must be a multiple of it")


class UNetNetwork(Settings):
    """The latent U-Net: attention at every level."""

    kind: Literal["unet"] = "unet"
    widths: Annotated[tuple[Annotated[int, Field(ge=8, multiple_of=8)], ...], Field(min_length=1, max_length=5)] = (
        64,
        128,
    )
    """Channels per level; each further level halves the grid."""
    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    attention: tuple[Attention, ...] = ("linear",)
    """Kind per level; one value serves all levels."""
    head_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    group_width: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels per group of the blocks' convolutions; a narrower level convolves all at once. 16 suits a CPU; a GPU takes no
    longer for 64, and hardly longer for all."""
    mask_channels: Count = 16
    """Channels that the mask condition is folded into before it joins the input."""
    positions: bool = True
    """Tell the network where in the box each place is: needed where scans are aligned, such as crops around a finding."""
    cross_attention: bool = False
    """Let every level look at one token per condition, beside the scale and shift that all conditions give together."""
    checkpointing: bool = False
    """Make inner activations again in the backward pass: less memory, up to an eighth more time (docs/scaling.md)."""

    @property
    def grid_factor(self) -> int:
        """What every size of the latent grid must be a multiple of."""
        return int(2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _levels(self) -> UNetNetwork:
        if len(self.attention) not in (1, len(self.widths)):
            raise ValueError(f"attention needs one kind, or one per level ({len(self.widths)})")
        for level, width in enumerate(self.widths):
            _check_width(width, self.head_channels, self.attention[level % len(self.attention)], self.group_width)
        return self


class TransformerNetwork(Settings):
    """The latent diffusion transformer: one width, one grid."""

    kind: Literal["transformer"]
    width: Annotated[int, Field(ge=16, multiple_of=8)] = 256
    depth: Annotated[int, Field(ge=1, le=48)] = 8
    patch: Literal[1, 2, 4] = 2
    """Latent voxels per token and axis. 1 takes eight times the time and memory of 2."""
    attention: Attention = "linear"
    head_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 32
    group_width: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Channels per group of the feed-forward convolution, as in the U-Net."""
    mask_channels: Count = 16
    positions: bool = True
    cross_attention: bool = False
    checkpointing: bool = False

    @property
    def grid_factor(self) -> int:
        """What every size of the latent grid must be a multiple of."""
        return self.patch

    @model_validator(mode="after")
    def _heads(self) -> TransformerNetwork:
        _check_width(self.width, self.head_channels, self.attention, self.group_width)
        return self


DenoiserNetwork = Annotated[
    Annotated[UNetNetwork, Tag("unet")] | Annotated[TransformerNetwork, Tag("transformer")],
    Discriminator(kind_or("unet")),
]


class FlowObjective(Settings):
    """Rectified flow (Liu 2022; Lipman 2022) with logit-normal times (Esser 2024)."""

    kind: Literal["flow"] = "flow"
    logit_mean: float = 0.0
    logit_std: Positive = 1.6
    """1 (Esser 2024) hardly visits nearly pure noise, where brightness and large shapes are settled (docs/history.md)."""
    shift: Positive | Literal["auto"] = "auto"
    """Moves times toward noise; `auto` takes it from the number of latent voxels."""


class DiffusionObjective(Settings):
    """Variance-preserving diffusion: predict the noise, v (Salimans 2022), the clean latent or the score (Song 2021)."""

    kind: Literal["epsilon", "v", "x0", "score"]
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid"] = "scaled_linear"
    zero_terminal_snr: bool = False
    weighting: Literal["auto", "uniform", "min_snr"] = "auto"
    """Of the loss over noise levels: as the kind's paper has it, the plain error of the prediction, or min-SNR (Hang 2023)."""

    @model_validator(mode="after")
    def _learnable(self) -> DiffusionObjective:
        if self.zero_terminal_snr and self.kind in ("epsilon", "score"):
            raise ValueError(f"zero_terminal_snr leaves nothing to learn for {self.kind} at the last step; use v or x0")
        return self


Objective = Annotated[
    Annotated[FlowObjective, Tag("flow")]
    | Annotated[DiffusionObjective, Tag("epsilon")]
    | Annotated[DiffusionObjective, Tag("v")]
    | Annotated[DiffusionObjective, Tag("x0")]
    | Annotated[DiffusionObjective, Tag("score")],
    Discriminator(kind_or("flow")),
]


class Watch(Settings):
    """Looks at samples during training, for early warnings."""

    every: Annotated[int, Field(ge=0)] = 4
    """Validations from one look to the next, beside one at the end; 0: none at all."""
    samples: Annotated[int, Field(ge=2, le=64)] = 8
    evaluations: Annotated[int, Field(ge=2)] = 12
    """Of the network, per sample."""


Place = Literal["auto", "device", "memory", "disk"]


class Denoiser(Settings):
    """The denoiser stage."""

    network: DenoiserNetwork = UNetNetwork()
    objective: Objective = FlowObjective()
    training: Training = Training()
    keep: Literal["best", "last"] = "best"
    """The averaged weights of the lowest validation loss, or those of the last step."""
    augment: Augment = Augment()
    watch: Watch = Watch()
    latents: Place = "auto"
    """Where latents and masks wait for their turn; `auto` is the fastest place that they fit."""
