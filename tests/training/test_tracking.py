"""Against a real SQLite store, made once for all tests of the file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure

from training.config import Budget, classic
from training.tracking import Tracker, register


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def uri(runs: Path) -> Iterator[str]:
    yield f"sqlite:///{runs / 'mlflow.db'}"
    mlflow.end_run()


def test_a_run_holds_what_was_logged(runs: Path, uri: str) -> None:
    config = classic("songs", Budget(steps=5))
    with Tracker.open(uri, runs / "first", None) as tracker:
        tracker.describe(config, {"device": "cpu"})
        tracker.data("songs", "0123")
        tracker.numbers({"loss": 0.5}, step=3)
        tracker.picture("spectrogram", Figure(), step=3)
        tracker.audio({"vocals": np.zeros((2, 4410), np.float32)}, 44_100, step=3)
        (runs / "classic.mar").write_bytes(b"archive")
        tracker.archive(runs / "classic.mar")
    client = mlflow.MlflowClient(uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert run.data.params["batch_size"] == str(config.batches.batch_size) and run.data.params["seed"] == "0"
    assert run.data.tags["device"] == "cpu"
    assert run.data.tags["archive.sha256"] == hashlib.sha256(b"archive").hexdigest()
    assert run.inputs.dataset_inputs[0].dataset.digest == "0123"
    assert [(m.step, m.value) for m in client.get_metric_history(tracker.run_id, "loss")] == [(3, 0.5)]
    for folder, file in (
        ("spectrogram", "step_000003.png"),
        ("audio/step_000003", "vocals.flac"),
        ("archive", "classic.mar"),
    ):
        assert [f.path for f in client.list_artifacts(tracker.run_id, folder)] == [f"{folder}/{file}"]
    assert str(runs / "mlartifacts") in run.info.artifact_uri


def test_a_run_is_continued_and_not_doubled(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "second", None) as first:
        first.numbers({"loss": 1.0}, step=1)
    with Tracker.open(uri, runs / "second", first.run_id) as again:
        again.numbers({"loss": 2.0}, step=2)
    assert again.run_id == first.run_id
    history = mlflow.MlflowClient(uri).get_metric_history(first.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("end", "status"), [(SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_a_run_ends_as_its_block_does(runs: Path, uri: str, end: type[BaseException], status: str) -> None:
    with pytest.raises(end), Tracker.open(uri, runs / "ended", None) as tracker:
        raise end
    assert mlflow.MlflowClient(uri).get_run(tracker.run_id).info.status == status


def test_registered_versions_point_to_the_archive_of_the_run(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "winner", None) as tracker:
        (runs / "classic.mar").write_bytes(b"archive")
        tracker.archive(runs / "classic.mar")
    assert register(uri, tracker.run_id) == "models:/stemwright/1"
    assert register(uri, tracker.run_id) == "models:/stemwright/2"
    version = mlflow.MlflowClient(uri).get_model_version("stemwright", "2")
    assert version.run_id == tracker.run_id and version.source.endswith("/archive")
