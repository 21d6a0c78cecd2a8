"""Settings of what is measured, what must be reached, and where it is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medsynth.config.base import Name, Positive, Settings

Count = Annotated[int, Field(ge=1)]


class ClassifierNetwork(Settings):
    """The downstream 3D classifier."""

    kind: Literal["resnet10", "densenet121", "small"] = "small"
    """`resnet10` and `densenet121` are MONAI's; `small` is a MONAI ResNet of a few hundred thousand parameters."""


class Benefit(Settings):
    """What adding synthetic scans to the training of a classifier does."""

    label: Name | None = None
    """The category the classifier predicts; the first category unless given."""
    classifier: ClassifierNetwork = ClassifierNetwork()
    steps: Count = 300
    """Optimiser steps, the same in every arm."""
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.5, 1.0)
    """Synthetic scans added, as multiples of the number of real training scans."""
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.02
    """Differences in AUC smaller than this count as no difference."""


class Evaluate(Settings):
    """The evidence."""

    benefit: Benefit = Benefit()
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples behind every interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    pictures: Annotated[int, Field(ge=2, le=24)] = 6
    """Real and synthetic scans shown side by side."""
    closest_pairs: Annotated[int, Field(ge=1, le=100)] = 20


class Gates(Settings):
    """What a model must reach to become `champion`. A gate that is left out is not asked for."""

    max_closer_than_real: Annotated[float, Field(ge=0, le=1)] | None = 0.1
    """Share of synthetic scans nearer to a training scan than the threshold from held-out real scans allows."""
    min_condition_auc: Annotated[float, Field(ge=0, le=1)] | None = 0.6
    """AUC of a classifier trained on real scans, on synthetic scans against the labels they were asked for."""
    max_frechet_ratio: Positive | None = 5.0
    """Frechet distance over its real-versus-real value, in the worst feature space."""
    require_benefit: bool = False
    """Only a verdict of `benefit` passes."""


class Register(Settings):
    """The registry."""

    name: Name | None = None
    """Registered model name; the pipeline's name unless given."""
    gates: Gates = Gates()


class Tracking(Settings):
    """MLflow."""

    uri: str | None = None
    """Tracking server; a SQLite file inside the workspace unless given."""
    experiment: Name | None = None
    """The pipeline's name unless given."""
    system_metrics: bool = True
