"""Runs in MLflow: one per pipeline run, one nested in it per stage.

MLflow's fluent functions add the user's name, the path of the program and the address of the git repository to every
run, and keep the active run in a global. The client used here adds nothing that is not listed below.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from medsynth import __version__
from medsynth.config.evidence import Tracking
from medsynth.errors import InterruptedRun, StorageError
from medsynth.tracking.quiet import mlflow
from medsynth.tracking.scrub import bytes_without_paths, without_paths
from medsynth.tracking.store import answering, experiment_id, open_client, tracking_uri
from medsynth.tracking.tracker import Tracker

LONGEST_PARAM = 6000
BATCH = 100
"""MLflow takes at most 100 parameters or tags in one request."""
_DIGEST_LENGTH = 36
_TEXT = {".csv", ".html", ".json", ".jsonl", ".log", ".md", ".svg", ".txt", ".yaml", ".yml"}


@contextmanager
def open_tracker(settings: Tracking, workspace: Path, name: str) -> Iterator[Tracker]:
    """Record a pipeline run called `name` until the block ends; it ends as finished, failed or killed.

    Without `settings.uri` the store is `<workspace>/mlflow.db` and artifacts lie in `<workspace>/artifacts`.
    Raises UsageError where no store answers at the door, StorageError where it stops answering later.
    """
    uri = tracking_uri(settings, workspace)
    client = open_client(uri)
    with answering(uri):
        experiment = experiment_id(client, uri, settings.experiment or name, workspace)
        if settings.uri is None:
            _end_abandoned(client, experiment)
    root = _Run(client, uri, experiment, workspace.absolute(), settings.system_metrics)
    with root.opened(name, parent=None) as run:
        yield run


class _Run:
    """One MLflow run, and how to open another inside it."""

    def __init__(
        self, client: Any, uri: str, experiment: str, workspace: Path, system_metrics: bool, run_id: str | None = None
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._uri = uri
        self._experiment = experiment
        self._workspace = workspace
        self._system_metrics = system_metrics

    @contextmanager
    def opened(self, name: str, parent: str | None) -> Iterator[_Run]:
        """A new run; what the block raises decides how it ends."""
        tags = {
            "mlflow.source.name": "medsynth",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": "medsynth",
            "medsynth.version": __version__,
            **({"mlflow.parentRunId": parent} if parent else {}),
        }
        with answering(self._uri):
            created = self._client.create_run(self._experiment, tags=tags, run_name=name)
        run_id = created.info.run_id
        run = _Run(self._client, self._uri, self._experiment, self._workspace, self._system_metrics, run_id)
        try:
            yield run
        except BaseException as error:
            killed = isinstance(error, KeyboardInterrupt | GeneratorExit) or type(error) is InterruptedRun
            with suppress(StorageError):  # what ended the block is what is reported, not a store that fails as well
                run.tags({"medsynth.ended_by": type(error).__name__})  # never the message: it may hold a path
                run._end("KILLED" if killed else "FAILED")
            raise
        run._end("FINISHED")

    @contextmanager
    def stage(self, name: str) -> Iterator[Tracker]:
        """A nested run, with the machine's figures beside it where the settings ask for them."""
        with self.opened(name, parent=self.run_id) as run, run._watched():
            run.tags({"medsynth.stage": name})
            yield run

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings flattened by dots; a value longer than MLflow keeps goes into an artifact beside its digest."""
        flat: dict[str, str] = {}
        for key, value in flatten(without_paths(values, self._workspace)).items():
            flat[key] = self._kept(key, value)
        entries = [mlflow.entities.Param(key, value) for key, value in flat.items()]
        for batch in _batches(entries):
            with answering(self._uri):
                self._client.log_batch(self.run_id, params=batch)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures; one that is not finite is left to the caller's own checks and kept out of the store."""
        now = int(time.time() * 1000)
        entries = [
            mlflow.entities.Metric(key, float(value), now, step or 0)
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for batch in _batches(entries):
            with answering(self._uri):
                self._client.log_batch(self.run_id, metrics=batch)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file or folder; copies of text name no folder of this machine."""
        with tempfile.TemporaryDirectory() as temporary:
            for source in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if not source.is_file():
                    continue
                inside = source.relative_to(path.parent).parent.as_posix() if path.is_dir() else "."
                where = "/".join(part for part in (folder, inside) if part not in ("", "."))
                with answering(self._uri):
                    self._client.log_artifact(self.run_id, self._clean_copy(source, Path(temporary)), where or None)

    def tags(self, values: Mapping[str, str]) -> None:
        """Label the run."""
        clean = without_paths(values, self._workspace)
        entries = [mlflow.entities.RunTag(key, str(value)) for key, value in clean.items()]
        for batch in _batches(entries):
            with answering(self._uri):
                self._client.log_batch(self.run_id, tags=batch)

    def dataset(self, name: str, digest: str) -> None:
        """Record the data that went in: its name and digest, and no address of it."""
        entry = mlflow.entities.Dataset(
            name=name,
            digest=digest[:_DIGEST_LENGTH],
            source_type="medsynth-manifest",
            source=json.dumps({"sha256": digest}),
        )
        tag = mlflow.entities.InputTag("mlflow.data.context", "input")
        with answering(self._uri):
            self._client.log_inputs(self.run_id, datasets=[mlflow.entities.DatasetInput(entry, [tag])])

    def _end(self, status: str) -> None:
        with answering(self._uri):
            self._client.set_terminated(self.run_id, status)

    def _kept(self, key: str, value: str) -> str:
        if len(value) <= LONGEST_PARAM:
            return value
        digest = hashlib.sha256(value.encode()).hexdigest()
        file = f"params/{key}.txt"
        with answering(self._uri):
            self._client.log_text(self.run_id, value, file)
        return f"{len(value)} characters, sha256 {digest}, in artifact {file}"

    def _clean_copy(self, source: Path, temporary: Path) -> str:
        """The file itself, or where it is text a copy without this machine's paths."""
        suffix = source.suffix.lower()
        if suffix not in _TEXT:
            return str(source)
        copy = temporary / source.name
        if suffix == ".json":
            content = json.loads(source.read_text(encoding="utf-8"))
            copy.write_text(json.dumps(without_paths(content, self._workspace), indent=2), encoding="utf-8")
        elif suffix in (".yaml", ".yml"):
            content = yaml.safe_load(source.read_text(encoding="utf-8"))
            copy.write_text(yaml.safe_dump(without_paths(content, self._workspace), sort_keys=False), encoding="utf-8")
        else:
            copy.write_bytes(bytes_without_paths(source.read_bytes(), self._workspace))
        return str(copy)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Processor, memory, disk, network and GPU figures while the block runs."""
        if not self._system_metrics:
            yield
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self._uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text; what is not text is written as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _end_abandoned(client: Any, experiment: str) -> None:
    """End what a killed process left running; only in a workspace's own store, which one process holds at a time."""
    for run in client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'"):
        client.set_terminated(run.info.run_id, "KILLED")


def _batches(entries: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(entries), BATCH):
        yield entries[start : start + BATCH]
