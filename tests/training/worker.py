"""Train a toy or a small generator in a process of its own: under torchrun, or to be killed while it saves.

worker.py toy|autoencoder|denoiser FOLDER STEPS [NUMBER OF THE FILE AT WHOSE WRITING TO DIE]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from small_generator import OPPOSED, autoencoder_records, denoiser_records
from toy_task import ToyTask, settings

from medsynth.training import checkpoint
from medsynth.training.loop import train

CPU = torch.device("cpu")


def die_at(number: int) -> None:
    """Be killed, as by the system, at the `number`th file that a checkpoint writes."""
    whole, seen = checkpoint._flush, []

    def flush(path: Path) -> None:
        seen.append(path)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path)

    checkpoint._flush = flush


def main(kind: str, folder: Path, steps: int) -> None:
    if kind == "toy":
        plan = settings(steps=steps, log_every=1, checkpoint_minutes=1e-9)
        runs = {"toy": list(train(ToyTask(8), plan, folder=folder, identity={"kind": "toy"}, device=CPU))}
    else:
        runs = {
            "autoencoder": autoencoder_records(folder / "autoencoder", steps),
            "opposed": autoencoder_records(folder / "opposed", steps, loss=OPPOSED),
            "denoiser": denoiser_records(folder / "denoiser", steps),
        }
    if os.environ.get("RANK", "0") == "0":
        lines = {name: [record.to_json() for record in records] for name, records in runs.items()}
        (folder / "records.json").write_text(json.dumps(lines))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        die_at(int(sys.argv[4]))
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
