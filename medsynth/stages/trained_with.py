"""Which models a patient's scans went into: the workspace's own and the registered ones."""

from __future__ import annotations

from medsynth.config.pipeline import Pipeline
from medsynth.stages.workspace import Workspace

TRAINED, CHOSEN, UNKNOWN = (
    "trained with the patient",
    "stopped and chosen with the patient's scans as validation",
    "made from an earlier preparation: may have been trained with the patient",
)


def models_of(workspace: Workspace, pipeline: Pipeline, splits: set[str]) -> tuple[str, ...]:
    """One line per model. splits: those that the patient's cases are in now; no model was made from the test split.

    A model belongs to the preparation whose digest it notes. Of earlier ones nothing says who was in which split.
    """
    now = TRAINED if "train" in splits else CHOSEN if "validation" in splits else None
    prepared = workspace.digest_of("prepare")
    own = [stage for stage in ("autoencoder", "denoiser") if (workspace.stage(stage) / "model").exists()]
    found = [(f"{workspace.stage(stage).name}/model", workspace.needed(stage, "prepare")) for stage in own]
    lines = [_line(model, digest, prepared, now) for model, digest in [*found, *_registered(workspace, pipeline)]]
    return tuple(line for line in lines if line)


def _line(model: str, made_from: str | None, prepared: str | None, now: str | None) -> str:
    if made_from is not None and made_from == prepared:
        return f"{model}: {now}" if now else ""
    return f"{model}: {UNKNOWN}"


def _registered(workspace: Workspace, pipeline: Pipeline) -> list[tuple[str, str | None]]:
    """Address and preparation of every version in the registry, the newest last."""
    from medsynth.tracking.store import answering, open_client, tracking_uri

    if pipeline.tracking.uri is None and not (workspace.path / "mlflow.db").exists():
        return []
    uri, name = tracking_uri(pipeline.tracking, workspace.path), pipeline.register_.name or pipeline.name
    client = open_client(uri)
    with answering(uri, at_the_door=True):
        versions = client.search_model_versions(f"name='{name}'")
    found = sorted(versions, key=lambda version: int(version.version))
    return [(f"models:/{one.name}/{one.version}", one.tags.get("medsynth.prepare")) for one in found]
