"""Models go into the registry and come out the same, checked; plain MLflow can use them too."""

import json
import os
import pickletools
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medsynth.config.evidence import Tracking
from medsynth.config.generate import Sampling
from medsynth.diffusion.model_folder import load_model
from medsynth.errors import ModelFolderError, UsageError
from medsynth.tracking.mlflow_tracker import open_tracker
from medsynth.tracking.quiet import mlflow
from medsynth.tracking.registry import (
    RegisteredVersion,
    find_version,
    is_registry_name,
    register_model,
    resolve,
    set_alias,
)
from medsynth.tracking.store import open_client, tracking_uri

ROOT = Path(__file__).parents[2]
FAST = Sampling(sampler="flow_euler", evaluations=2)
BOX = (16, 8, 16)


@pytest.fixture
def registered(workspace, model_folder):
    uri = tracking_uri(Tracking(), workspace)
    with open_tracker(Tracking(system_metrics=False), workspace, "demo") as run, run.stage("register") as stage:
        version = register_model(
            uri, model_folder, name="nodules", tags={"verdict": "no benefit"}, run_id=stage.run_id, sampling=FAST,
            input_example={"diagnosis": "malignant", "diameter_mm": 12.5, "count": 1, "seed": 3},
        )  # fmt: skip
    set_alias(uri, version, "candidate")
    return uri, version


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_registered_model_comes_back_byte_for_byte(registered, model_folder, tmp_path):
    uri, version = registered
    assert version == RegisteredVersion("nodules", 1)
    assert version.uri == "models:/nodules/1"
    for reference in ("models:/nodules@candidate", "models:/nodules/1"):
        assert files_of(resolve(reference, uri)) == files_of(model_folder)
    elsewhere = resolve("models:/nodules@candidate", uri, folder=tmp_path / "copy")
    assert elsewhere.is_relative_to(tmp_path / "copy")
    assert files_of(elsewhere) == files_of(model_folder)
    tags = open_client(uri).get_model_version("nodules", "1").tags
    assert tags["verdict"] == "no benefit"


def test_versions_count_and_an_alias_moves(registered, model_folder):
    uri, first = registered
    second = register_model(uri, model_folder, name="nodules", tags={}, sampling=FAST)  # of no run
    assert (first.version, second.version) == (1, 2)
    assert find_version("models:/nodules@candidate", uri) == first
    set_alias(uri, second, "candidate")
    assert find_version("models:/nodules@candidate", uri) == second
    assert files_of(resolve("models:/nodules/2", uri)) == files_of(model_folder)


def test_the_environment_names_the_registry(registered, monkeypatch):
    uri, _ = registered
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="which registry"):
        resolve("models:/nodules@candidate")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert (resolve("models:/nodules@candidate") / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/nodules@champion", r"known: nodules \(@candidate\)"),
        ("models:/nodules/9", r"known: nodules \(@candidate\)"),
        ("models:/nodule@candidate", r"known: nodules \(@candidate\)"),
        ("models:/nodules", "expected models:/NAME@ALIAS"),
        ("nodules", "expected models:/NAME@ALIAS"),
    ],
)
def test_an_unknown_model_is_a_mistake_of_use(registered, reference, message):
    with pytest.raises(UsageError, match=message):
        resolve(reference, registered[0])


def test_registry_names_are_told_from_folders():
    assert is_registry_name("models:/a@b")
    assert not is_registry_name("models/a")


