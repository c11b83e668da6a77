"""A try of an MLflow store, before something depends on it."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from training.errors import TrackingError
from training.tracking.experiment import find_or_make_experiment
from training.tracking.mlflow_errors import bound_requests, innermost, without_password

SQLITE = "sqlite:///"
TRIED_TAG = "stemwright.tried"


def probe_store(uri: str, run_dir: Path) -> None:
    """Read from an MLflow store and write to it: the experiment of the runs, made where it is missing, gets a tag.

    `run_dir` is the folder of a run; a store in a file keeps its artifacts beside it. Raises TrackingError.
    """
    bound_requests()
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # else a new store tells which tables it makes
    try:
        if uri.startswith(SQLITE):  # MLflow itself tries for 100 s to open a file that cannot be opened
            path = Path(uri.removeprefix(SQLITE))
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path)) as store:
                store.execute("PRAGMA schema_version")
        client = mlflow.MlflowClient(uri)
        experiment_id = find_or_make_experiment(client, uri, run_dir)
        client.set_experiment_tag(experiment_id, TRIED_TAG, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        where = without_password(uri)
        raise TrackingError(
            f"MLflow at {where} takes no runs ({innermost(error)}): check MLFLOW_TRACKING_URI"
        ) from error
