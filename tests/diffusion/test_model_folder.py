"""The model folder: whole or not at all, verified before it is used, no code, no network."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsynth.diffusion.model_folder import CHECKSUMS, FORMAT_VERSION, load_model, save_model, verify_model
from medsynth.diffusion.pipeline import LatentVolumePipeline
from medsynth.digests import file_sha256
from medsynth.errors import ModelFolderError

FAST = {"sampler": "flow_heun", "evaluations": 3, "seeds": [4]}
PROVENANCE = {"medsynth": "0.1.0", "pipeline": "test", "seed": 3}


@pytest.fixture
def folder(pipeline, tmp_path):
    save_model(pipeline, tmp_path / "model", PROVENANCE)
    return tmp_path / "model"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def reseal(folder):
    """Checksums made to fit whatever the folder holds, as somebody who wants to deceive would."""
    data = json.loads((folder / CHECKSUMS).read_text())
    data["files"] = {name: file_sha256(folder / name) for name in files(folder) - {CHECKSUMS}}
    (folder / CHECKSUMS).write_text(json.dumps(data))


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_layout(folder):
    assert files(folder) == {
        "model_index.json",
        "autoencoder/config.json",
        "autoencoder/diffusion_pytorch_model.safetensors",
        "denoiser/config.json",
        "denoiser/diffusion_pytorch_model.safetensors",
        "objective.json",
        "conditions.json",
        "intensity.json",
        "geometry.json",
        "provenance.json",
        CHECKSUMS,
    }
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "LatentVolumePipeline"
    assert index["autoencoder"] == ["medsynth", "KLAutoencoder"]
    assert index["denoiser"] == ["medsynth", "LatentUNet"]
    assert json.loads((folder / "provenance.json").read_text()) == PROVENANCE
    assert list(folder.parent.iterdir()) == [folder]


def test_a_transformer_makes_the_same_round_trip(transformer_pipeline, tmp_path):
    save_model(transformer_pipeline, tmp_path / "model", PROVENANCE)
    before = transformer_pipeline({"diagnosis": "benign"}, **FAST).scans[0]
    loaded = load_model(tmp_path / "model")
    assert type(loaded.denoiser).__name__ == "LatentTransformer"
    assert torch.equal(loaded({"diagnosis": "benign"}, **FAST).scans[0].as_tensor(), before.as_tensor())


def test_round_trip_generates_the_same_voxels(pipeline, folder):
    before = pipeline({"diagnosis": "benign"}, **FAST)
    for load in (load_model, LatentVolumePipeline.from_pretrained):
        loaded = load(folder)
        assert loaded.parameters == pipeline.parameters
        assert list(loaded.condition_declaration) == list(pipeline.condition_declaration)
        assert loaded.provenance == PROVENANCE
        assert not loaded.denoiser.training
        assert torch.equal(loaded.autoencoder.latent_scale, pipeline.autoencoder.latent_scale)
        after = loaded({"diagnosis": "benign"}, **FAST)
        torch.testing.assert_close(after.latents, before.latents, rtol=1e-5, atol=1e-5)
        assert torch.equal(after.latents, load_model(folder)({"diagnosis": "benign"}, **FAST).latents)


def test_saving_again_keeps_everything_and_names_no_path_of_this_machine(folder, tmp_path):
    load_model(folder).save_pretrained(tmp_path / "again")
    assert files(tmp_path / "again") == files(folder)
    for name in files(folder):
        assert file_sha256(tmp_path / "again" / name) == file_sha256(folder / name), name
        assert str(tmp_path).encode() not in (tmp_path / "again" / name).read_bytes()


def test_three_lines_in_a_fresh_interpreter_without_a_network(folder):
    script = f"""
import socket
def refuse(*a, **k): raise OSError("the network was asked for")
socket.socket.connect = refuse; socket.getaddrinfo = refuse; socket.create_connection = refuse
from medsynth import LatentVolumePipeline
pipe = LatentVolumePipeline.from_pretrained({str(folder)!r})
out = pipe({{"diagnosis": "malignant"}}, count=2, seeds=[1, 2], evaluations=3)
print(type(out.scans[0]).__name__, tuple(out.scans[0].shape), out.scans[0].meta["unit"])
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "MetaTensor (1, 16, 24, 16) HU"
    assert "Expected types" not in done.stderr
    assert "Loading pipeline components" not in done.stderr


