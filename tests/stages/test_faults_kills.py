"""Killed, stopped, out of disk, in each other's way: what a run leaves behind, and that it goes on to the same result.

The reference is an uninterrupted run with the same key. Each test takes a copy of it, removes a stage and what follows,
lets something happen in the middle of that stage, looks at what is there, and runs it again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child import Children, Strike

from medsynth.config.load import load_pipeline
from medsynth.config.pipeline import Pipeline
from medsynth.stages.chain import STAGES
from medsynth.stages.workspace import FOLDERS, Workspace

NAMES = [stage.name for stage in STAGES]
TELLS_TIME = re.compile(r'"(seconds|waiting)": [0-9.e+-]+')

KILLS = [
    ("prepare", Strike("medsynth.imaging.nifti:_stream", 9, after=True)),
    ("prepare", Strike("medsynth.cohort.manifest:Manifest.write")),
    ("autoencoder", Strike("medsynth.training.checkpoint:_write", 4, after=True)),
    ("autoencoder", Strike("medsynth.stages.autoencoder:_save_reconstructions")),
    ("encode", Strike("medsynth.training.latents:_means", 2)),
    ("denoiser", Strike("medsynth.training.checkpoint:_write", 4)),
    ("denoiser", Strike("medsynth.diffusion.model_folder:_write_json", 4)),
    ("generate", Strike("medsynth.imaging.nifti:_stream", 7, after=True)),
    ("generate", Strike("medsynth.stages.dataset:_describe")),
    ("generate", Strike("shutil:rmtree", 2)),
    ("generate", Strike("medsynth.stages.workspace:Workspace.commit")),
    ("evaluate", Strike("medsynth.stages.evaluate:write_report")),
    ("register", Strike("mlflow.tracking.client:MlflowClient.log_model_artifact", 3)),
    ("register", Strike("medsynth.stages.register:set_alias")),
    ("register", Strike("medsynth.stages.workspace:Workspace.commit")),
]


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Children:
    return Children(tmp_path_factory.mktemp("streams"))


def without(finished: Path, copy: Path, stage: str) -> Path:
    """A copy of the finished workspace in which `stage` and what follows are not done."""
    shutil.copytree(finished, copy)
    for name in NAMES[NAMES.index(stage) :]:
        shutil.rmtree(copy / FOLDERS.get(name, name))
    return copy


def settings(stage: str) -> tuple[str, ...]:
    """What to add to a command so that the stage has something to do: the copied registry holds the model already."""
    return ("--set", "register.name=again") if stage == "register" else ()


def result(workspace: Path, stage: str) -> dict[str, Any]:
    """Everything in a stage's folder by name: digests of files, without times; of a registry all but the name."""
    folder = workspace / FOLDERS.get(stage, stage)
    if stage == "register":
        return {**json.loads((folder / "registered.json").read_text()), "model": ""}
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in ("stage.json", "report.html") and path.suffix != ".png":
            data = path.read_bytes()
            if path.suffix == ".json":
                data = TELLS_TIME.sub("", data.decode()).encode()
            found[name] = hashlib.sha256(data).hexdigest()
    assert found
    return found


def half_written(workspace: Path) -> list[str]:
    """Folders that look done and are not, and files that were never finished."""
    visible = [workspace / FOLDERS.get(name, name) for name in NAMES]
    folders = [path.name for path in visible if path.exists() and not (path / "stage.json").exists()]
    whole = [path for path in visible if path.exists()]
    strays = [str(p) for path in whole for p in path.rglob("*") if p.name.endswith((".part", ".tmp", ".partial"))]
    return folders + strays


@pytest.mark.parametrize(("stage", "strike"), KILLS, ids=[f"{s}-{k.where.rpartition(':')[2]}" for s, k in KILLS])
def test_a_killed_stage_goes_on_to_the_same_result(
    stage: str, strike: Strike, finished: Path, tiny_file: Path, tmp_path: Path, child: Children
) -> None:
    workspace = without(finished, tmp_path / "tiny", stage)
    killed = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q", strike=strike)
    assert killed.code == -signal.SIGKILL, killed.err
    partial = f".{FOLDERS.get(stage, stage)}.partial"
    assert (workspace / partial).is_dir()
    assert not (workspace / FOLDERS.get(stage, stage)).exists()
    assert not half_written(workspace)
    plan = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "--dry-run", "--json")
    assert "was interrupted; will resume" in json.loads(plan.out)["plan"][stage]

    again = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q")
    assert again.code == 0, again.err
    assert again.err == ""
    assert result(workspace, stage) == result(finished, stage)
    assert not (workspace / partial).exists()
    assert not half_written(workspace)


