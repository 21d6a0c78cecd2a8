"""Where runs and models are kept, and clients for it that leave MLflow's global state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.exc import SQLAlchemyError

from medsynth.config.evidence import Tracking
from medsynth.errors import StorageError, UsageError
from medsynth.tracking.quiet import MlflowClient, MlflowException
from medsynth.tracking.workspace_artifacts import ARTIFACT_ROOT, SCHEME, WorkspaceArtifactRepository, sqlite_file

FIRST_ANSWER_SECONDS = 10
_CALLERS_MISTAKES = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_SQLITE_ON_A_BAD_DISK = ("database or disk is full", "disk I/O error")


def tracking_uri(settings: Tracking, workspace: Path) -> str:
    """The address of the tracking store: the one that was set, or the SQLite file of the workspace.

    Raises UsageError where the workspace's path cannot be written as an address.
    """
    if settings.uri is not None:
        return settings.uri
    database = workspace.absolute() / "mlflow.db"
    if any(mark in str(database) for mark in "?#"):
        raise UsageError(
            "expected a workspace without ? or # in its path, because MLflow's SQLite address cannot hold them"
        )
    return f"sqlite:///{database}"


def open_client(uri: str) -> Any:
    """An `MlflowClient` for tracking and registry at `uri`; a SQLite file is created where there is none.

    Raises UsageError where nothing answers at `uri`.
    """
    _make_addresses_known()
    with answering(uri, at_the_door=True):
        if urlsplit(uri).scheme in ("http", "https"):
            _knock(uri)
        elif (database := sqlite_file(uri)) is not None and not database.exists():
            _create_database(uri, database)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: Any, uri: str, name: str, workspace: Path | None = None) -> str:
    """The id of the experiment `name`, created where it is not there yet.

    Artifacts go beside a SQLite file, to wherever a server keeps them, or else (a database addressed directly) into
    the `artifacts` folder of `workspace`: the one case in which the database holds a path, because nothing else
    would say where they are.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if sqlite_file(uri) is not None:
            location = f"{ARTIFACT_ROOT}/{name}"
        elif urlsplit(uri).scheme not in ("http", "https") and workspace is not None:
            location = (workspace.absolute() / "artifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise UsageError(f"experiment {name!r} was deleted in MLflow: restore it there, or set tracking.experiment")
    return str(found.experiment_id)


@contextmanager
def answering(uri: str, *, at_the_door: bool = False) -> Iterator[None]:
    """Turn a store that does not answer into UsageError (before work began) or StorageError (in the middle of it)."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        why = error.error_code if isinstance(error, MlflowException) else type(error).__name__
        if why in _CALLERS_MISTAKES:
            raise
        if any(words in str(error) for words in _SQLITE_ON_A_BAD_DISK):
            raise StorageError(
                f"expected room on a working disk for the tracking store {shown_uri(uri)}, found it full or failing; "
                "free some and run the same command again"
            ) from error
        if at_the_door:
            raise UsageError(
                f"expected an MLflow tracking store at {shown_uri(uri)}, found none that answers ({why}): "
                "start it, correct tracking.uri, or leave that out to use the workspace"
            ) from error
        raise StorageError(
            f"the tracking store at {shown_uri(uri)} stopped answering ({why}); "
            "the same command resumes once it is back"
        ) from error


def shown_uri(uri: str) -> str:
    """`uri` as it may be shown: without user, password, query and folders."""
    parts = urlsplit(uri)
    if parts.hostname is None:
        return f"{parts.scheme}:///{Path(parts.path).name}"
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def _knock(uri: str) -> None:
    """One request without MLflow's minutes of retries."""
    from mlflow.tracking._tracking_service.utils import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    endpoint = "/api/2.0/mlflow/experiments/search"
    response = http_request(
        host_creds=get_default_host_creds(uri),
        endpoint=endpoint,
        method="GET",
        params={"max_results": 1},
        max_retries=0,
        timeout=FIRST_ANSWER_SECONDS,
    )
    verify_rest_response(response, endpoint)


def _create_database(uri: str, database: Path) -> None:
    # A store opened without this artifact root would note the current folder as home of the default experiment.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    database.parent.mkdir(parents=True, exist_ok=True)
    SqlAlchemyStore(uri, ARTIFACT_ROOT)


def _make_addresses_known() -> None:
    """Tell MLflow about the workspace's addresses where the package runs without being installed."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry

    _artifact_repository_registry.register(SCHEME, WorkspaceArtifactRepository)
