"""Each fused kernel beside the PyTorch operations that it replaces: time of forward and backward, and how far results differ.

    python -m benchmarks.kernels --device cuda
    TRITON_INTERPRET=1 python -m benchmarks.kernels --side 4 --batch 1 --channels 128    # does it run?

Volumes are `--batch` latents of `--side`^3 voxels and `--channels` channels, products in bf16 under autocast. On a GPU calls are
recorded and replayed, as they are in training, where Python would take longer than the GPU. On a CPU kernels run in Triton's
interpreter, whose times mean nothing. `differs` is the norm of the difference of all results and gradients over their norm; both
sides round to bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import best_seconds, cell, give_back, limit_threads, noise, setting, write

FEW_CHANNELS = 4
HEAD_CHANNELS = 32
GATES = (
    "medsynth.models.blocks.can_fuse",
    "medsynth.models.blocks.joins_late",
    "medsynth.models.linear_attention.can_fuse",
    "medsynth.kernels.windows.can_fuse",
)
"""What asks whether to take a kernel."""


@contextmanager
def unfused() -> Iterator[None]:
    """PyTorch operations take the place of every kernel meanwhile."""
    with ExitStack() as stack:
        for gate in GATES:
            stack.enter_context(patch(gate, lambda *_: False))
        yield


def pieces(channels: int, device: str) -> Mapping[str, tuple[Any, int]]:
    """By name: a module of a network, and how many channels it takes."""
    from medsynth.models.attention import Attention3D
    from medsynth.models.blocks import ChannelNorm, Convolution, ResidualBlock

    found = {
        "norm": (ChannelNorm(channels), channels),
        "residual block": (ResidualBlock(channels, group_width=channels), channels),
        "linear attention, norm and mixes": (Attention3D(channels, HEAD_CHANNELS, "linear"), channels),
        f"convolution from {FEW_CHANNELS}": (Convolution(FEW_CHANNELS, channels), FEW_CHANNELS),
        f"convolution to {FEW_CHANNELS}": (Convolution(channels, FEW_CHANNELS), channels),
    }
    return {name: (module.to(device), width) for name, (module, width) in found.items()}


def forward_and_backward(module: Any, device: str) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A function of x and what arrives from above: the result, and the gradients of x and of all weights."""
    import torch

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        x = inputs["x"].detach().requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            out = module(x)
        return [out, *torch.autograd.grad(out, [x, *module.parameters()], inputs["upstream"].to(out.dtype))]

    return run


def measure(module: Any, width: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds with and without kernels, and how far apart their results are."""
    import torch

    from medsynth.kernels.recording import Recorder

    side, device = options.side, options.device
    for weight in module.parameters():  # what starts at zero would hide what comes before it
        weight.data += 0.1 * noise(weight.shape, device, "kernels", "weights")
    x = noise((options.batch, side, side, side, width), device, "kernels", "x").bfloat16()
    out = module(x.float()).shape
    inputs = {"upstream": noise(out, device, "kernels", "upstream").bfloat16(), "x": x}
    row: dict[str, Any] = {}
    results = {}
    for name, way in (("fused", ExitStack), ("plain", unfused)):
        with way():
            run: Callable[[Mapping[str, Any]], list[Any]] = forward_and_backward(module, device)
            if device == "cuda":
                run = Recorder(run)
            row[f"{name}_seconds"] = best_seconds(partial(run, inputs), device, most=50)
            results[name] = torch.cat([each.detach().double().flatten() for each in run(inputs)])
    row["ratio"] = row["plain_seconds"] / row["fused_seconds"]
    row["differs"] = float((results["fused"] - results["plain"]).norm() / results["plain"].norm())
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    lines = [f"{'piece':<36}{'fused s':>12}{'plain s':>12}{'ratio':>9}{'differs':>10}"]
    for row in rows:
        figures = (("fused_seconds", 12, 6), ("plain_seconds", 12, 6), ("ratio", 9, 2), ("differs", 10, 5))
        lines.append(f"{row['piece']:<36}" + "".join(cell(row, *figure) for figure in figures))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON, after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=32, help="latent voxels per axis")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    import torch

    from medsynth.kernels.triton_at_hand import runs_on

    limit_threads(options.threads, options.device)
    if not runs_on(torch.device(options.device)):
        raise SystemExit(
            f"expected a device that Triton's kernels run on, found {options.device}; set TRITON_INTERPRET=1 to see whether "
            "they run"
        )
    rows: list[dict[str, Any]] = []
    record = {**setting(options.device, options.threads, "bfloat16"), "side": options.side, "batch": options.batch}
    record |= {"channels": options.channels, "rows": rows}
    for name, (module, width) in pieces(options.channels, options.device).items():
        rows.append({"piece": name, **measure(module, width, options)})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        write(f"kernels-{options.device}", record, options.out)
        give_back()
    print(table(rows))


if __name__ == "__main__":
    main()