def test_training_goes_on_from_its_checkpoint(finished: Path, tiny_file: Path, tmp_path: Path, child: Children) -> None:
    """Not from its beginning: four of six steps were done, so two are left."""
    workspace = without(finished, tmp_path / "tiny", "autoencoder")
    steps = "medsynth.training.loop:_Run._optimise"
    assert child("autoencoder", tiny_file, "--workspace", workspace, strike=Strike(steps, 5)).code == -signal.SIGKILL
    (checkpoint,) = (workspace / ".autoencoder.partial" / "checkpoints").iterdir()
    assert checkpoint.name == "step-000000004"
    third_step = Strike(steps, 3)
    again = child("autoencoder", tiny_file, "--workspace", workspace, "-q", strike=third_step)
    assert again.code == 0, "a third step was made"


def test_generation_repeats_no_scan(finished: Path, tiny_file: Path, tmp_path: Path, child: Children) -> None:
    """Killed in the fourth scan's image, while later ones are computed: three have rows, so five of eight are left."""
    workspace = without(finished, tmp_path / "tiny", "generate")
    strike = Strike("medsynth.imaging.nifti:_stream", 7, after=True)
    assert child("generate", tiny_file, "--workspace", workspace, strike=strike).code == -signal.SIGKILL
    rows = sorted(path.stem for path in (workspace / ".synthetic.partial" / "rows").iterdir())
    assert rows == ["S00000", "S00001", "S00002"]
    sixth = Strike("medsynth.diffusion.pipeline:LatentVolumePipeline._draw", 6)
    again = child("generate", tiny_file, "--workspace", workspace, "-q", strike=sixth)
    assert again.code == 0, "a sixth scan was drawn"
    assert result(workspace, "generate") == result(finished, "generate")


@pytest.mark.slow
def test_killed_while_the_phantoms_are_drawn(finished: Path, fresh: Path, tiny_file: Path, child: Children) -> None:
    shutil.copytree(finished / "secrets", fresh / "secrets")
    strike = Strike("medsynth.cohort.phantom:_write_patient", 5)
    assert child("prepare", tiny_file, "--workspace", fresh, strike=strike).code == -signal.SIGKILL
    assert not (fresh / "source").exists()
    assert child("prepare", tiny_file, "--workspace", fresh, "-q").code == 0
    assert result(fresh, "prepare") == result(finished, "prepare")
    assert not list(fresh.glob(".source*"))


STOPS = [
    ("prepare", Strike("medsynth.imaging.nifti:_stream", 9, "SIGTERM")),
    ("autoencoder", Strike("medsynth.training.loop:_Run._optimise", 3, "SIGTERM")),
    ("autoencoder", Strike("medsynth.training.loop:_Run._optimise", 3, "SIGINT")),
    ("generate", Strike("medsynth.imaging.nifti:_stream", 7, "SIGTERM")),
]


@pytest.mark.parametrize(("stage", "strike"), STOPS, ids=[f"{stage}-{strike.what}" for stage, strike in STOPS])
def test_a_stopped_stage_says_so_and_goes_on(
    stage: str, strike: Strike, finished: Path, tiny_file: Path, tmp_path: Path, child: Children
) -> None:
    workspace = without(finished, tmp_path / "tiny", stage)
    stopped = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q", strike=strike)
    assert stopped.code == 5
    assert len(stopped.err.splitlines()) == 1
    assert "run the same command again to go on" in stopped.err
    assert not half_written(workspace)
    events = [json.loads(line) for line in (workspace / "events.jsonl").read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["stage"]) == ("stopped", stage)

    assert child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q").code == 0
    assert result(workspace, stage) == result(finished, stage)


@pytest.mark.slow
def test_the_real_command_stops_on_sigterm(finished: Path, tiny_file: Path, tmp_path: Path) -> None:
    """As a cluster's scheduler does it: the installed command, a signal from outside."""
    workspace = without(finished, tmp_path / "tiny", "autoencoder")
    command = [sys.executable, "-m", "medsynth", "autoencoder", str(tiny_file), "--workspace", str(workspace)]
    process = subprocess.Popen(
        [*command, "--set", "autoencoder.training.steps=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoints = workspace / ".autoencoder.partial" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*[0-9]")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("medsynth: ")]
    assert "training stopped by SIGTERM after step" in line
    assert "Traceback" not in err
    assert list(checkpoints.glob("step-*[0-9]"))


# --- the disk ----------------------------------------------------------------------------------------------------------

FULL = [
    ("prepare", Strike("medsynth.imaging.nifti:_stream", 9, "ENOSPC")),
    ("autoencoder", Strike("medsynth.training.checkpoint:_write", 4, "ENOSPC")),
    ("denoiser", Strike("medsynth.diffusion.model_folder:_write_json", 4, "EDQUOT")),
    ("generate", Strike("medsynth.imaging.nifti:_stream", 7, "EIO")),
]


