"""Registered models: a model folder in, versions and aliases, and a checked model folder out.

A version is an MLflow pyfunc made of three things: the code of `pyfunc_model.py`, a signature, and the model folder
as it was saved. The folder's list of digests is itself digested into a tag of the version, so that a folder that was
exchanged together with its list is noticed as well.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynth import __version__
from medsynth.config.generate import Sampling
from medsynth.diffusion.geometry import grids_of
from medsynth.digests import file_sha256
from medsynth.errors import ModelFolderError, UsageError
from medsynth.tracking.quiet import MlflowException, mlflow
from medsynth.tracking.store import answering, experiment_id, open_client

MODEL_INSIDE = "artifacts/model"
CHECKSUMS = "checksums.json"
CHECKSUMS_TAG = "medsynth.checksums_sha256"
_CODE = Path(__file__).with_name("pyfunc_model.py")
_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: int

    @property
    def uri(self) -> str:
        """How MLflow and `medsynth generate --model` name it."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    uri: str,
    model_folder: Path,
    *,
    name: str,
    tags: Mapping[str, str],
    run_id: str | None = None,
    sampling: Sampling | None = None,
    input_example: Mapping[str, Any] | None = None,
) -> RegisteredVersion:
    """Add the model folder to the registry at `uri` as the next version of `name`.

    run_id: the run it came from.  sampling: what plain `predict` uses unless told otherwise.  input_example: one row
    as `predict` takes it, made up from the declaration unless given. Raises ModelFolderError for a folder that is
    incomplete or altered.
    """
    from medsynth.diffusion.model_folder import verify_model

    verify_model(model_folder)
    client = open_client(uri)
    with answering(uri):
        experiment = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, uri, name)
        logged = client.create_logged_model(experiment, name=name, source_run_id=run_id, model_type="generator")
    status = mlflow.entities.LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as temporary, answering(uri):
            wrapper = Path(temporary) / "wrapper"
            _write_wrapper(wrapper, model_folder, logged.model_id, run_id, sampling or Sampling(), input_example)
            client.log_model_artifacts(logged.model_id, str(wrapper))
            for file in sorted(model_folder.rglob("*")):
                if file.is_file():
                    inside = file.relative_to(model_folder).parent.as_posix()
                    client.log_model_artifact(
                        logged.model_id, str(file), MODEL_INSIDE if inside == "." else f"{MODEL_INSIDE}/{inside}"
                    )
        status = mlflow.entities.LoggedModelStatus.READY
    finally:
        with answering(uri):
            client.finalize_logged_model(logged.model_id, status)
    with answering(uri):
        _create_name(client, name)
        version = client.create_model_version(
            name,
            source=logged.artifact_location,
            run_id=run_id,
            model_id=logged.model_id if run_id else None,  # without a run MLflow would look it up in its global store
            tags={**tags, CHECKSUMS_TAG: file_sha256(model_folder / CHECKSUMS), "medsynth.version": __version__},
        )
    return RegisteredVersion(name, int(version.version))


def find_registered(uri: str, model_folder: Path, *, name: str, tags: Mapping[str, str]) -> RegisteredVersion | None:
    """The newest version of `name` that is this model folder with these tags; None where there is none."""
    wanted = {**tags, CHECKSUMS_TAG: file_sha256(model_folder / CHECKSUMS)}
    client = open_client(uri)
    with answering(uri):
        versions = client.search_model_versions(f"name='{name}'")
    same = [int(found.version) for found in versions if wanted.items() <= dict(found.tags).items()]
    return RegisteredVersion(name, max(same)) if same else None


def set_alias(uri: str, registered: RegisteredVersion, alias: str) -> None:
    """Point `alias` at this version; whatever version had it before loses it."""
    client = open_client(uri)
    with answering(uri):
        client.set_registered_model_alias(registered.name, alias, str(registered.version))


def is_registry_name(text: str) -> bool:
    """Whether a model is named as in the registry, and not as a folder."""
    return text.startswith("models:/")


