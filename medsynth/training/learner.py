"""A network with its optimiser: one side of a training run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from medsynth.config.training import Training
from medsynth.training.checkpoint import load_optimiser, optimiser_tensors
from medsynth.training.muon import Muon, matrices


class Learner:
    """One network's weights, and how they follow their gradient. `loss` names what it minimises.

    Clipping and stepping go past accelerate: its wrappers look up packages at every step (0.4 of 1.5 ms for 115 weights on
    one core).
    """

    def __init__(self, loss: str, network: nn.Module, settings: Training, device: torch.device) -> None:
        self.loss = loss
        self.network = network
        self.names = {w: name for name, w in network.named_parameters() if w.requires_grad}
        self.optimisers = _optimisers(network, list(self.names), settings, device)
        self._clip_norm = settings.clip_norm

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next step."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate

    def step(self) -> Tensor:
        """Clip, step, forget the gradient. Returns its norm before clipping."""
        norm = nn.utils.clip_grad_norm_(list(self.names), self._clip_norm, foreach=True)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return norm

    def tensors(self, prefix: str) -> dict[str, Mapping[str, Tensor]]:
        """Weights and state of the optimisers, for a checkpoint."""
        state = {k: v for each in self.optimisers for k, v in optimiser_tensors(each, self.names).items()}
        return {f"{prefix}network": self.network.state_dict(), f"{prefix}optimiser": state}

    def load(self, prefix: str, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from what `tensors` took under the same prefix."""
        self.network.load_state_dict(dict(tensors[f"{prefix}network"]))
        for optimiser in self.optimisers:
            load_optimiser(optimiser, self.names, tensors[f"{prefix}optimiser"])


def _optimisers(
    network: nn.Module, weights: list[nn.Parameter], settings: Training, device: torch.device
) -> list[torch.optim.Optimizer]:
    """By setting Muon for matrices; AdamW (Loshchilov 2019) for all that is left, without decay for biases and norms.

    AdamW is one fused kernel where torch has one for the device.
    """
    chosen = matrices(network) if settings.optimiser == "muon" else {}
    rest = [w for w in weights if w not in chosen]
    optimisers: list[torch.optim.Optimizer] = []
    if chosen:
        record = settings.replay and device.type == "cuda"
        optimisers.append(Muon(chosen, settings.learning_rate, settings.weight_decay, record=record))
    if rest:
        groups = [
            {"params": [w for w in rest if w.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [w for w in rest if w.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = device.type in ("cpu", "cuda")
        optimisers.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.99), fused=fused))
    return optimisers
