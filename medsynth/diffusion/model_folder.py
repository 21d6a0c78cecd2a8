"""The model folder: what a generator is on disk, and proof that nobody changed it.

    model_index.json   autoencoder/  denoiser/     diffusers' layout: config.json and .safetensors each
    objective.json  conditions.json  intensity.json  geometry.json  provenance.json
    checksums.json                                  format, its version, and the sha256 of every other file

Only JSON and safetensors are ever read, so that loading runs no code of the folder's. The checksums find damage and
careless edits; they are no signature: whoever can write the folder can write them too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from safetensors import safe_open

import medsynth
from medsynth.diffusion.geometry import grids_of
from medsynth.digests import file_sha256
from medsynth.errors import ModelFolderError

if TYPE_CHECKING:
    from medsynth.diffusion.pipeline import LatentVolumePipeline

FORMAT = "medsynth-model"
FORMAT_VERSION = 2
CHECKSUMS = "checksums.json"
COMPONENTS = {"autoencoder": ("KLAutoencoder", "MaisiAutoencoder"), "denoiser": ("LatentUNet", "LatentTransformer")}
"""The classes that each network may be of: public names of `medsynth`, where diffusers' loader looks them up."""
PARTS = ("objective", "conditions", "intensity", "geometry")
"""What the pipeline needs besides its networks, a JSON file each."""
REQUIRED = (
    "model_index.json",
    "provenance.json",
    *(f"{part}.json" for part in PARTS),
    *(f"{name}/config.json" for name in COMPONENTS),
)
KINDS = (".json", ".safetensors")
_AGAIN = "copy the whole folder again from where it was made"


def save_model(pipeline: LatentVolumePipeline, folder: Path | str, provenance: Mapping[str, Any]) -> None:
    """Write the generator as a new model folder, whole or not at all.

    `provenance`: JSON types that say where the model comes from; nothing that identifies a patient or a machine. Raises
    ModelFolderError where something is already there.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelFolderError(
            f"{folder}: expected a new folder to save the model in, found one in use; choose another"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_all(pipeline, partial, provenance)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_model(folder: Path | str) -> LatentVolumePipeline:
    """The generator in a model folder, on the CPU, verified first. Raises ModelFolderError as `verify_model` does."""
    from medsynth.diffusion.pipeline import LatentVolumePipeline

    return LatentVolumePipeline.from_pretrained(folder)


def verify_model(folder: Path | str) -> None:
    """Check that a model folder is one, is of a format known here, and is byte for byte what was saved.

    Raises ModelFolderError for: no such folder or no checksums; a newer format; a file that is missing, additional, a
    link, of another kind than JSON or safetensors, or altered; a path that leads outside; components that are not ours.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        raise ModelFolderError(
            f"{folder}: expected a model folder (one with model_index.json and {CHECKSUMS}), found none; "
            "give the folder that the denoiser stage or save_model wrote"
        )
    listed = _read_checksums(folder)
    found = _files(folder)
    missing = sorted({*REQUIRED, *listed} - (found & listed.keys()))
    if missing:
        raise ModelFolderError(f"the model folder lacks {', '.join(missing[:3])}{_more(missing)}; {_AGAIN}")
    extra = sorted(found - set(listed))
    if extra:
        raise ModelFolderError(
            f"the model folder holds {', '.join(extra[:3])}{_more(extra)}, which is not part of the model; remove it"
        )
    for name, expected in sorted(listed.items()):
        if file_sha256(folder / name) != expected:
            raise ModelFolderError(f"{name} of the model folder was changed after it was saved; {_AGAIN}")
    index = read_json(folder, "model_index.json")
    named = {name: value for name, value in index.items() if not name.startswith("_")}
    known = {name: [["medsynth", kind] for kind in kinds] for name, kinds in COMPONENTS.items()}
    if named.keys() != known.keys() or any(value not in known[name] for name, value in named.items()):
        raise ModelFolderError(f"model_index.json names other components than {', '.join(COMPONENTS)}; {_AGAIN}")


