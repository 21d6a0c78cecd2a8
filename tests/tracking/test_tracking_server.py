"""A real MLflow server on loopback: runs, artifacts and models go through it and come back."""

from pathlib import Path

import pytest

from medsynth.config.evidence import Tracking
from medsynth.config.generate import Sampling
from medsynth.tracking.mlflow_tracker import open_tracker
from medsynth.tracking.quiet import mlflow
from medsynth.tracking.registry import register_model, resolve, set_alias
from medsynth.tracking.store import open_client

pytestmark = pytest.mark.slow


def test_a_pipeline_is_followed_and_its_model_registered_over_http(server, model_folder, tmp_path):
    import pandas as pd

    uri, folder = server
    workspace = tmp_path / "Jane"
    workspace.mkdir()
    (workspace / "loss.csv").write_text("step,loss\n1,0.5\n")
    with open_tracker(Tracking(uri=uri, experiment="team", system_metrics=False), workspace, "demo") as run:
        run.params({"cohort": {"csv": str(workspace / "cohort.csv")}})
        with run.stage("prepare") as stage:
            stage.dataset("demo", "ab" * 32)
            stage.artifact(workspace / "loss.csv", "losses")
        with run.stage("register") as stage:
            version = register_model(
                uri, model_folder, name="nodules", tags={"verdict": "inconclusive"}, run_id=stage.run_id,
                sampling=Sampling(sampler="flow_euler", evaluations=2),
            )  # fmt: skip
            set_alias(uri, version, "candidate")
            set_alias(uri, version, "champion")
    assert not (workspace / "mlflow.db").exists()

    client = open_client(uri)
    experiment = client.get_experiment_by_name("team")
    assert experiment.artifact_location.startswith("mlflow-artifacts:/")
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"demo", "prepare", "register"}
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert runs["prepare"].data.tags["mlflow.parentRunId"] == runs["demo"].info.run_id
    assert runs["demo"].data.params == {"cohort.csv": "<workspace>/cohort.csv"}
    assert runs["prepare"].inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    kept = client.download_artifacts(runs["prepare"].info.run_id, "losses/loss.csv", str(tmp_path))
    assert Path(kept).read_text() == "step,loss\n1,0.5\n"

    found = client.get_model_version_by_alias("nodules", "champion")
    assert (found.version, found.run_id) == ("1", runs["register"].info.run_id)
    local = resolve("models:/nodules@champion", uri, folder=tmp_path / "model")
    original = {p.relative_to(model_folder): p.read_bytes() for p in model_folder.rglob("*") if p.is_file()}
    assert {p.relative_to(local): p.read_bytes() for p in local.rglob("*") if p.is_file()} == original
    again = resolve("models:/nodules/1", uri)
    assert again != local
    assert (again / "model_index.json").is_file()

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/nodules@champion")
    finally:
        mlflow.set_tracking_uri(before)
    assert model.predict(pd.DataFrame({"count": [2], "seed": [1]})).shape == (2, 16, 8, 16)

    database = (folder / "mlflow.db").read_bytes()
    for trace in (str(tmp_path), str(model_folder.parent), "Jane", "Alice"):
        assert trace.encode() not in database
