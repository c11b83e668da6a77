"""A run of one store copied to another: from the SQLite file of a laptop to the server of the team."""

import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Param, Run, RunTag

from training.errors import TrackingError
from training.tracking.experiment import find_or_make_experiment
from training.tracking.mlflow_errors import mlflow_errors
from training.tracking.registry import log_model, logged_models
from training.tracking.stored_run import run_id_in

COPY_TAG = "copied.from"
BATCH = 1000  # MLflow takes no more metrics at once


def known_run_id(run_dir: Path) -> str:
    """The id of the run in a folder. Raises TrackingError where MLflow does not know it yet."""
    run_id = run_id_in(run_dir)
    if run_id is None:
        raise TrackingError(f"{run_dir} holds no run that MLflow knows: name the --run-dir of one")
    return run_id


@mlflow_errors()
def copy_run(from_uri: str, run_id: str, to_uri: str) -> str:
    """Copy a run with its metrics, data sets, files and models, unless it was copied before. Returns its id there.

    Raises TrackingError where a store does not answer.
    """
    source, target = mlflow.MlflowClient(from_uri), mlflow.MlflowClient(to_uri)
    experiment_id = find_or_make_experiment(target, to_uri, Path("runs", "copy"))
    copies = target.search_runs([experiment_id], f"tags.`{COPY_TAG}` = '{run_id}' and attributes.status != 'RUNNING'")
    if copies:
        return str(copies[0].info.run_id)
    run = source.get_run(run_id)
    tags = {**run.data.tags, COPY_TAG: run_id}
    made: str = target.create_run(experiment_id, run.info.start_time, tags, run.info.run_name).info.run_id
    copy_numbers(source, run, target, made)
    if run.inputs is not None and run.inputs.dataset_inputs:
        target.log_inputs(made, run.inputs.dataset_inputs)
    with tempfile.TemporaryDirectory() as folder:
        source.download_artifacts(run_id, "", folder)
        target.log_artifacts(made, folder)
        for model in logged_models(source, run.info.experiment_id, run_id):
            (archive,) = Path(folder, "archive").glob("*.mar")
            log_model(target, made, archive, logged_facts(model))
    target.set_terminated(made, run.info.status, run.info.end_time)
    return made


def copy_numbers(source: mlflow.MlflowClient, run: Run, target: mlflow.MlflowClient, made: str) -> None:
    target.log_batch(made, params=[Param(*param) for param in run.data.params.items()])
    target.log_batch(made, tags=[RunTag(*tag) for tag in run.data.tags.items()])
    for key in run.data.metrics:
        history = source.get_metric_history(run.info.run_id, key)
        for first in range(0, len(history), BATCH):
            target.log_batch(made, metrics=history[first : first + BATCH])


def logged_facts(model: Any) -> dict[str, Any]:
    """The facts of a logged model, as `log_model` takes them."""
    metrics = model.metrics or []
    name, _, _ = (metrics[0].dataset_name if metrics else "").rpartition(" ")
    return {
        "preset": model.params["preset"],
        "stems": model.tags["stems"].split(", "),
        "step": int(model.params["step"]),
        "licence": model.tags["licence"],
        "sha256": model.tags["archive.sha256"],
        "data": name,
        "data_digest": metrics[0].dataset_digest if metrics else "",
        "scores": {metric.key: metric.value for metric in metrics},
    }