def check_weights(folder: Path) -> None:
    """Raise ModelFolderError where weights are not, by name and shape, those of the network that a configuration describes.

    diffusers would draw at random what is missing, and leave out what is unknown.
    """
    index = read_json(folder, "model_index.json")
    for name in COMPONENTS:
        kind = getattr(medsynth, index[name][1])
        with torch.device("meta"):
            network = kind.from_config(read_json(folder / name, "config.json"))
        expected = {key: list(weight.shape) for key, weight in network.state_dict().items()}
        found: dict[str, list[int]] = {}
        for path in sorted((folder / name).glob("*.safetensors")):
            with safe_open(path, "pt") as weights:
                found |= {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
        differ = sorted(key for key in expected | found if expected.get(key) != found.get(key))
        if differ:
            raise ModelFolderError(
                f"expected a model of this version, found one in which the weights of its {name} are not those of its network "
                f"({differ[0]}{_more(differ, 1)}); use the version that made it, or train it again"
            )


def check_parts(autoencoder: Any, denoiser: Any, conditions: Mapping[str, Any], geometry: Mapping[str, Any]) -> None:
    """Raise ModelFolderError where the networks' configurations, the conditions and the geometry do not belong together."""
    pairs = {
        "latent channels": (autoencoder.latent_channels, denoiser.latent_channels),
        "downsampling": (autoencoder.downsampling, denoiser.downsampling),
        "conditions": (conditions, dict(denoiser.conditions or {})),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ModelFolderError(f"the model's parts disagree about its {what}; copy the whole folder again")
    for grid in grids_of(geometry):
        if any(size % autoencoder.downsampling for size in grid.box):
            raise ModelFolderError(f"the model's box {list(grid.box)} is no multiple of {autoencoder.downsampling}")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """One JSON object of a model folder. Raises ModelFolderError where it is none."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFolderError(f"{name} of the model folder is not JSON; {_AGAIN}") from error
    if not isinstance(data, dict):
        raise ModelFolderError(f"{name} of the model folder is not a JSON object; {_AGAIN}")
    return data


def _write_all(pipeline: LatentVolumePipeline, folder: Path, provenance: Mapping[str, Any]) -> None:
    for name in COMPONENTS:
        getattr(pipeline, name).save_pretrained(folder / name, safe_serialization=True)
        config = read_json(folder / name, "config.json")
        config.pop("_name_or_path", None)  # the path of this machine that the part was once loaded from
        _write_json(folder / name / "config.json", config)
    networks = {name: ["medsynth", type(getattr(pipeline, name)).__name__] for name in COMPONENTS}
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": diffusers.__version__, **networks}
    _write_json(folder / "model_index.json", index)
    for part, data in pipeline.parameters.items():
        _write_json(folder / f"{part}.json", data)
    _write_json(folder / "provenance.json", provenance)
    files = {name: file_sha256(folder / name) for name in sorted(_files(folder))}
    _write_json(folder / CHECKSUMS, {"format": FORMAT, "format_version": FORMAT_VERSION, "files": files})


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    # Order is kept: that of the conditions is part of the model.
    path.write_text(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_checksums(folder: Path) -> dict[str, str]:
    data = read_json(folder, CHECKSUMS)
    version = data.get("format_version")
    if data.get("format") != FORMAT or not isinstance(version, int):
        raise ModelFolderError(f"{CHECKSUMS} does not name the format {FORMAT}; is this a model folder of medsynth?")
    if version > FORMAT_VERSION:
        raise ModelFolderError(
            f"expected a model of format {FORMAT_VERSION}, found format {version}; "
            "update with: pip install --upgrade medsynth-diffusion"
        )
    if version < FORMAT_VERSION:
        raise ModelFolderError(
            f"expected a model of format {FORMAT_VERSION}, found format {version}, in which a flow network's answer means "
            "something else; train the denoiser again"
        )
    files = data.get("files")
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise ModelFolderError(f"{CHECKSUMS} holds no table of files; {_AGAIN}")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or path.as_posix() != name:
            raise ModelFolderError(f"{CHECKSUMS} names a file outside the model folder; do not use this model")
        if path.suffix not in KINDS:
            raise ModelFolderError(
                f"{CHECKSUMS} names a file that is neither JSON nor safetensors; do not use this model"
            )
    return files


def _files(folder: Path) -> set[str]:
    """Relative paths of all files but the checksums. Raises ModelFolderError for a link."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ModelFolderError(f"{name} of the model folder is a link; copy the folder with its files")
        if not path.is_dir() and name != CHECKSUMS:
            found.add(name)
    return found


def _more(names: list[str], told: int = 3) -> str:
    return f" and {len(names) - told} more" if len(names) > told else ""
