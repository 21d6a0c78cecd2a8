"""How much of a device's matrix-product rate a training step of medsynth's denoisers uses.

    python -m benchmarks.utilisation --device cuda --presets base transformer-base --side 32 --batch 16
    python -m benchmarks.utilisation --device cuda --presets base --compile
    python -m benchmarks.utilisation --presets tiny --side 8 --batch 2          # does it run?

The rate is that of a product of two bf16 matrices of 8192 x 8192 (of 512 x 512 on a CPU), measured here. A step is forward,
backward, clipping and the optimisers of training (`--optimiser`) on latents of `--side`^3 with 4 channels, under bf16 autocast,
without conditions. Its FLOPs are three times those of the forward pass, as PyTorch's counter finds them: what is computed again
for the backward pass does not count, nor what the optimisers compute. The counter sees into no fused kernel, so linear
attention is counted as its plain PyTorch twin.

On a GPU every variant is also replayed: forward and backward are recorded as one CUDA graph, and the optimisers follow. Compiling,
with `--compile`, is timed apart. Peaks are of all tensors, weights, gradients and moments included; on a CPU, above what was in
use before the steps, and weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import (
    best_seconds,
    cell,
    give_back,
    if_it_fits,
    limit_threads,
    millions,
    noise,
    preset,
    seconds_of,
    setting,
    total_peak_gib,
    write,
)

CHANNELS, DOWNSAMPLING = 4, 4
MATRIX = {"cpu": 512, "cuda": 8192}
PRODUCTS = 10
EAGER, REPLAYED, COMPILED, COMPILED_REPLAYED = "eager", "replayed", "compiled", "compiled, replayed"
PASSES = 3
"""Forward, and twice as much backward."""


def product_rate(device: str) -> float:
    """FLOP per second of a product of bf16 matrices."""
    import torch

    size = MATRIX[device]
    a, b = (noise((size, size), device, "utilisation", i).to(torch.bfloat16) for i in range(2))

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b)

    return 2 * size**3 * PRODUCTS / best_seconds(products, device, most=20)


def plain_attention() -> AbstractContextManager[Any]:
    """Linear attention runs as its plain PyTorch twin meanwhile."""
    from medsynth.models import linear_attention as module

    return patch.object(module, "can_fuse", lambda *_: False)


def forward_flops(name: str, side: int, batch: int, device: str) -> int:
    """FLOPs of one forward pass of a preset's network, counted on tensors without numbers."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), torch.device(device), plain_attention(), torch.no_grad():
        network = preset(name, CHANNELS, DOWNSAMPLING).eval()
        x, angles = torch.empty(batch, CHANNELS, side, side, side), torch.empty(batch)
        with counter:
            network(x, angles, {})
    return int(counter.get_total_flops())


