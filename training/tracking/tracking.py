"""Runs in MLflow; the only file of the training package that names it.

What a run reports goes into a spool in its folder and from there to MLflow in the background, so that a tracking server
that is slow, hangs or is gone, from the start or later, neither slows nor stops training. All of it arrives once: the
numbers of a key come with rising steps, and those up to the last step that MLflow holds are not sent again; the rest
may come twice without harm. That holds for whoever goes on with the run, on this machine or, with its id, on another.
"""

import hashlib
import json
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.tracking.context.registry import resolve_tags

from serving.audio import Audio
from serving.audio.audio_io import write
from training.config import TrainConfig, leaves
from training.errors import TrackingError
from training.progress import say
from training.tracking.spool import Operation, Sender, Spool, send_all

EXPERIMENT = "stemwright"
SPOOL_TAG = "stemwright.spool"
DATA_CONTEXT = "mlflow.data.context"
START_S = 20.0
END_S = 30.0
END_AFTER_INTERRUPT_S = 2.0
REQUEST_TIMEOUT_S = 30
SYSTEM_INTERVAL_S = 10.0
BATCH_METRICS = 1000  # what MLflow takes at once


class Tracker:
    """One run. Whatever is reported is on disk when a call returns, and sent in the background, in order."""

    def __init__(self, uri: str, run_dir: Path, run_id: str | None) -> None:
        self._spool = Spool(run_dir / "spool")
        self._run = StoredRun(uri, run_dir, run_id)
        self._spool.append({"op": "begin"})
        self._sender = Sender(self._spool, self._run.send, f"MLflow at {without_password(uri)}")
        self._closing = threading.Event()
        self._gauges = threading.Thread(target=self._watch_system, name="system metrics", daemon=True)
        self._gauges.start()
        self._run_dir = run_dir

    @classmethod
    @contextmanager
    def open(cls, uri: str, run_dir: Path, run_id: str | None) -> Iterator[Self]:
        """A new run named after its folder, or the run `run_id`, or the one that the folder's spool is of, continued.

        Waits some seconds for MLflow to answer, then goes on without. The run ends with the block, whatever way that
        ends, unless `close` was called in it. Raises TrackingError where the run folder cannot be written.
        """
        tracker = cls(uri, run_dir, run_id)
        status, timeout_s = "FAILED", END_S
        try:
            if not tracker._sender.tried(START_S):
                late = f"MLflow at {without_password(uri)} does not answer yet"
                say(f"{late}: training goes on, {run_dir}/spool keeps what it reports")
            yield tracker
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status, timeout_s = "KILLED", END_AFTER_INTERRUPT_S
            raise
        finally:
            tracker.close(status, timeout_s)

    @property
    def run_id(self) -> str | None:
        """The id of the run in MLflow, None until MLflow has answered for the first time."""
        return self._run.run_id

    def describe(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Log the configuration, as parameters and whole, and facts such as device, commit and data digest as tags.

        Parameters keep their first value: a run that is continued logs only new ones.
        """
        params = {name: str(value) for name, value in leaves(config)}
        self._spool.append({"op": "describe", "params": params, "tags": {k: str(v) for k, v in facts.items()}})
        self.facts("config.json", config.to_json())

    def facts(self, name: str, content: Any) -> None:
        """Log what JSON holds as a file."""
        path = self._spool.new_file(name)
        path.write_text(json.dumps(content, indent=2))
        self._send_file(path)

    def data(self, source: str, digest: str) -> None:
        """Log the data set the run trains on."""
        name = source.rstrip("/").rsplit("/", 1)[-1]
        self._spool.append({"op": "data", "source": source, "name": name, "digest": digest})

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of a step. The steps of one name rise: one that was logged before is not logged again."""
        self._spool.append({"op": "numbers", "values": dict(values), "step": step, "time_ms": now_ms()})

    def picture(self, name: str, figure: Figure, step: int) -> None:
        path = self._spool.new_file(f"step_{step:06d}.png")
        figure.savefig(path)
        self._send_file(path, name)

    def audio(self, stems: Mapping[str, Audio], rate_hz: int, step: int) -> None:
        """Log short excerpts (c, n) as FLAC, which the MLflow page plays."""
        for stem, excerpt in stems.items():
            path = self._spool.new_file(f"{stem}.flac")
            write(path, excerpt, rate_hz)
            self._send_file(path, f"audio/step_{step:06d}")

    def archive(self, path: Path) -> None:
        """Log the model archive and its sha256."""
        copy = self._spool.new_file(path.name)
        shutil.copyfile(path, copy)
        self._send_file(copy, "archive")
        digest = hashlib.sha256(copy.read_bytes()).hexdigest()
        self._spool.append({"op": "describe", "params": {}, "tags": {"archive.sha256": digest}})

    def close(self, status: str, timeout_s: float = END_S) -> None:
        """End the run as FINISHED, FAILED or KILLED and wait for all reports to be sent, `timeout_s` at most.

        What could not be sent stays in the spool, and is sent by `sync` or when the run goes on. Only the first call counts.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        self._gauges.join(1)
        self._spool.append({"op": "end", "status": status, "time_ms": now_ms()})
        if not self._sender.close(timeout_s):
            remedy = f"python -m training sync --run-dir {self._run_dir}, or --resume"
            say(f"MLflow did not get everything, {self._spool.folder} keeps the rest: send it with {remedy}")

    def _send_file(self, path: Path, folder: str | None = None) -> None:
        self._spool.append({"op": "file", "path": str(path.relative_to(self._spool.folder)), "folder": folder})

    def _watch_system(self) -> None:
        """Log what MLflow's own monitor does, under the same names; that one ends for good when a request fails."""
        gauges = system_gauges()
        while not self._closing.wait(SYSTEM_INTERVAL_S):
            values: dict[str, float] = {}
            for gauge in gauges:
                gauge.collect_metrics()
                values |= {f"system/{name}": value for name, value in gauge.aggregate_metrics().items()}
                gauge.clear_metrics()
            self._spool.append({"op": "numbers", "values": values, "step": None, "time_ms": now_ms()})


class StoredRun:
    """The run as MLflow stores it, made on first contact: the receiver of what the spool holds."""

    def __init__(self, uri: str, run_dir: Path, run_id: str | None) -> None:
        self._uri = uri
        self._run_dir = run_dir
        self._facts = run_dir / "spool" / "run.json"
        facts = json.loads(self._facts.read_text()) if self._facts.exists() else {}
        self.run_id: str | None = facts.get("run_id") or run_id
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
        if self.run_id is None:
            self.run_id = self._find(client) or self._make(client)
            self._save_facts()
        return Contact(client, self.run_id, self._run_dir / "spool")

    def _find(self, client: mlflow.MlflowClient) -> str | None:
        """The run of this spool, where MLflow made it and its answer was lost."""
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return None
        runs = client.search_runs([experiment.experiment_id], f"tags.`{SPOOL_TAG}` = '{self._spool_id}'")
        return runs[0].info.run_id if runs else None

    def _make(self, client: mlflow.MlflowClient) -> str:
        tags = resolve_tags({SPOOL_TAG: self._spool_id})
        experiment_id = find_or_make_experiment(client, self._uri, self._run_dir)
        name = self._run_dir.resolve().name
        run_id: str = client.create_run(experiment_id, self._began_ms, tags, name).info.run_id
        return run_id

    def _save_facts(self) -> None:
        facts = {"run_id": self.run_id, "spool_id": self._spool_id, "began_ms": self._began_ms}
        partial = self._facts.with_name(".run.json.partial")
        partial.write_text(json.dumps(facts))
        partial.replace(self._facts)


class Contact:
    """A run that MLflow has answered for, and what was known then to be stored of it."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, spool_folder: Path) -> None:
        self._client = client
        self._run_id = run_id
        self._spool_folder = spool_folder
        run = client.get_run(run_id)
        self._began_ms: int = run.info.start_time
        self._stored_params = set(run.data.params)
        self._stored_keys = set(run.data.metrics)
        self._last_steps: dict[str, int] = {}

    def send(self, operations: list[Operation]) -> None:
        metrics: list[Metric] = []
        for operation in operations:
            if operation["op"] == "numbers":
                metrics += self._new_metrics(operation)
            else:
                self._send_metrics(metrics)
                metrics = []
                with refusals_said(operation["op"]):
                    self._send_one(operation)
        self._send_metrics(metrics)

    def _new_metrics(self, operation: Operation) -> list[Metric]:
        """Those of the numbers that are not stored. What has no step counts the seconds since the run began."""
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
            case {"op": "describe", "params": params, "tags": tags}:
                new = [Param(key, value) for key, value in params.items() if key not in self._stored_params]
                self._client.log_batch(self._run_id, params=new, tags=[RunTag(*tag) for tag in tags.items()])
            case {"op": "data", "source": source, "name": name, "digest": digest}:
                # MLflow's store takes no longer digest.
                dataset = Dataset(name, digest[:36], "code", json.dumps({"tags": {"data": source}}))
                self._client.log_inputs(self._run_id, [DatasetInput(dataset, [InputTag(DATA_CONTEXT, "training")])])
            case {"op": "file", "path": path, "folder": folder}:
                local = self._spool_folder / path
                if local.exists():  # else it has arrived, and what followed it has not
                    self._client.log_artifact(self._run_id, str(local), folder)
                    shutil.rmtree(local.parent)
            case {"op": "end", "status": status, "time_ms": time_ms}:
                self._client.set_terminated(self._run_id, status, time_ms)


def find_or_make_experiment(client: mlflow.MlflowClient, uri: str, run_dir: Path) -> str:
    """The id of the experiment. A store in a file keeps its artifacts beside it, a server where it likes."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        beside = (run_dir.resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
        try:
            return client.create_experiment(EXPERIMENT, artifact_location=beside)
        except MlflowException as error:
            experiment = client.get_experiment_by_name(EXPERIMENT)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:  # made by another run in between
                raise
    return experiment.experiment_id


@contextmanager
def refusals_said(what: str) -> Iterator[None]:
    """Go on without what MLflow will not take, however often it is sent."""
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() != 400:
            raise
        say(f"MLflow refuses reports of this run ({what}), it goes on without them: {error.message}")


def sync(uri: str, run_dir: Path) -> int:
    """Send what the spool of a run that has ended still holds; the number of reports. Raises TrackingError."""
    if not (run_dir / "spool").is_dir():
        raise TrackingError(f"{run_dir} holds no reports of a run: name the --run-dir of one")
    return send_all(Spool(run_dir / "spool"), StoredRun(uri, run_dir, None).send)


def bound_requests() -> None:
    """Give up on a request soon, where the user has not set how soon: the sender tries again, and sooner than MLflow,
    which would wait up to a quarter of an hour for one answer."""
    for setting, value in ((MLFLOW_HTTP_REQUEST_MAX_RETRIES, 0), (MLFLOW_HTTP_REQUEST_TIMEOUT, REQUEST_TIMEOUT_S)):
        if not setting.is_set():
            setting.set(value)


def system_gauges() -> list[BaseMetricsMonitor]:
    gauges: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with suppress(ImportError, RuntimeError):  # what it raises where there is no NVIDIA GPU
        gauges.append(GPUMonitor())
    return gauges


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def innermost(error: BaseException) -> str:
    """What the first of the exceptions said that led to this one; the later ones wrap it in pages."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return without_password(str(error).partition("\n")[0])


def without_password(text: str) -> str:
    """The text with the user and password of a URL masked."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)
