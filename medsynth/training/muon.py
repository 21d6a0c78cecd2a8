"""Muon: matrices follow their gradient with equal strength in every direction that it has.

A gradient's few large singular values drown the rest; the momentum of a matrix is therefore replaced by the nearest matrix
whose singular values are all one (Jordan 2024), times what makes its entries as large as AdamW's steps are (Liu 2025, eq. 4),
so that one learning rate serves both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medsynth.kernels.recording import NotRecordable, Recorder
from medsynth.precision import computes_bf16

QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
"""a, b, c of a x + b x^3 + c x^5: one after another they take [0.001, 1] to near one (the first five of Amsel 2025)."""
MARGIN = 1.01
"""So much below one the largest singular value stays, for rounding."""
ADAMW_STEP = 0.2
"""Root mean square of AdamW's steps at a learning rate of one, as it is usually found (Liu 2025, sec. 2.2)."""
TINY = 1e-12


def matrices(network: nn.Module) -> dict[nn.Parameter, int]:
    """The weights of linear maps and convolutions, and of how many matrices each consists: one per group of channels."""
    found = {}
    for layer in network.modules():
        weight = layer.weight if isinstance(layer, (nn.Linear, nn.Conv3d)) else None
        if isinstance(weight, nn.Parameter) and weight.requires_grad:
            found[weight] = layer.groups if isinstance(layer, nn.Conv3d) else 1
    return found


class Muon(torch.optim.Optimizer):
    """Muon for weights that are matrices, or stacks of them along their first axis (`matrices`).

    A convolution's matrix maps the voxels of its window to one. Decay of the weights is decoupled, as in AdamW. With `record`
    a GPU is asked for all products of a step in one call, where asking for each takes longer than computing them.
    """

    def __init__(
        self,
        weights: Mapping[nn.Parameter, int],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        record: bool = False,
    ) -> None:
        self._stacked = dict(weights)
        self._recorder = Recorder(directions) if record else None
        super().__init__(list(weights), {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step with Nesterov's momentum. Matrices of one shape are taken together."""
        if closure is not None:
            raise ValueError("expected no closure: Muon takes the gradients that are there")
        for group in self.param_groups:
            given: list[nn.Parameter] = [weight for weight in group["params"] if weight.grad is not None]
            if given:
                self._step(given, group["lr"], group["weight_decay"], group["momentum"])

    def _step(self, given: list[nn.Parameter], rate: float, weight_decay: float, momentum: float) -> None:
        weights: list[Tensor] = [*given]
        gradients = [weight.grad for weight in given if weight.grad is not None]
        kept = [self._momentum(weight) for weight in given]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, kept, momentum)
        stacks = [_wide(x.reshape(self._stacked[w], -1, w[0].numel())) for w, x in zip(given, ahead, strict=True)]
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for i, stack in enumerate(stacks):
            alike[stack.shape[1:]].append(i)
        torch._foreach_mul_(weights, 1 - rate * weight_decay)
        found = self._directions(
            {str(n): torch.cat([stacks[i] for i in each]) for n, each in enumerate(alike.values())}
        )
        for (shape, members), direction in zip(alike.items(), found.values(), strict=True):
            made = torch.split(direction, [len(stacks[i]) for i in members])
            steps = [_as(weights[i], self._stacked[given[i]], step) for i, step in zip(members, made, strict=True)]
            torch._foreach_add_([weights[i] for i in members], steps, alpha=-rate * ADAMW_STEP * math.sqrt(shape[1]))

    def _directions(self, stacks: dict[str, Tensor]) -> dict[str, Tensor]:
        if self._recorder is not None:
            try:
                return self._recorder(stacks)
            except (NotRecordable, torch.OutOfMemoryError):
                self._recorder = None
        return directions(stacks)

    def _momentum(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        kept: Tensor = state["momentum"]
        return kept


def directions(stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """U V^T of each matrix U S V^T of each stack [N, A, B] with A <= B, within a few percent where a singular value is above a
    thousandth of the norm, and smaller than one elsewhere.
    """
    return {name: on_itself(x) for name, x in stacks.items()} if _has_matrix_units(stacks) else on_squares(stacks)


def on_itself(x: Tensor) -> Tensor:
    """The iteration as it is published, in bf16, which matrix units multiply many times as fast as float32; rounding turns
    directions by a hundredth. The largest singular value is kept below one before every step, since above it they diverge.
    """
    x = _unit(x).bfloat16()
    for a, b, c in QUINTICS:
        x = _quintic(x @ x.mT, a / MARGIN, b / MARGIN**3, c / MARGIN**5) @ x
    return x.float()


def on_squares(stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for processors, in float32: rounding of the square hides singular values below 3e-4 of the norm.

    The iteration multiplies a matrix x by polynomials of x x^T alone, so it runs on that square and never on x: with many
    columns that is a fraction of the work. Squares of one size are multiplied together, whatever they are squares of.
    """
    flat = {name: _unit(x) / MARGIN for name, x in stacks.items()}
    alike: dict[int, list[str]] = defaultdict(list)
    for name, x in flat.items():
        alike[x.shape[1]].append(name)
    found: dict[str, Tensor] = {}
    for names in alike.values():
        squares = torch.cat([flat[name] @ flat[name].mT for name in names])
        products = torch.split(_inverse_root(squares), [len(flat[name]) for name in names])
        found |= {name: product @ flat[name] for name, product in zip(names, products, strict=True)}
    return {name: found[name] for name in stacks}


def _has_matrix_units(stacks: Mapping[str, Tensor]) -> bool:
    return any(x.is_cuda and computes_bf16(x.device) for x in stacks.values())


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    return x / x.flatten(1).norm(dim=1).clamp_min(TINY)[:, None, None]


def _inverse_root(square: Tensor) -> Tensor:
    """What x is to be multiplied by, from x x^T [N, A, A]: about the square root of its inverse."""
    product = factor = _quintic(square, *QUINTICS[0])
    for coefficients in QUINTICS[1:]:
        square = factor @ square @ factor
        factor = _quintic(square, *coefficients)
        product = factor @ product
    return product


def _wide(stack: Tensor) -> Tensor:
    return stack if stack.shape[1] <= stack.shape[2] else stack.mT


def _as(weight: Tensor, matrices: int, direction: Tensor) -> Tensor:
    """A stack that `_wide` may have turned, in the shape of the weight that it belongs to."""
    turned = weight.shape[0] // matrices > weight[0].numel()
    upright = direction.mT if turned else direction
    return upright.reshape(weight.shape)


def _quintic(square: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b S + c S^2 of each matrix S: times x it is the polynomial of x."""
    factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor
