"""medsynth beside MONAI's latent diffusion on the same scans, with the same budget of processor time.

    python -m benchmarks.peers run --task hippocampus --method medsynth --minutes 60 --seed 1
    python -m benchmarks.peers run --task hippocampus --method monai --minutes 60 --seed 1
    python -m benchmarks.peers make --task nodules --method monai --minutes 0.5 --seed 1 --device cuda
    python -m benchmarks.peers judge --task nodules --device cuda
    python -m benchmarks.peers run --task hippocampus --method medsynth --minutes 60 --seed 1 --vary
    python -m benchmarks.peers table

A cell is one task, method, budget and seed. `make` trains autoencoder and denoiser within the budget and generates scans;
`judge` judges all that were made for a task and adds them to `benchmarks/results/peers.json` (`peers-cuda.json` for a GPU's),
on the CPU; `run` does both for one cell. An interrupted cell goes on from its checkpoint when it is run again. Budgets are
minutes of the process's own time over all its threads on a CPU, where 60 are half an hour on two cores without losses, and of the
wall on a GPU. Needs the real scans that MEDSYNTH_DATA names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medsynth as medsynth_package
from benchmarks.harness import RESULTS, limit_threads, seconds_of, setting, write
from medsynth import __version__
from medsynth.digests import file_sha256
from medsynth.memory import keep_freed_memory
from medsynth.stages.files import digest, read_json, write_json

if TYPE_CHECKING:
    from benchmarks.peers.data import Data
    from benchmarks.peers.judge import Judge

NAME = "peers"
SCANS, MADE = "scans.npy", "made.json"
VARIED = "varied"
"""Folder in that of a training for scans asked for with varied masks."""
METHODS = ("medsynth", "monai")
TASKS = ("hippocampus", "nodules")


def folder_of(options: argparse.Namespace) -> Path:
    """Where a cell's training is kept."""
    suffix = "" if options.device == "cpu" else f"-{options.device}"
    folder: Path = options.folder / options.task / f"{options.method}-{options.minutes:g}-{options.seed}{suffix}"
    return folder


def make(options: argparse.Namespace, data: Data) -> Path:
    """Train one cell and generate its scans. Returns the folder that holds them and what is known of their making."""
    import numpy as np
    import torch

    from benchmarks.peers.data import draw_request
    from benchmarks.peers.method import Run
    from benchmarks.peers.monai_ldm import monai_ldm
    from benchmarks.peers.ours import medsynth

    limit_threads(options.threads, options.device)
    folder = folder_of(options)
    method = {"medsynth": medsynth, "monai": monai_ldm}[options.method]
    trained = method(Run(data, folder, options.seed, options.minutes, torch.device(options.device)))
    request = draw_request(data, options.count, options.seed, vary=options.vary)
    scans: list[torch.Tensor] = []
    seconds = seconds_of(lambda: scans.append(trained.generate(request)), options.device) / len(request)
    folder = folder / VARIED if options.vary else folder
    folder.mkdir(exist_ok=True)
    np.save(folder / SCANS, scans[0].numpy().astype(np.float16), allow_pickle=False)
    cell = {
        "task": options.task,
        "method": options.method,
        "minutes": options.minutes,
        "seed": options.seed,
        "varied": options.vary,
        "count": options.count,
        "data": data.digest,
        "medsynth": __version__,
        "code": _code(),
        **setting(options.device, options.threads, "bf16 where native in training, float32 in sampling"),
        **trained.facts,
        "seconds_per_scan": round(seconds, 3),
    }
    write_json(folder / MADE, cell)
    return folder


def _code() -> str:
    """A digest of medsynth's sources: cells of one code have the same."""
    package = Path(medsynth_package.__file__).parent
    return digest([[str(path.relative_to(package)), file_sha256(path)] for path in sorted(package.rglob("*.py"))])


def judged(folder: Path, judge: Judge) -> dict[str, Any]:
    """The cell that was made in a folder, judged."""
    import numpy as np
    import torch

    from benchmarks.peers.data import draw_request

    cell = read_json(folder / MADE)
    if cell["data"] != judge.data.digest:
        raise SystemExit(
            f"{folder}: expected scans made for the split at hand, found those of another; make them again"
        )
    scans = torch.from_numpy(np.load(folder / SCANS, allow_pickle=False)).float()
    return {
        **cell,
        **judge(draw_request(judge.data, cell["count"], cell["seed"], vary=cell.get("varied", False)), scans),
    }


def add(cell: Mapping[str, Any], path: Path) -> None:
    """Put a cell into the record, in the place of one of the same task, method, budget, seed and device."""
    cells = read(path)
    kept = [other for other in cells if _key(other) != _key(cell)]
    write(NAME, {"cells": sorted([*kept, dict(cell)], key=_key)}, path)


def read(path: Path) -> list[dict[str, Any]]:
    """The cells measured so far."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"]) if path.is_file() else []


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(cell[name] for name in ("task", "minutes", "seed", "method", "device")), cell.get("varied", False))


def table(cells: list[dict[str, Any]]) -> str:
    """A line per cell, with real against real beside it, in Markdown."""
    heads = ["Task", "Budget, min", "Seed", "Method", "Device", "PSNR, dB"]
    spaces = [space["space"] for space in cells[0]["fidelity"]] if cells else []
    heads += [f"{metric}, {space}" for space in spaces for metric in ("KID", "Frechet")]
    heads += ["Closer than the threshold, worst space / nominal", "Membership AUC, worst space"]
    heads += ["Dice asked for / real", "AUC of the label, synthetic / real", "MS-SSIM / real", "s per scan"]
    lines = [heads, ["---"] * len(heads)]
    for cell in cells:
        method = cell["method"] + (", masks varied" if cell.get("varied") else "")
        row = [cell["task"], f"{cell['minutes']:g}", str(cell["seed"]), method, cell["device"]]
        row.append(f"{cell['autoencoder']['validation']['psnr']:.1f}")
        for space in cell["fidelity"]:
            metrics = {metric["name"]: metric for metric in space["metrics"]}
            row += [_beside(metrics[name]["synthetic"], metrics[name]["real"]) for name in ("kid", "frechet")]
        row += _copies(cell.get("privacy"))
        overlap = cell["mask_overlap"]
        row.append(_beside(overlap["on_synthetic"], overlap["on_real"]) if overlap else "-")
        row.append(_beside(cell["label"]["synthetic"], cell["label"]["real"]))
        row.append(_beside(cell["diversity"]["synthetic"], cell["diversity"]["real"]))
        lines.append([*row, f"{cell['seconds_per_scan']:.2f}"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _copies(privacy: list[dict[str, Any]] | None) -> tuple[str, str]:
    if privacy is None:
        return "-", "-"
    closer = max(privacy, key=lambda space: float(space["closer"]["value"]))
    told = max(privacy, key=lambda space: float(space["membership"]["value"]))
    return f"{_between(closer['closer'])} / {closer['nominal']:.3g}", _between(told["membership"])


def _beside(synthetic: Mapping[str, float], real: Mapping[str, float]) -> str:
    return f"{_between(synthetic)} / {real['value']:.3g}"


def _between(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def main(arguments: list[str] | None = None) -> None:
    """Run a cell, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "make", "judge", "table"])
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of the whole training")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=128, help="scans to generate and judge")
    parser.add_argument("--vary", action="store_true", help="ask with masks in other shapes, as the pipeline does")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/peers"), help="where trainings are kept")
    parser.add_argument("--out", type=Path, default=None, help="JSON file; benchmarks/results/ unless given")
    options = parser.parse_args(arguments)
    out = options.out or RESULTS / f"{NAME}{'' if options.device == 'cpu' else '-cuda'}.json"
    if options.action != "table":
        keep_freed_memory()  # for both methods
        from benchmarks.peers.data import load_data

        data = load_data(options.task, options.folder / options.task / "data")
        folders = [] if options.action == "judge" else [make(options, data)]
        if options.action == "judge":
            found = sorted((options.folder / options.task).glob(f"*-*-*/**/{MADE}"))
            folders = [
                path.parent
                for path in found
                if ("cuda" in str(path.relative_to(options.folder))) == (options.device == "cuda")
            ]
        if options.action != "make":
            from benchmarks.peers.judge import Judge

            limit_threads(options.threads, "cpu")
            judge = Judge(data)
            for folder in folders:
                add(judged(folder, judge), out)
    print(table(read(out)))


if __name__ == "__main__":
    main()
