"""A run as MLflow stores it: the receiver of what the spool holds.

Every operation arrives once. The numbers of a key have rising steps, and those up to the last step that MLflow holds are
not sent again. All other operations may come twice without harm. This holds for whoever goes on with the run, on this
machine or, by its id, on another.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from PIL import Image

from training.errors import TrackingError
from training.progress import say
from training.tracking.experiment import find_or_make_experiment
from training.tracking.mlflow_errors import bound_requests, innermost
from training.tracking.registry import dataset_digest, dataset_name, log_model
from training.tracking.spool import Operation

SPOOL_TAG = "stemwright.spool"
DATA_CONTEXT = "mlflow.data.context"
TABLES_TAG = "mlflow.loggedArtifacts"
BATCH_METRICS = 1000  # MLflow takes no more at once


@dataclass(frozen=True)
class Continued:
    """The run that a run folder goes on with: its id in MLflow, None for a new one, and the step it has come to."""

    run_id: str | None = None
    step: int = 0


@dataclass(frozen=True)
class ArchiveFacts:
    """Facts of a model archive for whoever chooses one: its stems, where it comes from, its scores by name."""

    preset: str
    stems: tuple[str, ...]
    step: int
    licence: str
    data: str
    data_digest: str
    scores: Mapping[str, float]


class StoredRun:
    """The run in MLflow, made on first contact.

    Where MLflow does not know the run that is to go on, as on a machine without the old store, a new run goes on in its
    place, with the tags `continues.run` and `continues.step`.
    """

    def __init__(self, uri: str, run_dir: Path, origin: Continued) -> None:
        self._uri = uri
        self._run_dir = run_dir
        facts = kept_facts(run_dir)
        self.run_id: str | None = facts.get("run_id") or origin.run_id
        self.experiment_id: str | None = None
        self._step = origin.step
        self._spool_id: str = facts.get("spool_id", uuid.uuid4().hex)
        self._began_ms: int = facts.get("began_ms", now_ms())
        self._save_facts()
        self._contact: Contact | None = None

    def send(self, operations: list[Operation]) -> None:
        """Send operations in order; numbers that follow each other go together. Raises TrackingError."""
        try:
            if self._contact is None:
                self._contact = self._connect()
            self._contact.send(operations)
        except Exception as error:  # MLflow's stores, drivers and plug-ins raise what they like
            self._contact = None  # the next attempt asks again what has arrived
            raise TrackingError(f"{type(error).__name__}, {innermost(error)}") from error

    def _connect(self) -> "Contact":
        bound_requests()
        client = mlflow.MlflowClient(self._uri)
        known = self.run_id if self.run_id is not None and is_known(client, self.run_id) else None
        run_id = known or self._find(client) or self._make(client)
        if run_id != self.run_id:
            self.run_id = run_id
            self._save_facts()
        contact = Contact(client, run_id, self._run_dir / "spool")
        self.experiment_id = contact.experiment_id
        return contact

    def _find(self, client: mlflow.MlflowClient) -> str | None:
        """The run of this spool, where MLflow made it and its answer was lost."""
        experiment_id = find_or_make_experiment(client, self._uri, self._run_dir)
        runs = client.search_runs([experiment_id], f"tags.`{SPOOL_TAG}` = '{self._spool_id}'")
        return runs[0].info.run_id if runs else None

    def _make(self, client: mlflow.MlflowClient) -> str:
        tags = {SPOOL_TAG: self._spool_id}
        if self.run_id is not None:
            say(f"MLflow does not know run {self.run_id}: a new one goes on from step {self._step}")
            tags |= {"continues.run": self.run_id, "continues.step": str(self._step)}
        experiment_id = find_or_make_experiment(client, self._uri, self._run_dir)
        name = self._run_dir.resolve().name
        run_id: str = client.create_run(experiment_id, self._began_ms, resolve_tags(tags), name).info.run_id
        return run_id

    def _save_facts(self) -> None:
        facts = {"run_id": self.run_id, "spool_id": self._spool_id, "began_ms": self._began_ms}
        path = facts_path(self._run_dir)
        partial = path.with_name(".run.json.partial")
        partial.write_text(json.dumps(facts))
        partial.replace(path)


def run_id_in(run_dir: Path) -> str | None:
    """The id in MLflow of the run in a folder; None where MLflow does not know it yet."""
    run_id: str | None = kept_facts(run_dir).get("run_id")
    return run_id


def kept_facts(run_dir: Path) -> dict[str, Any]:
    path = facts_path(run_dir)
    return json.loads(path.read_text()) if path.exists() else {}


def facts_path(run_dir: Path) -> Path:
    return run_dir / "spool" / "run.json"


class Contact:
    """A run that MLflow has answered for, and what MLflow held of it then."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, spool_folder: Path) -> None:
        self._client = client
        self._run_id = run_id
        self._spool_folder = spool_folder
        run = client.get_run(run_id)
        self.experiment_id: str = run.info.experiment_id
        self._began_ms: int = run.info.start_time
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self._stored_keys = set(run.data.metrics)
        self._last_steps: dict[str, int] = {}

    def send(self, operations: list[Operation]) -> None:
        metrics: list[Metric] = []
        for operation in operations:
            if operation["op"] == "numbers":
                metrics += self._new_metrics(operation)
            elif operation["op"] == "summary":
                # Of the values at one step MLflow shows the latest: this replaces what was shown.
                metrics += [Metric(key, value, operation["time_ms"], 0) for key, value in operation["values"].items()]
            else:
                self._send_metrics(metrics)
                metrics = []
                with refusals_said(operation["op"]):
                    self._send_one(operation)
        self._send_metrics(metrics)

    def _new_metrics(self, operation: Operation) -> list[Metric]:
        """The numbers that MLflow does not hold. Without a step, the step is the seconds since the run began."""
        time_ms = operation["time_ms"]
        step = operation["step"] if operation["step"] is not None else (time_ms - self._began_ms) // 1000
        metrics = []
        for key, value in operation["values"].items():
            if key not in self._last_steps:
                history = self._client.get_metric_history(self._run_id, key) if key in self._stored_keys else []
                self._last_steps[key] = max((metric.step for metric in history), default=-1)
            if step > self._last_steps[key]:
                self._last_steps[key] = step
                metrics.append(Metric(key, value, time_ms, step))
        return metrics

    def _send_metrics(self, metrics: list[Metric]) -> None:
        for first in range(0, len(metrics), BATCH_METRICS):
            with refusals_said("numbers"):
                self._client.log_batch(self._run_id, metrics=metrics[first : first + BATCH_METRICS])

    def _send_one(self, operation: Operation) -> None:
        match operation:
            case {"op": "begin"}:
                self._client.update_run(self._run_id, status="RUNNING")
                for tag in {"end", "error"} & self._tags.keys():  # of the time before
                    self._client.delete_tag(self._run_id, tag)
                    del self._tags[tag]
            case {"op": "params", "params": params}:
                self._send_params(params)
            case {"op": "tags", "tags": tags}:
                self._send_tags(tags)
            case {"op": "data", "split": split}:
                inputs = [DatasetInput(dataset(operation), [InputTag(DATA_CONTEXT, split)])]
                self._client.log_inputs(self._run_id, inputs)
            case {"op": "file" | "table" | "picture" | "model", "path": path}:
                local = self._spool_folder / path
                if local.exists():  # else it has arrived, and the operations behind it have not
                    self._send_file(local, operation)
                    shutil.rmtree(local.parent)
            case {"op": "end", "status": status, "time_ms": time_ms}:
                self._client.set_terminated(self._run_id, status, time_ms)

    def _send_params(self, params: dict[str, str]) -> None:
        """Send new parameters. MLflow keeps the first value of each: a later one becomes the tag `resume.<name>`."""
        new = [Param(name, value) for name, value in params.items() if name not in self._params]
        changed = {
            f"resume.{name}": value
            for name, value in params.items()
            if self._params.get(name, value) != value or f"resume.{name}" in self._tags
        }
        self._client.log_batch(self._run_id, params=new)
        self._params |= {param.key: param.value for param in new}
        self._send_tags(changed)

    def _send_tags(self, tags: dict[str, str]) -> None:
        self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in tags.items()])
        self._tags |= tags

    def _send_file(self, local: Path, operation: Operation) -> None:
        match operation:
            case {"op": "file", "folder": folder}:
                self._client.log_artifact(self._run_id, str(local), folder)
            case {"op": "table"}:  # `log_table` would add the rows to those of the table that is there
                self._client.log_artifact(self._run_id, str(local))
                self._send_tags({TABLES_TAG: json.dumps([{"path": local.name, "type": "table"}])})
            case {"op": "picture", "key": key, "number": number, "time_ms": time_ms}:
                with Image.open(local) as image:
                    self._client.log_image(self._run_id, image, None, key, number, time_ms, synchronous=True)
            case {"op": "model"}:
                log_model(self._client, self._run_id, local, operation)


def dataset(facts: dict[str, Any]) -> Dataset:
    """A data set as the page of a run shows it: name, digest, address, number of songs and seconds."""
    source = facts["source"]
    kind, address = ("s3", source) if source.startswith("s3://") else ("local", source)
    name, digest = dataset_name(source, facts["split"]), dataset_digest(facts["digest"])
    return Dataset(name, digest, kind, json.dumps({"uri": address}), profile=json.dumps(facts["profile"]))


def is_known(client: mlflow.MlflowClient, run_id: str) -> bool:
    """True for a run that the store holds and that nobody has deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False


@contextmanager
def refusals_said(what: str) -> Iterator[None]:
    """Go on without an operation that MLflow refuses, since it would refuse it every time."""
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() != 400:
            raise
        say(f"MLflow refuses reports of this run ({what}), it goes on without them: {error.message}")


def now_ms() -> int:
    return time.time_ns() // 1_000_000