@pytest.mark.parametrize(("stage", "strike"), FULL, ids=[stage for stage, _ in FULL])
def test_a_disk_that_gives_way(
    stage: str, strike: Strike, finished: Path, tiny_file: Path, tmp_path: Path, child: Children
) -> None:
    """The error as the system would raise it, in the middle of each stage that writes."""
    workspace = without(finished, tmp_path / "tiny", stage)
    full = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q", strike=strike)
    assert full.code == 5
    assert len(full.err.splitlines()) == 1
    assert "expected room on the disk" in full.err
    assert not half_written(workspace)
    assert child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q").code == 0
    assert result(workspace, stage) == result(finished, stage)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


ROOM_KB = [("prepare", 0), ("prepare", 24), ("prepare", 200), ("autoencoder", 200), ("encode", 80), ("denoiser", 200),
           ("generate", 150), ("evaluate", 200), ("register", 200)]  # fmt: skip
"""Enough to begin with, and not enough for the stage's own files."""


@pytest.mark.parametrize(("stage", "free_kb"), ROOM_KB)
def test_a_disk_that_is_really_full(
    free_kb: int, stage: str, finished: Path, tiny_file: Path, small_disk: Path, child: Children
) -> None:
    """A file system with hardly a byte free: no crash, no bug, and the same result once there is room again."""
    workspace = without(finished, small_disk / "tiny", stage)
    room = shutil.disk_usage(small_disk).free
    filler = small_disk / "filler"
    filler.write_bytes(bytes(room - 1024 * free_kb))
    full = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q")
    assert full.code == 5, full.err
    assert len(full.err.splitlines()) == 1, full.err
    assert "full" in full.err
    assert not half_written(workspace)
    filler.unlink()
    again = child(stage, tiny_file, "--workspace", workspace, *settings(stage), "-q")
    assert again.code == 0, again.err
    assert result(workspace, stage) == result(finished, stage)


# --- the workspace -----------------------------------------------------------------------------------------------------


def test_two_runs_at_once(workspace: Path, tiny: Pipeline, tiny_file: Path, medsynth: Any) -> None:
    before = (workspace / "pipeline.yaml").read_bytes()
    with Workspace(workspace).opened(tiny):
        outcome = medsynth("run", tiny_file, "--workspace", workspace, "--seed", "77")
        assert outcome.code == 5
        assert len(outcome.err.splitlines()) == 1
        assert "found another run at work" in outcome.err
        assert (workspace / "pipeline.yaml").read_bytes() == before
        assert medsynth("run", tiny_file, "--workspace", workspace, "--dry-run").code == 0
    assert medsynth("run", tiny_file, "--workspace", workspace).code == 0


