"""Artifacts addressed from the SQLite file that lists them, so that the database holds no path of the machine.

MLflow writes the absolute address of every artifact folder into its database. An address of the form
`medsynth-workspace:/artifacts/1/...` means: beside the database, whatever folder that is today. A workspace can
therefore be moved, archived or mounted elsewhere, and its database says nothing about the disk it came from.

MLflow finds the class by the entry point `mlflow.artifact_repository` of the installed package. It is imported while
MLflow itself is being imported, and so takes only what exists by then.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

SCHEME = "medsynth-workspace"
ARTIFACT_ROOT = f"{SCHEME}:/artifacts"


def sqlite_file(uri: str) -> Path | None:
    """The file behind a `sqlite:///...` address; None for any other kind."""
    scheme, _, rest = uri.partition("://")
    if scheme.split("+")[0] != "sqlite" or not rest.startswith("/"):
        return None
    return Path(rest[1:].split("?")[0]).absolute()


class WorkspaceArtifactRepository(LocalArtifactRepository):
    """The artifact folder beside the SQLite file of the tracking address."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        from mlflow.exceptions import MlflowException

        if tracking_uri is None:
            from mlflow.tracking import get_tracking_uri

            tracking_uri = get_tracking_uri()
        database = sqlite_file(tracking_uri)
        if database is None:
            raise MlflowException.invalid_parameter_value(
                f"{SCHEME}: addresses are read beside a SQLite tracking store; set the tracking URI to "
                "sqlite:///<workspace>/mlflow.db"
            )
        inside = PurePosixPath(unquote(urlsplit(artifact_uri).path).lstrip("/"))
        if ".." in inside.parts:
            raise MlflowException.invalid_parameter_value(f"{SCHEME}: an address must stay beside its database")
        super().__init__((database.parent / inside).as_uri(), tracking_uri, registry_uri)
