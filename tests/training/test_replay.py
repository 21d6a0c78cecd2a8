"""Recorded steps are the steps themselves. Recording needs a GPU; what it rests on does not."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_task import ToyTask, settings

from medsynth.diffusion.objective import Denoiser, Objective
from medsynth.models.transformer import LatentTransformer
from medsynth.models.unet import LatentUNet
from medsynth.seeding import torch_generator
from medsynth.training.loop import Task, train
from medsynth.training.replay import Replay

DECLARED = {
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
    "diameter_mm": {"kind": "number", "range": [0.0, 1.0], "unit": "mm", "dropout": 0.1},
    "nodule": {"kind": "mask", "labels": {"nodule": 1}, "dropout": 0.1},
}


def networks():
    yield LatentUNet(4, 2, (32, 64), 1, ("linear",), 16, 16, DECLARED, positions=True, cross_attention=True)
    yield LatentUNet(4, 2, (32, 64), 1, ("softmax",), 16, 16, None, group_width=32, checkpointing=True)
    yield LatentTransformer(4, 2, 64, 2, 1, conditions=DECLARED, positions=True)


class Crossings(TorchDispatchMode):
    """Notes every operation that waits for a device, or that a device's work and the host's meet in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        used = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        if "cpu" in used or "local_scalar" in str(function) or "nonzero" in str(function):
            self.seen.append(str(function))
        return result


def inputs(device: str, count: int = 2, side: int = 8):
    conditions = {
        "diagnosis": torch.zeros(count, dtype=torch.int64, device=device),
        "diameter_mm": torch.full((count,), 0.5, device=device),
        "nodule": torch.ones(count, 1, *(2 * side,) * 3, dtype=torch.uint8, device=device),
    }
    latents, noise = (torch.ones(count, 4, side, side, side, device=device) for _ in range(2))
    return latents, conditions, torch.full((count,), 0.7, device=device), noise


@pytest.mark.parametrize("steered", [True, False])
@pytest.mark.parametrize("network", list(networks()), ids=["unet", "softmax", "transformer"])
def test_a_step_of_the_denoiser_stays_on_its_device(
    network: nn.Module, steered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors without contents, which know a device of their own; conditions that are left out cross nothing either."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # has none for such tensors
    network = network.to("meta").train()
    latents, conditions, angles, noise = inputs("meta")
    conditions = conditions if steered else {}
    with Crossings() as crossings:
        Denoiser(network, Objective({"kind": "flow"})).loss(latents, conditions, angles, noise).mean().backward()
    assert crossings.seen == []


def test_crossings_are_noticed() -> None:
    with Crossings() as crossings:
        torch.ones(2).to("meta")
    assert crossings.seen


def test_on_a_processor_nothing_is_recorded(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replay, "__init__", lambda *_: pytest.fail("a processor has no graphs"))
    assert list(train(ToyTask(8), settings(replay=True), folder=tmp_path, identity={}, device=torch.device("cpu")))


class OnTwoGrids(Task):
    """A denoiser whose batches take turns on two grids."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = LatentUNet(4, 2, (32, 64), 1, ("linear",), 16, 16, DECLARED, positions=True)
        for weight in self.network.parameters():
            nn.init.normal_(weight, std=0.05)
        self.denoiser = Denoiser(self.network, Objective({"kind": "flow"}))

    def draw(self, number, rows):
        generator = torch_generator(3, "batch", number)  # of its own: several threads draw
        side = 8 if number % 2 else 4
        _, conditions, angles, _ = inputs("cpu", side=side)
        latents, noise = (torch.randn(2, 4, side, side, side, generator=generator) for _ in range(2))
        return {"latents": latents, "noise": noise, "angles": angles, **conditions}

    def forward(self, batch):
        conditions = {name: batch[name] for name in DECLARED}
        return {"loss": self.denoiser.loss(batch["latents"], conditions, batch["angles"], batch["noise"]).mean()}

    def validate(self):
        return {"loss": 0.0}


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
def test_recorded_steps_are_the_steps_themselves(tmp_path, compiled) -> None:
    """Both grids are recorded after some steps; losses and weights are those of a run that records and compiles nothing."""
    runs = {}
    for replay in (False, True):
        task = OnTwoGrids()
        plan = settings(steps=24, batch_size=2, log_every=1, validate_every=8, precision="fp32", replay=replay)
        plan = plan.model_copy(update={"compile": compiled and replay})
        records = list(train(task, plan, folder=tmp_path / str(replay), identity={}, device=torch.device("cuda")))
        runs[replay] = [record.losses["loss"] for record in records], list(weights(task))
    assert runs[True][0] == pytest.approx(runs[False][0], rel=1e-3)
    for ours, usual in zip(runs[True][1], runs[False][1], strict=True):
        torch.testing.assert_close(ours, usual, rtol=1e-3, atol=1e-4)


def weights(task: Task) -> Iterator[torch.Tensor]:
    return (weight.detach().cpu() for weight in task.network.parameters())