def weights(folder):
    return next(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("also_the_list", [False, True])
def test_an_exchanged_model_is_refused(registered, also_the_list):
    """Altered weights are noticed even where the list of digests was altered to match."""
    uri, _ = registered
    folder = resolve("models:/nodules/1", uri)
    file = weights(folder)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    if also_the_list:
        import hashlib

        listed = json.loads((folder / "checksums.json").read_text())
        listed["files"][file.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
        (folder / "checksums.json").write_text(json.dumps(listed))
        load_model(folder)  # by itself it looks whole
    with pytest.raises(ModelFolderError):
        resolve("models:/nodules/1", uri)


def test_a_damaged_folder_is_not_registered(workspace, model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    weights(copy).unlink()
    uri = tracking_uri(Tracking(), workspace)
    with pytest.raises(ModelFolderError):
        register_model(uri, copy, name="nodules", tags={})
    assert not open_client(uri).search_registered_models()


def test_the_registry_holds_no_path_no_name_and_no_pickle(registered, workspace, dump, model_folder, tmp_path):
    found = dump(workspace)
    assert b"python_model.pkl" not in found
    traces = {str(tmp_path), str(model_folder.parent), str(ROOT), str(Path.home()) + "/", "Alice", "Jane"}
    for trace in traces | {str(Path.cwd()), "/tmp"}:
        assert trace.encode() not in found, trace
    stored = resolve("models:/nodules/1", registered[0]).parents[1]
    described = yaml.safe_load((stored / "MLmodel").read_text())
    flavor = described["flavors"]["python_function"]
    assert flavor["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert flavor["model_code_path"] == "pyfunc_model.py"
    assert "medsynth-diffusion" in (stored / "requirements.txt").read_text()
    for file in stored.rglob("*"):
        if file.is_file():
            with pytest.raises((ValueError, KeyError, IndexError, UnicodeDecodeError)):
                list(pickletools.genops(file.read_bytes()))


def test_plain_mlflow_predicts_what_the_pipeline_generates(registered, model_folder):
    import pandas as pd

    uri, _ = registered
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/nodules@candidate")
    finally:
        mlflow.set_tracking_uri(before)
    mask = np.zeros(BOX, np.uint8)
    mask[4:8, 2:6, 4:8] = 1
    rows = pd.DataFrame(
        {
            "diagnosis": ["malignant", None, "benign"],
            "diameter_mm": [12.5, float("nan"), 7.0],
            "count": [2, 1, 1],
            "seed": [2**62, 5, 6],
        }
    )
    volumes = model.predict(rows)
    assert volumes.shape == (4, *BOX)
    assert volumes.dtype == np.float32
    pipeline = load_model(model_folder)
    direct = pipeline(
        [
            {"diagnosis": "malignant", "diameter_mm": 12.5},
            {"diagnosis": "malignant", "diameter_mm": 12.5},
            {},
            {"diagnosis": "benign", "diameter_mm": 7.0},
        ],
        seeds=[2**62, 2**62 + 1, 5, 6],
        sampler="flow_euler",
        evaluations=2,
    )
    for ours, theirs in zip(volumes, direct.scans, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs)[0])
    masked = model.predict(pd.DataFrame({"nodule": [mask], "seed": [5]}), params={"evaluations": 3})
    expected = pipeline({}, masks=torch.from_numpy(mask)[None, None], seeds=[5], sampler="flow_euler", evaluations=3)
    np.testing.assert_array_equal(masked[0], np.asarray(expected.scans[0])[0])
    assert not np.array_equal(masked[0], volumes[2])

    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["diagnosis", "diameter_mm", "nodule", "count", "seed"]
    assert not signature.inputs.required_input_names()
    assert signature.outputs.inputs[0].shape == (-1, *BOX)
    assert [p.name for p in signature.params] == [
        "sampler",
        "evaluations",
        "guidance",
        "guidance_interval",
        "guidance_rescale",
    ]


def test_guidance_per_condition_reaches_the_pipeline(workspace, model_folder):
    import pandas as pd

    uri = tracking_uri(Tracking(), workspace)
    guidance = {
        "guidance": {"diagnosis": 4.0, "diameter_mm": 1.0},
        "guidance_interval": (0.7, 1.0),
        "guidance_rescale": 0.5,
    }
    sampling = Sampling(sampler="flow_euler", evaluations=2, **guidance)
    register_model(uri, model_folder, name="guided", tags={}, sampling=sampling)
    stored = resolve("models:/guided/1", uri)
    model = mlflow.pyfunc.load_model(str(stored.parents[1]))
    conditions = {"diagnosis": "malignant", "diameter_mm": 9.0}
    ours = model.predict(pd.DataFrame([{**conditions, "seed": 1}]))
    theirs = load_model(model_folder)(conditions, seeds=[1], sampler="flow_euler", evaluations=2, **guidance)
    np.testing.assert_array_equal(ours[0], np.asarray(theirs.scans[0])[0])


@pytest.mark.slow
def test_another_process_needs_nothing_but_mlflow_and_the_installed_package(registered, tmp_path):
    """As installed: MLflow learns the workspace's addresses from the package's entry point alone."""
    uri, _ = registered
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "mlflow.artifact_repository"
    ]
    site = tmp_path / "site"
    info = site / "medsynth_diffusion-0.0.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: medsynth-diffusion\nVersion: 0.0.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mlflow.artifact_repository]", *lines, ""]))
    program = f"""
import mlflow, pandas as pd
mlflow.set_tracking_uri({uri!r})
print(mlflow.pyfunc.load_model("models:/nodules@candidate").predict(pd.DataFrame({{"seed": [1]}})).shape)
"""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((1, *BOX))
