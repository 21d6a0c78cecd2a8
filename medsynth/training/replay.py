"""Forward and backward of a training step, recorded once for each kind of batch and replayed (`kernels.recording`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medsynth.errors import ConfigError
from medsynth.kernels.recording import NotRecordable, Recorder
from medsynth.training.batches import Batch

Losses = dict[str, Tensor]


class Replay:
    """`compute`, which fills the gradients of `weights` from a batch and returns its losses, replayed per kind of batch.

    `compute` must be a function of the batch alone and never wait for the device. What it returns is overwritten by the
    next call. Raises ConfigError where the device cannot record it.
    """

    def __init__(self, compute: Callable[[Batch], Losses], weights: Sequence[nn.Parameter]) -> None:
        self._compute = compute
        self._weights = list(weights)
        self._recorder: Recorder[tuple[Losses, list[Tensor | None]]] | None = Recorder(self._step)

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch, whose gradients then are those of the weights."""
        losses, gradients = self._recorded(batch) or self._step(batch)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        return losses

    def _recorded(self, batch: Batch) -> tuple[Losses, list[Tensor | None]] | None:
        """None where there is no memory to record in: a recording keeps that of a step for itself."""
        if self._recorder is None:
            return None
        try:
            return self._recorder(batch)
        except NotRecordable as error:
            raise ConfigError(
                [f"training.replay: expected a step that this device can record, found {error}; set it to false"]
            ) from error
        except torch.OutOfMemoryError:
            self._recorder = None
        torch.cuda.empty_cache()
        return None

    def _step(self, batch: Batch) -> tuple[Losses, list[Tensor | None]]:
        for weight in self._weights:
            weight.grad = None
        losses = {name: loss.detach() for name, loss in self._compute(batch).items()}
        return losses, [weight.grad for weight in self._weights]
