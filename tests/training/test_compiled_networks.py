"""`training.compile` on the networks that it is meant for: the same outputs and gradients, on grids of several sizes.

Traced forward and backward as for any compiler, without the minutes that C++ takes; `test_loop` compiles a small network
all the way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.seeding import torch_generator

pytestmark = pytest.mark.slow
DECLARATION = {"kind_of": {"kind": "category", "values": ["a", "b"], "dropout": 0.1}}
GRIDS = ((4, 4, 4), (8, 4, 4))


def networks() -> list[nn.Module]:
    unet = LatentUNet(latent_channels=2, widths=(16, 32), blocks=1, head_channels=16, conditions=DECLARATION)
    transformer = LatentTransformer(latent_channels=2, width=16, depth=1, head_channels=16, conditions=DECLARATION)
    return [unet, transformer]


def step(network: nn.Module, call: nn.Module, grid: tuple[int, ...]) -> list[torch.Tensor]:
    """The output and all gradients of one step."""
    generator = torch_generator(0, "compiled", *grid)
    x = torch.randn(2, 2, *grid, generator=generator)
    network.zero_grad()
    out = call(x, torch.tensor([0.3, 1.2]), {"kind_of": torch.tensor([0, 1])})
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    return [out.detach(), *(w.grad.clone() for w in network.parameters() if w.grad is not None)]


@pytest.mark.parametrize("number", [0, 1], ids=["unet", "transformer"])
def test_a_compiled_network_computes_what_the_plain_one_does(number):
    torch.manual_seed(0)
    network = networks()[number]
    with torch.no_grad():  # output layers and gates start at zero, which would hide everything before them
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch_generator(1, "moved")))
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager")
    for grid in GRIDS:
        plain, fast = step(network, network, grid), step(network, compiled, grid)
        assert len(plain) == len(fast) > 10
        for one, other in zip(plain, fast, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
