"""medsynth beside MONAI's latent diffusion on the same scans, with the same budget of processor time.

    python -m benchmarks.peers run --task hippocampus --method medsynth --minutes 60 --seed 1
    python -m benchmarks.peers run --task hippocampus --method monai --minutes 60 --seed 1
    python -m benchmarks.peers table

A cell is one task, method, budget and seed. `run` trains autoencoder and denoiser within the budget, generates, judges,
and adds the cell to `benchmarks/results/peers.json`; an interrupted cell goes on from its checkpoint when it is run
again. Budgets are minutes of the process's own time over all its threads: 60 are half an hour on two cores without losses.
Needs the real scans that MEDSYNTH_DATA names.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, setting, write
from medsynth.memory import keep_freed_memory

NAME = "peers"
METHODS = ("medsynth", "monai")
TASKS = ("hippocampus", "nodules")


def run_cell(options: argparse.Namespace) -> dict[str, Any]:
    """Train, generate and judge one cell."""
    import numpy as np
    import torch

    keep_freed_memory()  # for both methods
    from benchmarks.peers.data import draw_request, load_data
    from benchmarks.peers.judge import judge
    from benchmarks.peers.method import Run
    from benchmarks.peers.monai_ldm import monai_ldm
    from benchmarks.peers.ours import medsynth

    torch.set_num_threads(options.threads)
    data = load_data(options.task, options.folder / options.task / "data")
    folder = options.folder / options.task / f"{options.method}-{options.minutes:g}-{options.seed}"
    method = {"medsynth": medsynth, "monai": monai_ldm}[options.method]
    trained = method(Run(data, folder, options.seed, options.minutes))
    request = draw_request(data, options.count, options.seed)
    began = time.process_time()
    scans = trained.generate(request)
    seconds = (time.process_time() - began) / len(request)
    np.save(folder / "scans.npy", scans.numpy().astype(np.float16), allow_pickle=False)
    return {
        "task": options.task,
        "method": options.method,
        "minutes": options.minutes,
        "seed": options.seed,
        "count": options.count,
        "data": data.digest,
        **setting("cpu", options.threads, "bf16 where native in training, float32 in sampling"),
        **trained.facts,
        "seconds_per_scan": round(seconds, 3),
        **judge(data, request, scans),
    }


def add(cell: Mapping[str, Any], path: Path) -> None:
    """Put a cell into the record, in the place of one of the same task, method, budget and seed."""
    cells = read(path)
    kept = [other for other in cells if _key(other) != _key(cell)]
    write(NAME, {"cells": sorted([*kept, dict(cell)], key=_key)}, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The cells measured so far."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"]) if path.is_file() else []


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[name] for name in ("task", "minutes", "seed", "method"))


def table(cells: list[dict[str, Any]]) -> str:
    """A line per cell, with real against real beside it, in Markdown."""
    heads = ["Task", "Budget, min", "Seed", "Method", "PSNR, dB"]
    spaces = [space["space"] for space in cells[0]["fidelity"]] if cells else []
    heads += [f"{metric}, {space}" for space in spaces for metric in ("KID", "Frechet")]
    heads += ["Dice asked for / real", "AUC of the label, synthetic / real", "MS-SSIM / real", "s per scan"]
    lines = [heads, ["---"] * len(heads)]
    for cell in cells:
        row = [cell["task"], f"{cell['minutes']:g}", str(cell["seed"]), cell["method"]]
        row.append(f"{cell['autoencoder']['validation']['psnr']:.1f}")
        for space in cell["fidelity"]:
            metrics = {metric["name"]: metric for metric in space["metrics"]}
            row += [_beside(metrics[name]["synthetic"], metrics[name]["real"]) for name in ("kid", "frechet")]
        overlap = cell["mask_overlap"]
        row.append(_beside(overlap["on_synthetic"], overlap["on_real"]) if overlap else "-")
        row.append(_beside(cell["label"]["synthetic"], cell["label"]["real"]))
        row.append(_beside(cell["diversity"]["synthetic"], cell["diversity"]["real"]))
        lines.append([*row, f"{cell['seconds_per_scan']:.2f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _beside(synthetic: Mapping[str, float], real: Mapping[str, float]) -> str:
    found = f"{synthetic['value']:.3g} [{synthetic['low']:.3g}, {synthetic['high']:.3g}]"
    return f"{found} / {real['value']:.3g}"


def main(arguments: list[str] | None = None) -> None:
    """Run a cell, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="processor minutes of the whole training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=128, help="scans to generate and judge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{NAME}.json")
    options = parser.parse_args(arguments)
    if options.action == "run":
        add(run_cell(options), options.out)
    print(table(read(options.out)))


if __name__ == "__main__":
    main()
