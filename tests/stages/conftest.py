"""A pipeline so small that all its stages run in seconds, and one workspace in which it has run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ward import LITTLE_EVIDENCE, Ward, write_ward

from medsynth.config.load import load_pipeline
from medsynth.config.pipeline import Pipeline
from medsynth.progress import Silent
from medsynth.verbs import run_pipeline

TINY = (
    """\
name: tiny
seed: 3
cohort: {kind: phantom, patients: 16}
conditions:
  diagnosis: {kind: category, values: [benign, malignant]}
  diameter_mm: {kind: number, range: [1, 40], unit: mm}
  nodule: {kind: mask, labels: {nodule: 1}, dropout: 0.2}
prepare:
  spacing_mm: [3, 3, 3]
  box: [16, 16, 16]
  split: {train: 0.5, validation: 0.25, test: 0.25, stratify: diagnosis}
autoencoder:
  network: {downsampling: 2, latent_channels: 2, width: 8, blocks: 1}
  training: {steps: 6, batch_size: 2, warmup_steps: 1, validate_every: 3, log_every: 2, checkpoint_minutes: 0.000001}
denoiser:
  network: {widths: [16], blocks: 1, head_channels: 8, mask_channels: 4}
  training: {steps: 6, batch_size: 2, warmup_steps: 1, validate_every: 3, log_every: 2, checkpoint_minutes: 0.000001}
generate:
  count: 8
  sampling: {sampler: flow_euler, evaluations: 2}
"""
    + LITTLE_EVIDENCE
)


@dataclass
class Ears:
    """A screen that remembers what it was told."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self) -> Silent:
        return Silent()


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipeline") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tiny_file: Path) -> Pipeline:
    return load_pipeline(str(tiny_file))


@pytest.fixture(scope="session")
def finished(tiny: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage is done. Look, do not touch."""
    folder = tmp_path_factory.mktemp("finished") / "tiny"
    run_pipeline(tiny, folder, None, force=False, screen=Ears())  # type: ignore[arg-type]
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace to change."""
    copy = tmp_path / "tiny"
    shutil.copytree(finished, copy)
    return copy


@pytest.fixture
def run_tiny(tiny_file: Path) -> Callable[..., Ears]:
    """Run the tiny pipeline, or one stage of it, in a folder with some settings changed."""

    def run(folder: Path, *overrides: str, only: str | None = None, force: bool = False) -> Ears:
        ears = Ears()
        run_pipeline(load_pipeline(str(tiny_file), overrides), folder, only, force=force, screen=ears)  # type: ignore[arg-type]
        return ears

    return run


@pytest.fixture
def fresh(finished: Path, tmp_path: Path) -> Path:
    """A workspace in which nothing was done but opening the tracking store, which takes seconds."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("mlflow.db", "pipeline.yaml"):
        shutil.copy(finished / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def ward_template(tmp_path_factory: pytest.TempPathFactory) -> Ward:
    return write_ward(tmp_path_factory.mktemp("ward"))


@pytest.fixture
def ward(ward_template: Ward, tmp_path: Path) -> Ward:
    """A cohort with names all over it, to spoil."""
    shutil.copytree(ward_template.folder, tmp_path / "ward")
    return Ward(tmp_path / "ward")
