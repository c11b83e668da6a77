"""Runs that are stored in MLflow: their list, their histories, scores that come later, and comparisons of several."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from training.tracking.experiment import CHOSEN_BY, EXPERIMENT, NOTE_TAG, find_or_make_experiment
from training.tracking.mlflow_errors import mlflow_errors


@dataclass(frozen=True)
class RunRow:
    """A run as a list shows it."""

    run_id: str
    name: str
    end: str
    usdr_db: float | None
    preset: str
    began_ms: int


@mlflow_errors()
def runs(uri: str) -> list[RunRow]:
    """The runs of the experiment, the best score first."""
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        return []
    rows = []
    for run in client.search_runs([found.experiment_id], max_results=1000):
        data, info = run.data, run.info
        end = data.tags.get("end", info.status.lower())
        score = data.metrics.get(CHOSEN_BY)
        rows.append(RunRow(info.run_id, info.run_name, end, score, data.params.get("preset", ""), info.start_time))
    return sorted(rows, key=lambda row: (row.usdr_db is None, -(row.usdr_db or 0.0)))


@mlflow_errors()
def history(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    """All (step, value) pairs of a metric. A run that the store does not know has none."""
    if run_id is None:
        return []
    try:
        return [(metric.step, metric.value) for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, key)]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


@mlflow_errors()
def log_scores(uri: str, run_id: str, scores: Mapping[str, float]) -> bool:
    """Replace the scores of a run that has ended. Returns False if the store does not know the run."""
    client = mlflow.MlflowClient(uri)
    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    for key, value in scores.items():
        if value == value:  # MLflow would keep a NaN
            client.log_metric(run_id, key, round(value, 3), step=0)
    return True


@mlflow_errors()
def new_comparison(uri: str, title: str, table: str, scores: Mapping[str, Any], report: Path | None) -> str:
    """A finished run of kind `comparison` that holds scores and report; its id."""
    client = mlflow.MlflowClient(uri)
    experiment_id = find_or_make_experiment(client, uri, Path("runs", "comparison"))
    tags = {"kind": "comparison", "end": "completed", NOTE_TAG: f"```\n{table}\n```"}
    run_id: str = client.create_run(experiment_id, tags=tags, run_name=title).info.run_id
    client.log_dict(run_id, dict(scores), "comparison.json")
    if report is not None:
        client.log_artifact(run_id, str(report))
    client.set_terminated(run_id, "FINISHED")
    return run_id
