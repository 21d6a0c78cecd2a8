"""How the cost of generating and of training grows with the volume, with conditions, and with processes.

    python -m benchmarks.scaling                                           # volumes of 32^3 to 256^3 voxels, one thread
    python -m benchmarks.scaling --device cuda --dtype bfloat16 --sides 64 128 256 512
    python -m benchmarks.scaling --parts processes --steps 30              # two cores free, please

Latents are 4x smaller per axis, with 4 channels; the denoiser is the U-Net of `--widths` and `--blocks` (widths of
64 and 96 and one block unless given), the autoencoder has a width of 48. Parts:

- `volumes`: one volume generated through the pipeline, sampling and decoding, with `--evaluations` network evaluations;
  and a training step of the denoiser on one latent. Exponents are of cost over voxels, from `--fit-from` on.
- `conditions`: generating a volume of `--condition-side` with one condition, with two, and guided by one and by each.
- `processes`: samples per second of the training loop with one process, with one of two threads, and with two processes
  under torchrun, on a CPU alone. Wall-clock means little on a machine that others use; samples per CPU second stand
  beside it.

With `--dtype bfloat16` the denoiser multiplies in bfloat16, and the pipeline decodes in float16 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.growth import exponent
from benchmarks.harness import Works, adamw, cell, costs, limit_threads, noise, over, setting, write

DOWNSAMPLING, CHANNELS, AUTOENCODER_WIDTH = 4, 4, 48
CONDITIONS: dict[str, Any] = {
    "diameter_mm": {"kind": "number", "range": [0.0, 1.0], "unit": "mm", "dropout": 0.1},
    "diagnosis": {"kind": "category", "values": ["benign", "malignant"], "dropout": 0.1},
}
ASKED = {"diameter_mm": 0.5, "diagnosis": "benign"}
PARTS = ("volumes", "conditions", "processes")
LAYOUTS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
WORKER_BATCH, WORKER_GRID, WORKER_WARM = 8, 12, 5
VOLUME_FIGURES = ("generate_seconds", "generate_peak_mib", "step_seconds", "step_peak_mib")


def network(widths: tuple[int, ...], blocks: int, conditions: dict[str, Any]) -> Any:
    """The denoising network, untrained."""
    from medsynth.models.unet import LatentUNet

    return LatentUNet(CHANNELS, DOWNSAMPLING, widths, blocks, ("linear",), 32, 16, conditions)


def pipeline(side: int, denoiser: Any, conditions: dict[str, Any], autoencoder: Any = None) -> Any:
    """A generator of side^3 voxels at 1 mm, with an autoencoder of width 48 unless another is given."""
    from medsynth.diffusion.pipeline import LatentVolumePipeline
    from medsynth.models.autoencoder import KLAutoencoder

    return LatentVolumePipeline(
        autoencoder=autoencoder or KLAutoencoder(1, DOWNSAMPLING, CHANNELS, AUTOENCODER_WIDTH, 2).eval(),
        denoiser=denoiser,
        objective={"kind": "flow"},
        conditions=conditions,
        intensity={"kind": "hu_window", "low": -1000.0, "high": 400.0, "unit": "HU", "reference": None},
        geometry={
            "spacing_mm": [1.0, 1.0, 1.0],
            "box": [side] * 3,
            "modality": "CT",
            "unit": "HU",
            "orientation": "RAS",
        },
    )


def prepare_volume(
    side: int, widths: tuple[int, ...], blocks: int, evaluations: int, device: str, dtype: str, threads: int
) -> tuple[dict[str, Any], Works]:
    """Generating one volume, and one training step of its denoiser."""
    import torch

    from medsynth.diffusion.objective import Denoiser, Objective

    limit_threads(threads, device)
    net = network(widths, blocks, {}).to(device)
    pipe = pipeline(side, net, {}).to(device)
    pipe.precision = "bf16" if dtype == "bfloat16" else "fp32"
    denoiser = Denoiser(net, Objective({"kind": "flow"}))
    optimiser = adamw(net, device)
    shape = (1, CHANNELS, *(side // DOWNSAMPLING,) * 3)
    x, drawn = (noise(shape, device, "scaling benchmark", i) for i in range(2))
    angle = torch.tensor([0.7], device=device)

    def generate() -> None:
        net.eval()
        pipe(seeds=[1], sampler="flow_euler", evaluations=evaluations)

    def step() -> None:
        net.train()
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss: Any = denoiser.loss(x, {}, angle, drawn).mean()
        loss.backward()
        optimiser.step()

    with torch.no_grad():  # what the first call sets up is not counted
        net(x[..., :8, :8, :8], angle, {})
    facts = {"denoiser_parameters": sum(weight.numel() for weight in net.parameters())}
    return facts, {"generate": generate, "step": step}


def prepare_conditions(
    side: int, widths: tuple[int, ...], blocks: int, evaluations: int, device: str, dtype: str, threads: int
) -> tuple[dict[str, Any], Works]:
    """Generating one volume with conditions: one, two, and guided by all at once or by each for itself."""
    limit_threads(threads, device)
    one = {"diameter_mm": CONDITIONS["diameter_mm"]}
    pipes = {n: pipeline(side, network(widths, blocks, c).eval(), c).to(device) for n, c in ((1, one), (2, CONDITIONS))}

    for pipe in pipes.values():
        pipe.precision = "bf16" if dtype == "bfloat16" else "fp32"

    def generate(conditions: int, guidance: Any) -> None:
        asked = {name: ASKED[name] for name in list(CONDITIONS)[:conditions]}
        pipes[conditions](asked, seeds=[1], sampler="flow_euler", evaluations=evaluations, guidance=guidance)

    return {"side": side}, {
        "one": lambda: generate(1, 1.0),
        "two": lambda: generate(2, 1.0),
        "guided_by_one": lambda: generate(1, 2.0),
        "guided_by_each_of_two": lambda: generate(2, dict.fromkeys(CONDITIONS, 2.0)),
    }


def exponents(rows: list[dict[str, Any]], fit_from: int) -> dict[str, float | None]:
    """Growth of each figure over the number of voxels, from volumes of fit_from^3 on."""
    found = {}
    for figure in VOLUME_FIGURES:
        seen = [(row["side"] ** 3, max(row[figure], 1e-9)) for row in rows if row["side"] >= fit_from and figure in row]
        found[figure] = exponent([voxels for voxels, _ in seen], [value for _, value in seen])
    return found


def volume_table(rows: list[dict[str, Any]], growth: dict[str, float | None]) -> str:
    """A line for each size, and the exponents."""
    lines = [f"{'voxels':<10}" + "".join(f"{figure:>19}" for figure in VOLUME_FIGURES)]
    lines += [
        f"{row['side']:>4}^3    " + "".join(cell(row, figure, 19, 3) for figure in VOLUME_FIGURES) for row in rows
    ]
    slopes = ["-" if growth[figure] is None else f"{growth[figure]:.2f}" for figure in VOLUME_FIGURES]
    return "\n".join([*lines, f"{'exponent':<10}" + "".join(f"{slope:>19}" for slope in slopes)])


def worker(folder: Path, steps: int, widths: tuple[int, ...], blocks: int) -> None:
    """Train on invented latents through the training loop, alone or under torchrun; seconds go to `folder`."""
    import torch
    from torch import Tensor

    from medsynth.config.training import Training
    from medsynth.diffusion.objective import Denoiser, Objective
    from medsynth.seeding import torch_generator
    from medsynth.training.batches import Batch
    from medsynth.training.loop import Task, train

    class Latents(Task):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(widths, blocks, {})
            self.denoiser = Denoiser(self.network, Objective({"kind": "flow"}))

        def draw(self, number: int, rows: slice) -> Batch:
            generator = torch_generator(0, "scaling latents", number)
            shape = (WORKER_BATCH, CHANNELS, *(WORKER_GRID,) * 3)
            latents, noise = (torch.randn(shape, generator=generator)[rows] for _ in range(2))
            return {"latents": latents, "noise": noise, "angles": torch.rand(WORKER_BATCH, generator=generator)[rows]}

        def forward(self, batch: Batch) -> dict[str, Tensor]:
            return {"loss": self.denoiser.loss(batch["latents"], {}, batch["angles"], batch["noise"]).mean()}

        def validate(self) -> dict[str, float]:
            return {"loss": 0.0}

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rank = os.environ.get("RANK", "0")
    settings = Training(steps=steps + WORKER_WARM, batch_size=WORKER_BATCH, log_every=1, checkpoint_minutes=1e6)
    own = folder / f"checkpoints-{rank}"
    records = train(Latents(), settings, folder=own, identity={}, device=torch.device("cpu"))
    marks = {record.step: (time.perf_counter(), time.process_time()) for record in records}
    # The last step saves, and is not counted.
    (wall, cpu), (wall_end, cpu_end) = marks[WORKER_WARM], marks[steps + WORKER_WARM - 1]
    figures = {"samples": (steps - 1) * WORKER_BATCH, "wall": wall_end - wall, "cpu": cpu_end - cpu}
    (folder / f"rank-{rank}.json").write_text(json.dumps(figures))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def throughput(layout: str, steps: int, widths: tuple[int, ...], blocks: int) -> dict[str, Any]:
    """Samples per second of the training loop with a number of processes and threads of each."""
    processes, threads = LAYOUTS[layout]
    launcher = [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--worker", folder, "--steps", str(steps), "--blocks", str(blocks)]
        arguments += ["--widths", *map(str, widths)]
        command = [sys.executable, *(["-m", *launcher] if launcher else []), "-m", "benchmarks.scaling", *arguments]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        ranks = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]
    samples = ranks[0]["samples"]
    return {
        "layout": layout,
        "samples_per_second": samples / max(rank["wall"] for rank in ranks),
        "samples_per_cpu_second": samples / sum(rank["cpu"] for rank in ranks),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="all; processes on a CPU alone")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128, 256], help="voxels per axis")
    parser.add_argument("--fit-from", type=int, default=64, help="smallest side that exponents are fitted to")
    parser.add_argument("--condition-side", type=int, default=128)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30, help="training steps of each layout of processes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    widths = tuple(options.widths)
    if options.worker is not None:
        worker(options.worker, options.steps, widths, options.blocks)
        return
    shape = {"widths": widths, "blocks": options.blocks, "evaluations": options.evaluations}
    record: dict[str, Any] = {**setting(options.device, options.threads, options.dtype), **shape}
    rest = (widths, options.blocks, options.evaluations, options.device, options.dtype, options.threads)
    name = f"scaling-{options.device}-{options.dtype}"
    if "volumes" in options.parts:
        rows = record["volumes"] = []
        for side in sorted(options.sides):
            rows.append({"side": side, **costs(prepare_volume, (side, *rest), options.device, most=3)})
            record["exponents"] = exponents(rows, options.fit_from)
            write(name, record, options.out)
        print(volume_table(rows, record["exponents"]))
    if "conditions" in options.parts:
        found = costs(prepare_conditions, (options.condition_side, *rest), options.device, most=3)
        record["conditions"] = {"side": options.condition_side, **found}
        for figure in ("one_seconds", "two_seconds", "guided_by_one_seconds", "guided_by_each_of_two_seconds"):
            ratio = over(found[figure], found["one_seconds"]) if figure in found and "one_seconds" in found else ""
            print(f"{figure.removesuffix('_seconds'):<24}{cell(found, figure, 15, 3)} s{ratio:>7}")
        write(name, record, options.out)
    if "processes" in options.parts and options.device == "cpu":
        record["processes"] = [throughput(layout, options.steps, widths, options.blocks) for layout in LAYOUTS]
        for row in record["processes"]:
            rates = f"{row['samples_per_second']:>9.2f} per second{row['samples_per_cpu_second']:>9.2f} per CPU second"
            print(f"{row['layout']:<28}{rates}")
        write(name, record, options.out)


if __name__ == "__main__":
    main()
