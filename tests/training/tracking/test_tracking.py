"""Against a real SQLite store, made once for all tests of the file, and a real MLflow server over it."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.gate import Gate, gate_to
from training.config import Budget, classic
from training.demo.local_s3 import free_port
from training.errors import TrackingError
from training.tracking import spool, tracking
from training.tracking.registry import register
from training.tracking.tracking import Tracker, sync


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def uri(runs: Path) -> str:
    return f"sqlite:///{runs / 'mlflow.db'}"


def history(uri: str, run_id: str | None, key: str = "loss") -> list[tuple[int, float]]:
    """(step, value) of everything that the store holds of a number."""
    assert run_id is not None
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, key)]


def files(uri: str, run_id: str | None, folder: str) -> list[str]:
    assert run_id is not None
    return [file.path for file in mlflow.MlflowClient(uri).list_artifacts(run_id, folder)]


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
    assert tracker.run_id is not None
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert run.data.params["batch_size"] == str(config.batches.batch_size) and run.data.params["seed"] == "0"
    assert run.data.tags["device"] == "cpu"
    assert run.data.tags["archive.sha256"] == hashlib.sha256(b"archive").hexdigest()
    assert run.inputs.dataset_inputs[0].dataset.digest == "0123"
    assert history(uri, tracker.run_id) == [(3, 0.5)]
    for folder, file in (
        ("spectrogram", "step_000003.png"),
        ("audio/step_000003", "vocals.flac"),
        ("archive", "classic.mar"),
    ):
        assert files(uri, tracker.run_id, folder) == [f"{folder}/{file}"]
    assert str(runs / "mlartifacts") in run.info.artifact_uri
    assert list((runs / "first" / "spool" / "files").iterdir()) == [], "what was sent takes no room"


def test_numbers_keep_the_time_at_which_they_were_logged(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "timed", None) as tracker:
        before_ms = time.time_ns() // 1_000_000
        tracker.numbers({"loss": 1.0}, step=1)
        after_ms = time.time_ns() // 1_000_000
        time.sleep(0.1)
    assert tracker.run_id is not None
    (metric,) = mlflow.MlflowClient(uri).get_metric_history(tracker.run_id, "loss")
    assert before_ms <= metric.timestamp <= after_ms


@pytest.mark.parametrize("machine", ["same", "other"])
def test_a_run_is_continued_and_no_step_doubled(runs: Path, uri: str, machine: str) -> None:
    config = classic("songs", Budget(steps=5))
    with Tracker.open(uri, runs / machine, None) as first:
        first.describe(config, {})
        for step in (1, 2, 3):
            first.numbers({"loss": float(step)}, step)
    folder = runs / machine if machine == "same" else runs / "elsewhere" / machine
    with Tracker.open(uri, folder, None if machine == "same" else first.run_id) as again:
        again.describe(classic("songs", Budget(steps=9)), {})
        for step in (2, 3, 4):
            again.numbers({"loss": float(step)}, step)
    assert again.run_id == first.run_id
    assert history(uri, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    run = mlflow.MlflowClient(uri).get_run(first.run_id or "")
    assert run.info.status == "FINISHED" and run.data.params["steps"] == "5"


@pytest.mark.parametrize(
    ("end", "status"), [(SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_a_run_ends_as_its_block_does(runs: Path, uri: str, end: type[BaseException], status: str) -> None:
    with pytest.raises(end), Tracker.open(uri, runs / "ended", None) as tracker:
        raise end
    assert mlflow.MlflowClient(uri).get_run(tracker.run_id or "").info.status == status


def test_the_first_end_counts(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "stopped", None) as tracker:
        tracker.close("KILLED")
    assert mlflow.MlflowClient(uri).get_run(tracker.run_id or "").info.status == "KILLED"


def test_the_machine_is_watched(runs: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_INTERVAL_S", 0.3)
    with Tracker.open(uri, runs / "watched", None) as tracker:
        time.sleep(1.5)
    steps = [step for step, _ in history(uri, tracker.run_id, "system/cpu_utilization_percentage")]
    assert steps == sorted(set(steps)) and len(steps) >= 2
    assert 0 < history(uri, tracker.run_id, "system/system_memory_usage_percentage")[0][1] < 100


def test_what_mlflow_will_never_take_is_said_and_does_not_block_the_rest(
    runs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(uri, runs / "refused", None) as tracker:
        tracker.numbers({"no such name!": 1.0}, step=1)
        tracker.picture("spectrogram", Figure(), step=1)
        tracker.numbers({"loss": 1.0}, step=2)
    assert history(uri, tracker.run_id) == [(2, 1.0)]
    assert "MLflow refuses reports of this run (numbers)" in capsys.readouterr().err


LOGS_FOR_EVER = """
import itertools, sys
from pathlib import Path
from training.tracking import spool
from training.tracking.tracking import Tracker
spool.INTERVAL_S = 0.02
with Tracker.open(sys.argv[1], Path(sys.argv[2]), None) as tracker:
    for step in itertools.count(int(sys.argv[3])):
        tracker.numbers({"loss": float(step), "rate": 0.5}, step)
        print(step, flush=True)
