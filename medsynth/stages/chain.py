"""The stages in their order."""

from __future__ import annotations

from medsynth.stages import autoencoder, denoiser, encode, evaluate, generate, prepare, register
from medsynth.stages.base import Stage

STAGES: tuple[Stage, ...] = (
    prepare.STAGE,
    autoencoder.STAGE,
    encode.STAGE,
    denoiser.STAGE,
    generate.STAGE,
    evaluate.STAGE,
    register.STAGE,
)


def chosen(only: str | None) -> tuple[Stage, ...]:
    """All stages, or the one that is named."""
    return STAGES if only is None else tuple(stage for stage in STAGES if stage.name == only)
