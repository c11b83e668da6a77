"""The experiment of all runs in MLflow: its description, its saved view Scores, and the link that opens it."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

EXPERIMENT = "stemwright"
DESCRIPTION = """\
Runs of Stemwright, a row each. **[Scores](#/experiments/{id}/runs?{view})** sorts them by the archive that each run made.

| section | holds |
|---|---|
| `best/` | scores of the weights in the archive; `best/usdr_db`, the mean over stems, chose them |
| `valid/` | scores of every validation, by step |
| `test/` | scores on test songs, from `compare --log` |
| `cost/` | what the model and the run took |
| `train/`, `system/` | loss, rates and songs by step; processor, GPU and memory by second |

A run's artifacts: `songs.json` (table mode compares songs of several runs), `listen/` (excerpts beside the true stems),
`archive/`, `config.json`.
"""

VIEW_ID = "scores"
VIEW_QUERY = f"workflowType=machine_learning&viewStateShareKey={VIEW_ID}"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
NOTE_TAG = "mlflow.note.content"

CHOSEN_BY = "best/usdr_db"
COLUMNS = {
    f"metrics.`{CHOSEN_BY}`": 130,
    "metrics.`best/vocals_usdr_db`": 160,
    "metrics.`best/step`": 100,
    "metrics.`cost/real_time_factor`": 180,
    "params.`preset`": 110,
    "params.`learning_rate`": 110,
    "params.`batch_size`": 110,
    "params.`seed`": 80,
    "tags.`end`": 110,
    "metrics.`best/accompaniment_usdr_db`": 220,
}
"""Columns of the view, in their order, and their widths in pixels."""


def find_or_make_experiment(client: mlflow.MlflowClient, uri: str, run_dir: Path) -> str:
    """The id of the experiment; a new one gets its description and its view.

    A store in a file keeps its artifacts beside the file, a server where it is told to.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        return str(experiment.experiment_id)
    beside = (run_dir.resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite") else None
    try:
        made: str = client.create_experiment(EXPERIMENT, artifact_location=beside)
    except MlflowException as error:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:  # another run made it in between
            raise
        return str(experiment.experiment_id)
    client.set_experiment_tag(made, NOTE_TAG, DESCRIPTION.format(id=made, view=VIEW_QUERY))
    client.set_experiment_tag(made, VIEW_TAG, saved_view())
    return made


def scores_link(uri: str, experiment_id: str) -> str:
    """The address of the view, after a command that serves it where the store is a file."""
    fragment = f"#/experiments/{experiment_id}/runs?{VIEW_QUERY}"
    if uri.startswith(("http://", "https://")):
        return f"{uri.rstrip('/')}/{fragment}"
    return f"http://127.0.0.1:5000/{fragment} after `mlflow server --backend-store-uri {uri}`"


def saved_view(created_at_ms: int = 0) -> str:
    """The view Scores as MLflow 3.15 and later store one in a tag: undocumented, so a server may pass over it."""
    state: dict[str, Any] = {
        **{"searchFilter": "", "startTime": "ALL", "lifecycleFilter": "Active"},
        **{"datasetsFilter": [], "modelVersionFilter": "All Runs"},
        **{"orderByKey": f"metrics.`{CHOSEN_BY}`", "orderByAsc": False},
        **{"selectedColumns": [*COLUMNS, "attributes.`Models`"]},
        **{"columnOrder": list(COLUMNS), "columnWidths": COLUMNS},
        **{"runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False, "runListHidden": False},
        **{"isAccordionReordered": False, "useGroupedValuesInCharts": True, "hideEmptyCharts": True},
        **{"groupBy": None, "groupsExpanded": {}},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state, separators=(",", ":")).encode())).decode()
    envelope = {"name": "Scores", "createdAt": created_at_ms, "state": f"deflate;{packed}"}
    return json.dumps(envelope, separators=(",", ":"))