"""


def test_a_run_killed_at_random_and_continued_holds_every_step_once(
    runs: Path, uri: str, times: Callable[[int, int], int]
) -> None:
    reached = 0
    for moment in range(times(2, 20)):
        command = [sys.executable, "-c", LOGS_FOR_EVER, uri, str(runs / "killed"), str(max(0, reached - 500))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline()]
            time.sleep(random.Random(moment).uniform(0, 1))
            process.kill()
            printed += process.stdout.readlines()
        reached = int(printed[-1])
    with Tracker.open(uri, runs / "killed", None) as tracker:
        tracker.numbers({"loss": float(reached + 1)}, reached + 1)
    for key in ("loss", "rate"):
        steps = [step for step, _ in history(uri, tracker.run_id, key)]
        assert steps == list(range(len(steps))) and len(steps) > reached
    assert len(mlflow.MlflowClient(uri).search_runs(["1"], "run_name = 'killed'")) == 1


def test_registered_versions_point_to_the_archive_of_the_run(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "winner", None) as tracker:
        (runs / "classic.mar").write_bytes(b"archive")
        tracker.archive(runs / "classic.mar")
    assert tracker.run_id is not None
    assert register(uri, tracker.run_id) == "models:/stemwright/1"
    assert register(uri, tracker.run_id) == "models:/stemwright/2"
    version = mlflow.MlflowClient(uri).get_model_version("stemwright", "2")
    assert version.run_id == tracker.run_id and version.source.endswith("/archive")


class Server:
    """A real MLflow server over the store of the tests, which can be killed and started again."""

    def __init__(self, runs: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        self.command += ["--backend-store-uri", f"sqlite:///{runs / 'server.db'}"]
        self.command += ["--artifacts-destination", str(runs / "served")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet, alone = subprocess.DEVNULL, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(self.command, stdout=quiet, stderr=quiet, start_new_session=True, env=alone)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "the MLflow server does not start"
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    server = Server(runs)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    with gate_to(server.port) as gate:
        yield gate


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "START_S", 0.5)
    monkeypatch.setattr(spool, "INTERVAL_S", 0.1)
    monkeypatch.setattr(spool, "LONGEST_PAUSE_S", 0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_from_the_start_gets_everything_once_it_answers(
    runs: Path, server: Server, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.hang()
    started = time.monotonic()
    with Tracker.open(f"http://user:secret@127.0.0.1:{gate.port}", runs / "hung", None) as tracker:
        tracker.describe(classic("songs", Budget(steps=5)), {"device": "cpu"})
        for step in range(500):
            tracker.numbers({"loss": float(step)}, step)
        tracker.picture("spectrogram", Figure(), step=3)
        assert time.monotonic() - started < 3
        assert tracker.run_id is None
        said = capsys.readouterr().err
        assert f"MLflow at http://***@127.0.0.1:{gate.port} does not answer yet: training goes on" in said
        gate.open()
    assert history(server.uri, tracker.run_id) == [(step, float(step)) for step in range(500)]
    assert files(server.uri, tracker.run_id, "spectrogram") == ["spectrogram/step_000003.png"]
    run = mlflow.MlflowClient(server.uri).get_run(tracker.run_id or "")
    assert run.info.status == "FINISHED" and run.data.tags["device"] == "cpu"
    assert "secret" not in said + capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_what_a_dead_server_did_not_get_is_sent_later(
    runs: Path, server: Server, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{gate.port}"
    started = time.monotonic()
    with Tracker.open(uri, runs / "dead", None) as tracker:
        tracker.numbers({"loss": 1.0}, 1)
        tracker.close("FINISHED", timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert f"python -m training sync --run-dir {runs / 'dead'}, or --resume" in capsys.readouterr().err
    with pytest.raises(TrackingError, match="Connection refused"):
        sync(uri, runs / "dead")
    gate.open()
    assert sync(uri, runs / "dead") == 3
    assert sync(uri, runs / "dead") == 0
    (run,) = mlflow.MlflowClient(server.uri).search_runs(["1"], "run_name = 'dead'")
    assert history(server.uri, run.info.run_id) == [(1, 1.0)] and run.info.status == "FINISHED"


def test_a_folder_without_reports_is_named(runs: Path, uri: str) -> None:
    with pytest.raises(TrackingError, match="nothing holds no reports"):
        sync(uri, runs / "nothing")


HANGS_AND_ENDS = """
import sys
from pathlib import Path
from training.tracking import tracking
from training.tracking.tracking import Tracker
tracking.START_S = tracking.END_S = 0.5
with Tracker.open(sys.argv[1], Path(sys.argv[2]), None) as tracker:
    tracker.numbers({"loss": 1.0}, 1)
"""


@pytest.mark.slow
def test_a_server_that_hangs_does_not_keep_the_process(runs: Path, gate: Gate) -> None:
    gate.hang()
    command = [sys.executable, "-c", HANGS_AND_ENDS, f"http://127.0.0.1:{gate.port}", str(runs / "leaves")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    assert "MLflow did not get everything" in ended.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_killed_in_the_middle_and_started_again_holds_every_step_once(
    runs: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(server.uri, runs / "interrupted", None) as tracker:
        step = 0
        for pause in (lambda: time.sleep(0.5), server.kill, server.start, lambda: time.sleep(0.5)):
            pause()
            for _ in range(200):
                tracker.numbers({"loss": float(step)}, step)
                step += 1
    assert history(server.uri, tracker.run_id) == [(n, float(n)) for n in range(800)]
    said = capsys.readouterr().err
    assert "lags behind" in said and "works again" in said
