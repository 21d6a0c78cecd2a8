"""The MLflow project says what the command line can do."""

from pathlib import Path

import pytest
import yaml

from medsynth.stages import chain
from medsynth.tracking.quiet import mlflow

ROOT = Path(__file__).parents[2]
STAGES = tuple(stage.name for stage in chain.STAGES)


def test_there_is_one_entry_point_per_stage():
    project = yaml.safe_load((ROOT / "mlflow" / "MLproject").read_text())
    assert set(project["entry_points"]) == {"main", *STAGES}


@pytest.mark.parametrize("stage", STAGES)
def test_mlflow_reads_the_project_and_calls_the_stage_with_the_pipeline(stage, tmp_path):
    from mlflow.projects._project_spec import load_project

    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text("name: mine\n")
    project = load_project(str(ROOT / "mlflow"))
    command = project.get_entry_point(stage).compute_command({"pipeline": str(pipeline)}, None)
    assert command == f"cd .. && medsynth {stage} {pipeline}"
    assert mlflow.__version__


def test_the_folder_holds_no_python():
    assert not list((ROOT / "mlflow").rglob("*.py"))