def test_loading_opens_no_socket(folder, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load_model(folder)


@pytest.mark.parametrize("name", ["denoiser/diffusion_pytorch_model.safetensors", "intensity.json", "model_index.json"])
def test_one_changed_byte_is_found(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFolderError, match=f"{name} of the model folder was changed") as caught:
        load_model(folder)
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "name", ["autoencoder/diffusion_pytorch_model.safetensors", "conditions.json", "provenance.json"]
)
def test_a_missing_file_is_found(folder, name):
    (folder / name).unlink()
    with pytest.raises(ModelFolderError, match=f"lacks {name}"):
        verify_model(folder)
    if name.endswith(".json"):
        reseal(folder)
        with pytest.raises(ModelFolderError, match=f"lacks {name}"):
            verify_model(folder)


def test_an_additional_file_is_found(folder):
    (folder / "denoiser" / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelFolderError, match=r"holds denoiser/diffusion_pytorch_model\.bin"):
        verify_model(folder)
    reseal(folder)
    with pytest.raises(ModelFolderError, match="neither JSON nor safetensors"):
        verify_model(folder)


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    trace = tmp_path / "ran"
    (folder / "denoiser" / "medsynth.py").write_text(f"open({str(trace)!r}, 'w')\nclass LatentUNet: pass\n")
    with pytest.raises(ModelFolderError):
        load_model(folder)
    reseal(folder)
    with pytest.raises(ModelFolderError):
        load_model(folder)
    assert not trace.exists()


def test_other_components_are_refused(folder):
    edit(folder / "model_index.json", lambda index: index.update(denoiser=["os", "system"]))
    reseal(folder)
    with pytest.raises(ModelFolderError, match="names other components"):
        load_model(folder)


@pytest.mark.parametrize(
    ("away", "remedy"),
    [
        (1, r"format 3; update with: pip install --upgrade medsynth-diffusion"),
        (-1, r"format 1, .* train the denoiser again"),
    ],
)
def test_another_format_names_the_remedy(folder, away, remedy):
    edit(folder / CHECKSUMS, lambda data: data.update(format_version=FORMAT_VERSION + away))
    with pytest.raises(ModelFolderError, match=remedy):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["../secret.json", "/etc/secret.json", "a/../../secret.json", "..\\secret.json", "C:x.json", "./a.json"]
)
def test_paths_that_lead_outside_are_refused(folder, name):
    (folder.parent / "secret.json").write_text("{}")
    edit(folder / CHECKSUMS, lambda data: data["files"].update({name: file_sha256(folder.parent / "secret.json")}))
    with pytest.raises(ModelFolderError, match="outside the model folder"):
        verify_model(folder)


def test_links_are_refused(folder, tmp_path):
    (folder / "geometry.json").rename(tmp_path / "geometry.json")
    (folder / "geometry.json").symlink_to(tmp_path / "geometry.json")
    with pytest.raises(ModelFolderError, match=r"geometry\.json of the model folder is a link"):
        verify_model(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "does not name the format"),
        (json.dumps({"format": "medsynth-model", "format_version": FORMAT_VERSION}), "holds no table"),
        (json.dumps({"format": "medsynth-model", "format_version": FORMAT_VERSION, "files": {}}), "lacks"),
    ],
)
def test_broken_checksums_are_refused(folder, content, message):
    (folder / CHECKSUMS).write_text(content)
    with pytest.raises(ModelFolderError, match=message):
        verify_model(folder)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_place_that_is_no_model_folder_is_refused(tmp_path, make):
    make(tmp_path / "other")
    with pytest.raises(ModelFolderError, match="expected a model folder"):
        load_model(tmp_path / "other")


def test_a_name_is_never_looked_up_on_a_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFolderError, match="expected a model folder"):
        LatentVolumePipeline.from_pretrained("somebody/model")


def test_nothing_half_written_remains_when_saving_fails(pipeline, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.denoiser, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(pipeline, tmp_path / "model", {})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_cleared_and_a_folder_in_use_is_kept(pipeline, tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "junk.json").write_text("{}")
    save_model(pipeline, tmp_path / "model", {})
    verify_model(tmp_path / "model")
    with pytest.raises(ModelFolderError, match="expected a new folder"):
        save_model(pipeline, tmp_path / "model", {})
    verify_model(tmp_path / "model")


def test_a_folder_may_move(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    verify_model(tmp_path / "elsewhere" / "copy")


@pytest.mark.parametrize("part", ["autoencoder", "denoiser"])
@pytest.mark.parametrize("change", ["lacks one", "one more", "another shape"])
def test_weights_that_are_not_those_of_the_network_are_refused(folder, part, change):
    """Those of an older version, for instance: what is missing would be drawn at random."""
    path = folder / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    if change == "one more":
        weights["older.weight"] = torch.zeros(3)
    elif change == "lacks one":
        del weights[name]
    else:
        weights[name] = torch.zeros(3, 5, 7)
    save_file(weights, path)
    reseal(folder)
    with pytest.raises(ModelFolderError, match=f"weights of its {part}.*train"):
        load_model(folder)
