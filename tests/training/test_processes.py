"""Runs in processes of their own: killed in the middle of saving, and two at once under torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_generator import OPPOSED, autoencoder_records, denoiser_records
from toy_task import ToyTask, settings

from medsynth.training.loop import train

CPU = torch.device("cpu")
WORKER = Path(__file__).with_name("worker.py")
ROOT = WORKER.parents[2]


def start(command, folder):
    folder.mkdir(parents=True)
    keep = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    paths = os.pathsep.join([str(ROOT), *filter(None, [keep.get("PYTHONPATH")])])
    env = {**keep, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_killed_while_saving_goes_on_to_the_same_end(tmp_path):
    plan = settings(steps=12, log_every=1, checkpoint_minutes=1e-9)
    files = 4  # network, average, optimiser, state
    done = start([str(WORKER), "toy", str(tmp_path / "killed"), "12", str(5 * files + 2)], tmp_path / "killed")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["step-000000005", "step-000000006.partial"]

    resumed, whole = ToyTask(8), ToyTask(8)
    resumed.poisoned_batch = 4  # were it drawn again, the run would fail
    a = list(train(resumed, plan, folder=tmp_path / "killed", identity={"kind": "toy"}, device=CPU))
    b = list(train(whole, plan, folder=tmp_path / "whole", identity={"kind": "toy"}, device=CPU))
    assert [(r.step, r.losses, r.validation) for r in a] == [(r.step, r.losses, r.validation) for r in b]
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], weight)
    assert [p.name for p in (tmp_path / "killed").iterdir()] == ["step-000000012"]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    steps = 6
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = start([*torchrun, str(WORKER), "generator", str(tmp_path / "two"), str(steps)], tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "records.json").read_text())
    alone = {
        "autoencoder": autoencoder_records(tmp_path / "autoencoder", steps),
        "opposed": autoencoder_records(tmp_path / "opposed", steps, loss=OPPOSED),
        "denoiser": denoiser_records(tmp_path / "denoiser", steps),
    }
    for kind, records in alone.items():
        tolerance = 5e-3 if kind == "opposed" else 2e-4  # a discriminator makes more of what rounding has changed
        assert len(two[kind]) == len(records) == steps
        for theirs, record in zip(two[kind], records, strict=True):
            assert theirs["losses"] == pytest.approx(record.losses, rel=tolerance, abs=1e-5)
            assert theirs["gradient_norm"] == pytest.approx(record.gradient_norm, rel=5e-3)
            assert (theirs["validation"] or {}) == pytest.approx(record.validation or {}, rel=1e-3, abs=1e-4)
        losses = [record.losses["loss"] for record in records]
        assert max(losses) > 1.001 * min(losses)  # they move, so that agreeing says something
