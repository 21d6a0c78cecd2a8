"""A whole pipeline against a real MLflow server: its runs, and its model found again in the registry."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medsynth.tracking.quiet import mlflow
from medsynth.tracking.store import open_client

pytestmark = pytest.mark.slow

STAGES = ("prepare", "autoencoder", "encode", "denoiser", "generate", "evaluate", "register")
TINY = """\
name: tiny
seed: 5
cohort: {kind: phantom, patients: 16}
conditions:
  diagnosis: {kind: category, values: [benign, malignant]}
  diameter_mm: {kind: number, range: [1, 40], unit: mm}
prepare:
  spacing_mm: [3, 3, 3]
  box: [16, 16, 16]
  split: {train: 0.5, validation: 0.25, test: 0.25, stratify: diagnosis}
autoencoder:
  network: {downsampling: 2, latent_channels: 2, width: 8, blocks: 1}
  training: {steps: 6, batch_size: 2, warmup_steps: 1, validate_every: 3, log_every: 2}
denoiser:
  network: {widths: [16], blocks: 1, head_channels: 8}
  training: {steps: 6, batch_size: 2, warmup_steps: 1, validate_every: 3, log_every: 2}
generate:
  count: 8
  sampling: {sampler: flow_euler, evaluations: 2}
evaluate:
  benefit: {steps: 2, batch_size: 4, seeds: 1, ratios: [1.0]}
  bootstrap: 100
  pictures: 2
register: {gates: {min_condition_auc: 1.0}}
tracking: {system_metrics: false}
"""


def medsynth(*arguments, folder):
    """The command as a user types it, in `folder`; its result as JSON."""
    command = [sys.executable, "-m", "medsynth", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    """The address, the folder the user worked in, and the workspace of a pipeline that has run."""
    uri, _ = server
    folder = tmp_path_factory.mktemp("Mallory")
    (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")
    summary = medsynth("run", "tiny.yaml", "--set", f"tracking.uri={uri}", folder=folder)
    return uri, folder, Path(summary["workspace"])


@pytest.fixture(scope="module")
def runs(done):
    """Name -> run of the pipeline's experiment."""
    client = open_client(done[0])
    experiment = client.get_experiment_by_name("tiny")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_nothing_is_kept_in_the_workspace_that_belongs_to_the_server(done):
    _, _, workspace = done
    assert workspace.name == "tiny"
    assert not (workspace / "mlflow.db").exists()
    assert not (workspace / "artifacts").exists()


def test_there_is_one_run_for_the_pipeline_and_one_inside_it_for_each_stage(done, runs):
    assert set(runs) == {"tiny", *STAGES}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs["tiny"]
    assert "mlflow.parentRunId" not in parent.data.tags
    assert {runs[stage].data.tags["mlflow.parentRunId"] for stage in STAGES} == {parent.info.run_id}
    _, _, workspace = done
    folders = {"encode": "latents", "generate": "synthetic", "evaluate": "evaluation", "register": "registry"}
    for stage in STAGES:
        record = json.loads((workspace / folders.get(stage, stage) / "stage.json").read_text())
        assert runs[stage].data.tags["medsynth.digest"] == record["digest"]


def test_settings_losses_figures_and_data_are_on_the_server(done, runs):
    uri, _, workspace = done
    params = runs["tiny"].data.params
    assert (params["seed"], params["denoiser.training.steps"], params["cohort.kind"]) == ("5", "6", "phantom")
    client = open_client(uri)
    for stage in ("autoencoder", "denoiser"):
        history = json.loads((workspace / stage / "history.json").read_text())
        for name in history[0]["losses"]:
            sent = {m.step: m.value for m in client.get_metric_history(runs[stage].info.run_id, f"train/{name}")}
            assert sent == pytest.approx({line["step"]: line["losses"][name] for line in history})
    evidence = json.loads((workspace / "evaluation" / "stage.json").read_text())["summary"]
    figures = {name: value for name, value in evidence.items() if isinstance(value, int | float)}
    assert len(figures) > 10
    assert {name: runs["evaluate"].data.metrics[name] for name in figures} == pytest.approx(figures)
    manifest = json.loads((workspace / "prepare" / "summary.json").read_text())["manifest"]
    (dataset,) = [one.dataset for one in runs["prepare"].inputs.dataset_inputs]
    assert manifest.startswith(dataset.digest)


def test_the_report_comes_back_from_the_server_as_it_was_written(done, runs, tmp_path):
    uri, _, workspace = done
    client = open_client(uri)
    assert {file.path for file in client.list_artifacts(runs["evaluate"].info.run_id)} == {
        "evidence.json",
        "pictures",
        "report.html",
    }
    kept = Path(client.download_artifacts(runs["evaluate"].info.run_id, "report.html", str(tmp_path)))
    assert kept.read_bytes() == (workspace / "evaluation" / "report.html").read_bytes()


def test_the_model_is_a_candidate_and_no_champion_because_a_gate_was_not_passed(done, runs):
    client = open_client(done[0])
    model = client.get_registered_model("tiny")
    assert model.aliases == {"candidate": "1"}
    version = client.get_model_version_by_alias("tiny", "candidate")
    assert version.run_id == runs["register"].info.run_id
    assert version.tags["medsynth.gates_passed"] == "false"
    assert version.tags["medsynth.verdict"] in ("benefit", "no benefit", "inconclusive")


def test_plain_mlflow_loads_the_model_and_gets_what_the_folder_gives(done):
    import pandas as pd

    from medsynth import LatentVolumePipeline

    uri, _, workspace = done
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/tiny@candidate")
    finally:
        mlflow.set_tracking_uri(before)
    asked = pd.DataFrame({"diagnosis": ["malignant"], "diameter_mm": [12.0], "count": [2], "seed": [7]})
    volumes = model.predict(asked)
    pipe = LatentVolumePipeline.from_pretrained(workspace / "denoiser" / "model")
    row = {"diagnosis": "malignant", "diameter_mm": 12.0}
    again = pipe(row, count=2, seeds=[7, 8], sampler="flow_euler", evaluations=2)
    np.testing.assert_array_equal(volumes, np.stack([np.asarray(scan, np.float32)[0] for scan in again.scans]))


def test_generate_takes_the_model_from_the_server_and_says_which_it_was(done):
    uri, folder, workspace = done
    result = medsynth(
        "generate", "--model", "models:/tiny@candidate", "--tracking-uri", uri, "--out", "fetched",
        "--condition", "diagnosis=malignant:2", "--condition", "diagnosis=benign:1", "--seed", "11", folder=folder,
    )  # fmt: skip
    with (folder / "fetched" / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["diagnosis"] for row in rows) == {"malignant": 2, "benign": 1}
    for row in rows:
        data = (folder / "fetched" / row["image"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
    with (workspace / "synthetic" / "manifest.csv").open(newline="") as stream:
        made_by = {row["model"] for row in csv.DictReader(stream)}
    assert {row["model"] for row in rows} == made_by == {result["model"]}


def test_the_server_learns_no_path_of_the_users_disk(done, server):
    _, user, _ = done
    _, place = server
    kept = [place / "mlflow.db", *(path for path in (place / "artifacts").rglob("*") if path.is_file())]
    assert len(kept) > 10
    for path in kept:
        assert os.fsencode(user.name) not in path.read_bytes(), path
        assert user.name not in str(path)
