"""Runs in the workspace's store: what is kept, how runs end, and that nothing of the machine is in it."""

import getpass
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth.config.evidence import Tracking
from medsynth.errors import DivergenceError, InterruptedRun, StorageError, UsageError
from medsynth.tracking.mlflow_tracker import flatten, open_tracker
from medsynth.tracking.quiet import MlflowClient
from medsynth.tracking.store import open_client, shown_uri, tracking_uri
from medsynth.tracking.tracker import NullTracker

QUIET = Tracking(system_metrics=False)


def client_of(workspace) -> MlflowClient:
    return open_client(tracking_uri(QUIET, workspace))


def all_runs(workspace, name="demo"):
    client = client_of(workspace)
    experiment = client.get_experiment_by_name(name)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_pipeline_run_holds_its_stages(workspace):
    with open_tracker(QUIET, workspace, "demo") as run:
        run.params(
            {"seed": 7, "prepare": {"box": [48, 48, 48], "split": {"train": 0.7}, "key_file": None, "empty": {}}}
        )
        with run.stage("denoiser") as stage:
            assert stage.run_id != run.run_id
            for step in (1, 2, 3):
                stage.metrics({"loss": 1 / step, "odd": float("nan")}, step=step)
            stage.dataset("demo", "ab" * 32)
            stage.tags({"digest": "cd" * 32})
    runs = all_runs(workspace)
    assert set(runs) == {"demo", "denoiser"}
    assert runs["demo"].data.params == {
        "seed": "7", "prepare.box": "[48, 48, 48]", "prepare.split.train": "0.7", "prepare.key_file": "null",
        "prepare.empty": "{}",
    }  # fmt: skip
    nested = runs["denoiser"]
    assert nested.data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
    assert nested.data.tags["digest"] == "cd" * 32
    history = client_of(workspace).get_metric_history(nested.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "odd" not in nested.data.metrics
    (entry,) = nested.inputs.dataset_inputs
    assert entry.dataset.name == "demo"
    assert json.loads(entry.dataset.source) == {"sha256": "ab" * 32}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("/home/jane/scan.nii"), "FAILED"),
        (DivergenceError("step 3"), "FAILED"),
        (StorageError("disk full"), "FAILED"),
        (InterruptedRun("stopped"), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_run_ends_as_it_ended(workspace, error, status, dump):
    with pytest.raises(type(error)), open_tracker(QUIET, workspace, "demo") as run, run.stage("prepare"):
        raise error
    runs = all_runs(workspace)
    assert {name: run.info.status for name, run in runs.items()} == {"demo": status, "prepare": status}
    assert runs["prepare"].data.tags["medsynth.ended_by"] == type(error).__name__
    assert b"jane/scan" not in dump(workspace)


def test_a_stage_that_fails_and_is_caught_leaves_the_run_finished(workspace):
    with open_tracker(QUIET, workspace, "demo") as run:
        with pytest.raises(ValueError, match="x"), run.stage("prepare"):
            raise ValueError("x")
        with run.stage("encode"):
            pass
    status = {name: run.info.status for name, run in all_runs(workspace).items()}
    assert status == {"demo": "FINISHED", "prepare": "FAILED", "encode": "FINISHED"}


def test_what_a_killed_process_left_running_is_ended_by_the_next(workspace):
    lost = open_tracker(QUIET, workspace, "demo")
    lost.__enter__()  # never left, as after SIGKILL
    assert all_runs(workspace)["demo"].info.status == "RUNNING"
    with open_tracker(Tracking(experiment="demo", system_metrics=False), workspace, "again"):
        pass
    assert {name: run.info.status for name, run in all_runs(workspace).items()} == {
        "demo": "KILLED",
        "again": "FINISHED",
    }
    lost.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)


def test_nothing_of_the_machine_is_recorded(workspace, dump, monkeypatch, tmp_path):
    (workspace / "mlflow.db").unlink()  # here the store is made too
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    monkeypatch.chdir(outside)
    with open_tracker(Tracking(), workspace, "demo") as run:
        run.params({"cohort": {"csv": str(outside / "Doe_Jane.csv"), "root": str(Path.home() / "scans")}})
        run.tags({"report": str(workspace / "evaluation" / "report.html")})
        with run.stage("prepare") as stage:
            (workspace / "pipeline.yaml").write_text(
                f"cohort:\n  csv: {outside}/Doe_Jane.csv\nworkspace: {workspace}\n"
            )
            (workspace / "facts.json").write_text(json.dumps({"where": [str(workspace / "x")]}))
            (workspace / "report.html").write_text(f"<p>{workspace}/x</p>")
            (workspace / "pictures").mkdir()
            (workspace / "pictures" / "one.png").write_bytes(b"\x89PNG\0/x")
            for name in ("pipeline.yaml", "facts.json", "report.html"):
                stage.artifact(workspace / name, "settings")
            stage.artifact(workspace / "pictures")
    found = dump(workspace)
    for trace in {
        str(tmp_path),
        str(Path.home()),
        str(Path.cwd()),
        "Doe_Jane",
        "Jane",
        sys.argv[0],
    }:
        assert trace.encode() not in found, trace
    # The user is called root in containers, which is also a word of the schema: look where MLflow would put it.
    for run in all_runs(workspace).values():
        assert run.data.tags["mlflow.user"] == "medsynth"
        assert getpass.getuser() not in {run.info.user_id, *run.data.tags.values()}
        assert run.info.artifact_uri.startswith("medsynth-workspace:/artifacts/demo/")
    assert not list(outside.iterdir())
    stage_id = all_runs(workspace)["prepare"].info.run_id
    listed = {f.path for f in client_of(workspace).list_artifacts(stage_id)}
    assert listed == {"settings", "pictures"}
    local = Path(client_of(workspace).download_artifacts(stage_id, "settings/pipeline.yaml"))
    assert "<path outside the workspace>" in local.read_text()
    assert Path(client_of(workspace).download_artifacts(stage_id, "pictures/one.png")).read_bytes() == b"\x89PNG\0/x"


