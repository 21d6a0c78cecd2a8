"""Forward and backward of a training step as one CUDA graph: recorded once, then launched at once.

A network on small latents is thousands of kernels of microseconds each, and Python takes longer to ask for them than
the GPU to run them. A graph asks for all of them in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medsynth.errors import ConfigError
from medsynth.training.batches import Batch

Losses = dict[str, Tensor]

WARM_STEPS = 3
"""Steps of a kind that run as usual first: libraries choose and load their kernels, which no graph can hold."""
MOST_KINDS = 16
"""Graphs that are kept, one for each grid; each holds the working memory of a step."""


@dataclass(frozen=True)
class _Recording:
    """A recorded step: where its batch goes in, and where losses and gradients come out."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    losses: Losses
    gradients: list[Tensor | None]


class Replay:
    """`compute`, which fills the gradients of `weights` from a batch and returns its losses, replayed per kind of batch.

    `compute` must be a function of the batch alone, start from gradients that are None, and never wait for the device. What
    it returns is overwritten by the next call. Raises ConfigError where the device cannot record it.
    """

    def __init__(self, compute: Callable[[Batch], Losses], weights: Sequence[nn.Parameter]) -> None:
        self._compute = compute
        self._weights = list(weights)
        self._warm: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any = None
        self._side = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch, whose gradients then are those of the weights."""
        kind = tuple((name, tuple(value.shape), value.dtype) for name, value in sorted(batch.items()))
        recording = self._recordings.get(kind)
        if recording is None:
            if len(self._recordings) == MOST_KINDS or self._warm.get(kind, 0) < WARM_STEPS:
                self._warm[kind] = self._warm.get(kind, 0) + 1
                return self._as_usual(batch)
            recording = self._recordings[kind] = self._record(batch)
        for name, value in batch.items():
            recording.batch[name].copy_(value)
        recording.graph.replay()
        for weight, gradient in zip(self._weights, recording.gradients, strict=True):
            weight.grad = gradient
        return recording.losses

    def _as_usual(self, batch: Batch) -> Losses:
        # On a stream of its own: what is set up on the stream that everybody uses cannot be recorded later.
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            losses = self._compute(batch)
        torch.cuda.current_stream().wait_stream(self._side)
        return losses

    def _record(self, batch: Batch) -> _Recording:
        inputs = {name: value.clone() for name, value in batch.items()}
        for weight in self._weights:
            weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            # Batches are fetched by another thread meanwhile, which is none of this recording's business.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                losses = {name: loss.detach() for name, loss in self._compute(inputs).items()}
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ConfigError(
                [f"training.replay: expected a step that this device can record, found {error}; set it to false"]
            ) from error
        return _Recording(graph, inputs, losses, [weight.grad for weight in self._weights])