class Step:
    """A training step of a network on one batch."""

    def __init__(self, network: Any, side: int, batch: int, device: str, optimiser: Any) -> None:
        import torch

        from medsynth.config.training import Training
        from medsynth.diffusion.objective import Denoiser, Objective
        from medsynth.training.learner import Learner

        shape = (batch, CHANNELS, side, side, side)
        self.batch = {part: noise(shape, device, "utilisation", part) for part in ("latents", "noise")}
        self.batch["angles"] = torch.linspace(0.1, 1.5, batch, device=device)
        self.denoiser = Denoiser(network, Objective({"kind": "flow"}))
        self.learner = Learner("loss", network, Training(optimiser=optimiser), torch.device(device))
        self.device = device

    def compute(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Forward and backward."""
        import torch

        with torch.autocast(self.device, torch.bfloat16):
            loss: Any = self.denoiser.loss(batch["latents"], {}, batch["angles"], batch["noise"]).mean()
        loss.backward()
        return {"loss": loss}

    def __call__(self, compute: Callable[[dict[str, Any]], Any] | None = None) -> None:
        """A whole step."""
        (compute or self.compute)(self.batch)
        self.learner.step()

    def replayed(self) -> Callable[[], None]:
        """The same step with forward and backward recorded, as training does it."""
        from medsynth.kernels.recording import WARM_CALLS
        from medsynth.training.replay import Replay

        step = partial(self, Replay(self.compute, list(self.denoiser.network.parameters())))
        for _ in range(WARM_CALLS + 1):
            step()
        return step


def measure(name: str, options: argparse.Namespace, variants: tuple[str, ...], rate: float) -> Iterator[dict[str, Any]]:
    """A row for each of the variants of a preset's training step, which are all compiled or none."""
    side, batch, device = options.side, options.batch, options.device
    flops = PASSES * forward_flops(name, side, batch, device)
    network = preset(name, CHANNELS, DOWNSAMPLING).to(device).train()
    step = Step(network, side, batch, device, options.optimiser)
    step()  # a first one loads and builds kernels
    parameters = sum(weight.numel() for weight in network.parameters())
    known = {"preset": name, "side": side, "batch": batch, "optimiser": options.optimiser}
    known |= {"parameters": parameters, "step_tflop": flops / 1e12}

    def compile_first() -> dict[str, Any]:
        network.compile(dynamic=False)
        return {"compile_seconds": seconds_of(step, device)}

    def timed(make: Callable[[], Callable[[], None]]) -> dict[str, Any]:
        row: dict[str, Any] = {}

        def run() -> None:
            row["seconds"] = best_seconds(make(), device, most=20)

        peak = total_peak_gib(run, device, network)
        reached = flops / row["seconds"]
        return row | {"tflop_per_second": reached / 1e12, "share": reached / rate, "peak_gib": peak}

    for variant in variants:
        first = if_it_fits(compile_first) if variant == COMPILED else {}
        make = step.replayed if variant in (REPLAYED, COMPILED_REPLAYED) else lambda: step
        yield {**known, "variant": variant, **first, **if_it_fits(partial(timed, make))}
        give_back()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as lines of text."""
    heads = "".join(f"{name:>15}" for name in ("step s", "TFLOP/s", "share", "peak GiB", "compiling s"))
    lines = [f"{'preset':<20}{'variant':<20}{'Mparam':>8}{heads}"]
    for row in rows:
        figures = (("seconds", 4), ("tflop_per_second", 3), ("share", 3), ("peak_gib", 2))
        cells = "".join(cell(row, key, 15, digits) for key, digits in figures)
        compiling = cell(row, "compile_seconds", 15, 1) if "compile_seconds" in row else ""
        lines.append(f"{row['preset']:<20}{row['variant']:<20}{millions(row, 'parameters', 8)}{cells}{compiling}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write it as JSON, after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["base", "transformer-base"], help="of configs/denoiser")
    parser.add_argument("--side", type=int, default=32, help="latent voxels per axis")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--optimiser", default="muon", choices=["muon", "adamw"])
    parser.add_argument("--compile", action="store_true", help="compile the network as well, after everything else")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    limit_threads(options.threads, options.device)
    rate = product_rate(options.device)
    print(f"bf16 products: {rate / 1e12:.2f} TFLOP/s", flush=True)
    rows: list[dict[str, Any]] = []
    record = {**setting(options.device, options.threads, "bfloat16"), "product_tflop_per_second": rate / 1e12}
    record["rows"] = rows
    graphs = options.device == "cuda"
    passes: list[tuple[str, ...]] = [(EAGER,), *([(REPLAYED,)] if graphs else [])]
    if options.compile:
        passes.append((COMPILED, COMPILED_REPLAYED) if graphs else (COMPILED,))
    for variants in passes:
        for name in options.presets:
            for row in measure(name, options, variants, rate):
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                write(f"utilisation-{options.device}", record, options.out)
            give_back()
    print(table(rows))


if __name__ == "__main__":
    main()
