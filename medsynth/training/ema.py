"""An exponential moving average of a network's weights.

diffusers' `EMAModel` computes the same average (the tests compare them), but keeps it as a list without names and
copies every weight to lend it to the network. Here the average is a dictionary, so that it goes to safetensors as it
is, and lending swaps the storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Running average of the trainable weights of `network`, slow to start: decay min(limit, (1 + k) / (10 + k))."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's weights of now. The first update copies them."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        torch._foreach_lerp_(list(self.weights.values()), list(self._live.values()), 1 - decay)
        self.updates += 1

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Inside the block the network computes with the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def give(self, weights: dict[str, Tensor] | None = None) -> None:
        """Write the averaged weights, or `weights` under the same names, into the network for good."""
        for name, weight in (self.weights if weights is None else weights).items():
            self._live[name].copy_(weight)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor], updates: int) -> None:
        """Go on from a saved average."""
        for name, weight in weights.items():
            self.weights[name].copy_(weight)
        self.updates = updates

    def _swap(self) -> None:
        for name, weight in self._live.items():
            weight.data, self.weights[name] = self.weights[name], weight.data