def test_a_moved_workspace_still_finds_its_artifacts(workspace, tmp_path):
    with open_tracker(QUIET, workspace, "demo") as run:
        (workspace / "loss.csv").write_text("step,loss\n1,0.5\n")
        run.artifact(workspace / "loss.csv")
        run_id = run.run_id
    moved = tmp_path / "archive"
    workspace.rename(moved)
    local = Path(client_of(moved).download_artifacts(run_id, "loss.csv"))
    assert local.read_text() == "step,loss\n1,0.5\n"


def test_a_parameter_that_is_too_long_goes_into_an_artifact(workspace):
    listing = [f"case{i:05d}" for i in range(1000)]
    with open_tracker(QUIET, workspace, "demo") as run:
        run.params({"conditions": {"values": listing}, **{f"p{i:03d}": i for i in range(250)}})
        run_id = run.run_id
    params = all_runs(workspace)["demo"].data.params
    assert len(params) == 251
    assert "sha256" in params["conditions.values"]
    kept = Path(client_of(workspace).download_artifacts(run_id, "params/conditions.values.txt"))
    assert json.loads(kept.read_text()) == listing


@pytest.mark.slow
def test_system_metrics_are_recorded_beside_a_stage(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    with open_tracker(Tracking(), workspace, "demo") as run, run.stage("denoiser"):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(1)"], check=True)
    runs = all_runs(workspace)
    assert runs["denoiser"].data.metrics["system/system_memory_usage_megabytes"] > 0
    assert not runs["demo"].data.metrics


def test_a_deleted_experiment_is_named_with_its_remedy(workspace):
    with open_tracker(QUIET, workspace, "demo"):
        pass
    client = client_of(workspace)
    client.delete_experiment(client.get_experiment_by_name("demo").experiment_id)
    with pytest.raises(UsageError, match="restore it"), open_tracker(QUIET, workspace, "demo"):
        pass


def test_a_server_that_does_not_answer_is_refused_quickly_without_its_password(workspace):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://jane:secret@127.0.0.1:{port}"
    with (
        pytest.raises(UsageError, match="none that answers") as caught,
        open_tracker(Tracking(uri=uri), workspace, "x"),
    ):
        pass
    assert "secret" not in str(caught.value)
    assert "jane" not in str(caught.value)
    assert str(port) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_unwritable_store_is_refused_with_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be seen as one that is broken" * 20)
    with pytest.raises(UsageError, match="found none that answers") as caught, open_tracker(QUIET, tmp_path, "x"):
        pass
    assert str(tmp_path) not in str(caught.value)


def test_addresses_are_shown_without_secrets():
    assert shown_uri("https://u:p@host.example:5000/team?x=1") == "https://host.example:5000"
    assert shown_uri("sqlite:////home/jane/runs/mlflow.db") == "sqlite:///mlflow.db"


def test_a_workspace_that_cannot_be_an_address_is_refused(tmp_path):
    with pytest.raises(UsageError, match="without"):
        tracking_uri(QUIET, tmp_path / "why?")


def test_flatten_keeps_every_leaf():
    assert flatten({"a": {"b": 1, "c": {"d": "x", "e": []}}, "f": True}) == {
        "a.b": "1", "a.c.d": "x", "a.c.e": "[]", "f": "true",
    }  # fmt: skip


def test_the_null_tracker_takes_everything(tmp_path):
    run = NullTracker()
    with run.stage("prepare") as stage:
        stage.params({"a": 1})
        stage.metrics({"a": 1.0}, step=1)
        stage.artifact(tmp_path)
        stage.tags({"a": "b"})
        stage.dataset("a", "b")
        assert stage.run_id is None


@pytest.mark.slow
def test_nothing_is_sent_and_nothing_is_fetched(tmp_path, model_folder):
    """In a fresh process, without the signs by which MLflow knows a test: a connection or a pip call is an error."""
    program = f"""
import os, socket, subprocess
def refuse(*args, **kwargs):
    os.write(2, f"touched: {{args}}".encode())
    os._exit(1)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
start = subprocess.Popen.__init__
def no_pip(self, command, *args, **kwargs):
    if "pip" in str(command):
        refuse(command)
    start(self, command, *args, **kwargs)
subprocess.Popen.__init__ = no_pip
from pathlib import Path
from medsynth.config.evidence import Tracking
from medsynth.tracking.mlflow_tracker import open_tracker
from medsynth.tracking.registry import register_model, resolve, set_alias
from medsynth.tracking.store import tracking_uri
from mlflow.telemetry.utils import is_telemetry_disabled
from mlflow.telemetry.client import get_telemetry_client
assert is_telemetry_disabled()
folder = Path({str(tmp_path)!r})
uri = tracking_uri(Tracking(), folder)
with open_tracker(Tracking(), folder, "demo") as run, run.stage("register") as stage:
    stage.metrics({{"a": 1.0}})
    set_alias(uri, register_model(uri, Path({str(model_folder)!r}), name="m", tags={{}}, run_id=stage.run_id), "x")
resolve("models:/m@x", uri)
assert get_telemetry_client() is None
"""
    told = {"PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS"}
    environment = {k: v for k, v in os.environ.items() if k not in told and not k.startswith("MLFLOW")}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": str(root)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "touched" not in done.stderr
    assert not (tmp_path / "mlruns").exists()