def find_version(reference: str, uri: str) -> RegisteredVersion:
    """The version that `models:/name@alias` or `models:/name/3` means. Raises UsageError where there is none."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError(f"expected models:/NAME@ALIAS or models:/NAME/VERSION, found {reference!r}")
    client = open_client(uri)
    try:
        with answering(uri):
            if match["alias"]:
                found = client.get_model_version_by_alias(match["name"], match["alias"])
            else:
                found = client.get_model_version(match["name"], match["version"])
    except MlflowException as error:
        raise UsageError(f"no model {reference} in the registry; known: {_known(client) or 'none'}") from error
    return RegisteredVersion(found.name, int(found.version))


def resolve(reference: str, uri: str | None = None, *, folder: Path | None = None) -> Path:
    """The model folder behind `models:/name@alias` or `models:/name/3`, every file checked; no code of it is run.

    A registry in a workspace hands out the folder it holds; a server's is downloaded into `folder`, or into one that
    goes when the process ends. uri: that of the environment variable
    MLFLOW_TRACKING_URI unless given. Raises UsageError for an unknown model, ModelFolderError where a digest differs.
    """
    from medsynth.diffusion.model_folder import verify_model

    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UsageError(
            f"{reference}: expected to know which registry; name its workspace with --workspace, or set MLFLOW_TRACKING_URI"
        )
    registered = find_version(reference, uri)
    client = open_client(uri)
    with answering(uri):
        tags = client.get_model_version(registered.name, str(registered.version)).tags
        location = client.get_model_version_download_uri(registered.name, str(registered.version))
        found = _fetched(location, uri, folder)
    expected = tags.get(CHECKSUMS_TAG)
    if expected is None:
        raise ModelFolderError(
            f"{registered.uri}: expected a model that medsynth registered, found no {CHECKSUMS_TAG} tag"
        )
    if not (found / CHECKSUMS).is_file() or file_sha256(found / CHECKSUMS) != expected:
        raise ModelFolderError(
            f"{registered.uri}: its list of digests is not the one that was registered; restore the artifacts, or register again"
        )
    verify_model(found)
    return found


def _fetched(location: str, uri: str, folder: Path | None) -> Path:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    repository = get_artifact_repository(location, tracking_uri=uri, registry_uri=uri)
    if isinstance(repository, LocalArtifactRepository) and folder is None:
        return Path(repository.get_local_path(MODEL_INSIDE))
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="medsynth-model-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return Path(repository.download_artifacts(MODEL_INSIDE, str(folder)))


def _write_wrapper(
    target: Path,
    model_folder: Path,
    model_id: str,
    run_id: str | None,
    sampling: Sampling,
    input_example: Mapping[str, Any] | None,
) -> None:
    """The pyfunc without its model folder; nothing in it names a path of this machine."""
    from mlflow.models import Model

    declaration = json.loads((model_folder / "conditions.json").read_text(encoding="utf-8"))
    geometry = json.loads((model_folder / "geometry.json").read_text(encoding="utf-8"))
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(_CODE),
        mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        signature=_signature(declaration, geometry, sampling),
        pip_requirements=[f"medsynth-diffusion=={__version__}"],
        input_example=dict(input_example or _example(declaration)),
    )
    saved = Model.load(str(target))
    flavor = saved.flavors["python_function"]
    flavor["model_code_path"] = _CODE.name  # MLflow notes the absolute path, and reads only its last part
    flavor["artifacts"] = {"model": {"path": MODEL_INSIDE, "uri": MODEL_INSIDE}}
    saved.model_size_bytes = sum(
        f.stat().st_size for f in (*model_folder.rglob("*"), *target.rglob("*")) if f.is_file()
    )
    saved.save(str(target / "MLmodel"))


def _signature(declaration: Mapping[str, Mapping[str, Any]], geometry: Mapping[str, Any], sampling: Sampling) -> Any:
    """Conditions, count and seed in, none of them compulsory; volumes [N, X, Y, Z] out; sampling as parameters."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    kinds = {
        "category": DataType.string,
        "geometry": DataType.string,
        "number": DataType.double,
        "mask": Array(Array(Array(DataType.long))),
    }
    columns = [ColSpec(kinds[one["kind"]], name, required=False) for name, one in declaration.items()]
    columns += [ColSpec(DataType.long, name, required=False) for name in ("count", "seed")]
    # A scale for all conditions together and one scale per condition are different things: whichever was set is kept.
    scales = sampling.guidance
    named = {f"guidance_of_{k}": v for k, v in scales.items()} if isinstance(scales, dict) else {"guidance": scales}
    params = [
        ParamSpec("sampler", DataType.string, sampling.sampler),
        ParamSpec("evaluations", DataType.long, sampling.evaluations),
        *(ParamSpec(name, DataType.double, float(scale)) for name, scale in named.items()),
        ParamSpec("guidance_interval", DataType.double, list(sampling.guidance_interval), (-1,)),
        ParamSpec("guidance_rescale", DataType.double, sampling.guidance_rescale),
    ]
    grids = grids_of(geometry)
    volumes = TensorSpec(np.dtype("float32"), (-1, *(grids[0].box if len(grids) == 1 else (-1, -1, -1))))
    return ModelSignature(Schema(columns), Schema([volumes]), ParamSchema(params))


def _create_name(client: Any, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _known(client: Any) -> str:
    """Names with their versions' aliases, which a search does not tell."""
    names = [model.name for model in client.search_registered_models(max_results=20)]
    aliases = {name: sorted(client.get_registered_model(name).aliases) for name in names}
    return ", ".join(f"{name} ({' '.join('@' + alias for alias in aliases[name]) or 'no alias'})" for name in names)


def _example(declaration: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row that asks for one volume: first values, middles of ranges, no mask."""
    row: dict[str, Any] = {}
    for name, one in declaration.items():
        if one["kind"] == "category":
            row[name] = one["values"][0]
        elif one["kind"] == "number":
            row[name] = float(sum(one["range"])) / 2
        elif one["kind"] == "geometry":
            row[name] = one["grids"][0]
    return {**row, "count": 1, "seed": 0}
