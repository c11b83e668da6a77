"""A run in a SQLite file is brought to another store."""

from pathlib import Path

import mlflow
import pytest

from tests.stores import new_store
from tests.training.tracking.test_tracking import FACTS
from training.errors import TrackingError
from training.tracking.copying import copy_run, known_run_id
from training.tracking.registry import register
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow


def test_a_copy_holds_what_the_run_holds_and_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    here, there = new_store(tmp_path / "here.db"), new_store(tmp_path / "team" / "there.db")
    with Tracker.open(here, tmp_path / "run", None) as tracker:
        tracker.tag({"device": "cpu"})
        tracker.data("songs", "0" * 64, "training", songs=3, measured=3, seconds=4)
        for step in (1, 2, 3):
            tracker.numbers({"train/loss": float(step)}, step)
        tracker.facts("config.json", {"a": 1})
        (tmp_path / "classic.mar").write_bytes(b"archive")
        tracker.archive(tmp_path / "classic.mar", FACTS)
    run_id = known_run_id(tmp_path / "run")
    copied = copy_run(here, run_id, there)
    assert copy_run(here, run_id, there) == copied
    source, target = mlflow.MlflowClient(here).get_run(run_id), mlflow.MlflowClient(there).get_run(copied)
    assert target.data.metrics == source.data.metrics and target.data.tags["device"] == "cpu"
    assert target.info.run_name == "run" and target.info.status == "FINISHED"
    assert (target.info.start_time, target.info.end_time) == (source.info.start_time, source.info.end_time)
    history = mlflow.MlflowClient(there).get_metric_history(copied, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert {file.path for file in mlflow.MlflowClient(there).list_artifacts(copied)} == {"archive", "config.json"}
    assert target.inputs.dataset_inputs[0].dataset.name == "songs training"
    assert register(there, copied) == "models:/stemwright-2stems/1"


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="holds no run that MLflow knows"):
        known_run_id(tmp_path)
