"""A pipeline on weights that were there before: judged, not trained, and their file's place goes nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import medsynth
from medsynth.config.load import load_pipeline
from medsynth.errors import ConfigError
from medsynth.models.maisi import MaisiAutoencoder
from medsynth.stages.base import plan
from medsynth.stages.chain import STAGES
from medsynth.stages.workspace import Workspace

SIZES = {"channels": [4, 8], "blocks": 1, "norm_groups": 2, "latent_channels": 2}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = MaisiAutoencoder(downsampling=2, **SIZES).network
    path = tmp_path / "somewhere" / "given.safetensors"
    path.parent.mkdir()
    save_file(network.state_dict(), path)
    return path


def network(weights: Path, **changes: Any) -> str:
    return f"autoencoder.network={json.dumps({'kind': 'maisi', 'weights': str(weights), **SIZES, **changes})}"


def test_the_chain_runs_on_given_weights(fresh: Path, weights: Path, run_tiny: Callable[..., Any]) -> None:
    for stage in ("prepare", "autoencoder", "encode", "denoiser", "generate"):
        run_tiny(fresh, network(weights), only=stage)
    record = json.loads((fresh / "autoencoder" / "stage.json").read_text())
    (only,) = json.loads((fresh / "autoencoder" / "history.json").read_text())
    assert only["step"] == 0
    assert record["summary"]["psnr"] == only["validation"]["psnr"] > 0
    pipe = medsynth.LatentVolumePipeline.from_pretrained(fresh / "denoiser" / "model")
    assert isinstance(pipe.autoencoder, MaisiAutoencoder)
    assert list(pipe.autoencoder.config.value_range) == [0.0, 0.7]  # the window -1000 to 400 HU
    given = load_file(weights)
    for name, weight in pipe.autoencoder.network.state_dict().items():
        assert torch.equal(weight, given[name])
    told = pipe.provenance["settings"]["autoencoder"]["network"]["weights"]
    assert told == record["summary"]["given_weights"]
    assert len(told) == len("sha256:") + 64
    for path in (fresh / "denoiser" / "model").rglob("*.json"):
        assert "somewhere" not in path.read_text()


def test_they_are_tuned_where_asked_for(fresh: Path, weights: Path, run_tiny: Callable[..., Any]) -> None:
    for stage in ("prepare", "autoencoder"):
        run_tiny(fresh, network(weights, fine_tune=True), only=stage)
    history = json.loads((fresh / "autoencoder" / "history.json").read_text())
    assert history[-1]["step"] == 6
    tuned = load_file(fresh / "autoencoder" / "model" / "diffusion_pytorch_model.safetensors")
    given = load_file(weights)
    assert any(not torch.equal(tuned[f"network.{name}"], weight) for name, weight in given.items())


def test_other_weights_under_the_same_name_are_another_autoencoder(
    fresh: Path, weights: Path, tiny_file: Path, run_tiny: Callable[..., Any]
) -> None:
    for stage in ("prepare", "autoencoder"):
        run_tiny(fresh, network(weights), only=stage)

    def redone() -> bool:
        stages = [stage for stage in STAGES if stage.name in ("prepare", "autoencoder")]
        return plan(stages, load_pipeline(str(tiny_file), [network(weights)]), Workspace(fresh))[1].run

    assert not redone()
    save_file({name: weight + 1 for name, weight in load_file(weights).items()}, weights)
    assert redone()


def test_the_house_s_own_is_the_default_kind_and_wrong_ones_are_named(tiny_file: Path, weights: Path) -> None:
    assert load_pipeline(str(tiny_file)).autoencoder.network.kind == "kl"
    with pytest.raises(ConfigError, match=r"autoencoder\.network.*kind: expected one of kl, maisi"):
        load_pipeline(str(tiny_file), ["autoencoder.network={kind: vqgan}"])
    with pytest.raises(ConfigError, match=r"prepare\.intensity: expected a window within -1000 and 1000 HU"):
        wide = "prepare.intensity={kind: hu_window, low: -1000, high: 3000}"
        load_pipeline(str(tiny_file), [network(weights), wide])
    with pytest.raises(ConfigError, match="channels must be multiples of norm_groups"):
        load_pipeline(str(tiny_file), [network(weights, norm_groups=3)])