def test_two_processes_at_once(finished: Path, tiny_file: Path, tmp_path: Path, child: Children) -> None:
    """The first is in the middle of its work when the second comes, is refused, and changes nothing for the first."""
    workspace = without(finished, tmp_path / "tiny", "generate")
    command = [sys.executable, "-c", HOLDER, str(workspace), str(tiny_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        refused = child("generate", tiny_file, "--workspace", workspace, "-q")
        holder.stdin.close()
    assert refused.code == 5
    assert len(refused.err.splitlines()) == 1
    assert not list(workspace.glob(".synthetic*"))


HOLDER = """\
import sys
from pathlib import Path
from medsynth.config.load import load_pipeline
from medsynth.stages.workspace import Workspace
with Workspace(Path(sys.argv[1])).opened(load_pipeline(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def place_of_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("taken")
    return tmp_path / "file"


def below_a_file(tmp_path: Path) -> Path:
    return place_of_a_file(tmp_path) / "workspace"


def where_nobody_can_write(tmp_path: Path) -> Path:
    return Path("/proc/medsynth")


@pytest.mark.parametrize("place", [place_of_a_file, below_a_file, where_nobody_can_write], ids=lambda p: p.__name__)
def test_a_workspace_that_cannot_be_written(place: Any, tmp_path: Path, tiny_file: Path, medsynth: Any) -> None:
    outcome = medsynth("run", tiny_file, "--workspace", place(tmp_path))
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "expected a workspace that can be written" in outcome.err


def test_a_read_only_workspace(workspace: Path, tiny_file: Path, tmp_path: Path, medsynth: Any) -> None:
    """A read-only mount, where the right to make one is there."""
    if subprocess.run(["mount", "--bind", workspace, workspace], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a folder read-only")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", workspace], check=True)
        outcome = medsynth("run", tiny_file, "--workspace", workspace, "--force")
        plan = medsynth("run", tiny_file, "--workspace", workspace, "--dry-run")
    finally:
        subprocess.run(["umount", "-l", workspace], check=True)
    assert outcome.code == 2
    assert "Read-only file system" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert plan.code == 0


def test_somebody_elses_folder(tmp_path: Path, tiny_file: Path, medsynth: Any) -> None:
    (tmp_path / "thesis.docx").write_text("mine")
    outcome = medsynth("run", tiny_file, "--workspace", tmp_path)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.docx"]


def test_another_pipelines_workspace(workspace: Path, tmp_path: Path, tiny_file: Path, medsynth: Any) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(tiny_file.read_text().replace("name: tiny", "name: other"))
    before = (workspace / "pipeline.yaml").read_bytes()
    outcome = medsynth("run", other, "--workspace", workspace)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "'tiny'" in outcome.err
    assert (workspace / "pipeline.yaml").read_bytes() == before


def test_a_stage_without_the_one_before(fresh: Path, tiny_file: Path, medsynth: Any) -> None:
    outcome = medsynth("denoiser", tiny_file, "--workspace", fresh, "-q")
    assert outcome.code == 2
    assert outcome.errors == outcome.err.splitlines()
    assert len(outcome.errors) == 1
    assert "medsynth prepare" in outcome.err


class Killed(BaseException):
    """The process is gone."""


def test_the_change_of_folders_survives_a_kill_at_any_moment(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage is done again over an earlier result: whenever the process dies, the old one or the new one is there."""
    pipeline = load_pipeline(str(tiny_file))
    calls_left = 0

    def dying(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls_left
            if calls_left == 0:
                raise Killed
            calls_left -= 1
            return original(*args, **kwargs)

        return call

    for moment in range(12):
        workspace = Workspace(tmp_path / str(moment))
        with workspace.opened(pipeline):
            for version in ("old", "new"):
                folder = workspace.open_partial("encode", version)
                (folder / "latents").write_text(version)
                if version == "new":
                    calls_left = moment
                    with monkeypatch.context() as patch:
                        for name in ("rename", "replace", "unlink"):
                            patch.setattr(Path, name, dying(getattr(Path, name)))
                        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
                        try:
                            workspace.commit("encode", {"digest": version, "fingerprint": {}})
                            survived = True
                        except Killed:
                            survived = False
                else:
                    workspace.commit("encode", {"digest": version, "fingerprint": {}})
        told = workspace.digest_of("encode")
        with workspace.opened(pipeline):
            found = (workspace.stage("encode") / "latents").read_text()
            assert found == workspace.digest_of("encode") == told
            assert found in ("old", "new")
            assert not list(workspace.path.glob(".*.old"))
        if survived:
            assert found == "new"
            assert not list(workspace.path.glob(".*.partial"))
            break
    else:
        pytest.fail("the commit never came to its end")


def test_a_dataset_that_is_whole_is_not_made_again(
    finished: Path, tiny_file: Path, tmp_path: Path, child: Children
) -> None:
    workspace = without(finished, tmp_path / "tiny", "generate")
    command = ("generate", tiny_file, "--workspace", workspace, "-q")
    killed = child(*command, strike=Strike("medsynth.stages.workspace:Workspace.commit"))
    assert killed.code == -signal.SIGKILL
    again = child(*command, strike=Strike("medsynth.stages.dataset:write_case"))
    assert again.code == 0, again.err
    assert result(workspace, "generate") == result(finished, "generate")


# --- generating into a folder ------------------------------------------------------------------------------------------


def test_an_interrupted_generate_goes_on(finished: Path, tmp_path: Path, child: Children) -> None:
    model = finished / "denoiser" / "model"
    ask = ["generate", "--model", model, "--count", 4, "--set", "sampling.evaluations=2", "--seed", 5, "-q", "--out"]
    assert child(*ask, tmp_path / "whole").code == 0
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    streams = Strike("medsynth.imaging.nifti:_stream", 3, after=True)
    assert child(*ask, out, strike=streams).code == -signal.SIGKILL
    assert not out.exists()
    assert len(list((partial / "rows").iterdir())) == 2

    other = child(*ask[:-3], 6, "-q", "--out", out)
    assert other.code == 2
    assert len(other.err.splitlines()) == 1
    assert "unfinished work for another request" in other.err

    made = Strike("medsynth.stages.dataset:write_case", 3)
    assert child("generate", "--set", "batch_size=3", *ask[1:], out, strike=made).code == 0, (
        "a scan that was there was made again"
    )
    assert not partial.exists()
    digests = []
    for folder in (tmp_path / "whole", out):
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        files["dataset.json"] = files["dataset.json"].replace(f'"{folder.name}"'.encode(), b"")
        digests.append({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    assert digests[0] == digests[1]
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 4
    assert json.loads((out / "dataset.json").read_text())["name"] == "out"
