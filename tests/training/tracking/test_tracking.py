"""Against a real SQLite store, made once for all tests of the file, and a real MLflow server over it."""

import base64
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import mlflow
import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.gate import Gate, gate_to
from tests.mlflow_server import MlflowServer
from tests.processes import forked
from tests.stores import new_store
from training.config import Budget
from training.errors import NotFinite, TrackingError
from training.presets import classic
from training.tracking import spool, tracking
from training.tracking.stored_run import ArchiveFacts, run_id_in
from training.tracking.tracking import Tracker, sync

pytestmark = pytest.mark.slow

FACTS = ArchiveFacts(
    preset="classic",
    stems=("vocals", "accompaniment"),
    step=3,
    licence="CC BY-NC 4.0",
    data="s3://bucket/songs",
    data_digest="0" * 64,
    scores={"best/usdr_db": 8.21},
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    new_store(folder / "mlflow.db")
    return folder


@pytest.fixture
def uri(runs: Path) -> str:
    return f"sqlite:///{runs / 'mlflow.db'}"


def history(uri: str, run_id: str | None, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of everything that the store holds of a number."""
    assert run_id is not None
    return [(metric.step, metric.value) for metric in mlflow.MlflowClient(uri).get_metric_history(run_id, key)]


def files(uri: str, run_id: str | None, folder: str) -> list[str]:
    assert run_id is not None
    return [file.path for file in mlflow.MlflowClient(uri).list_artifacts(run_id, folder)]


def test_a_run_holds_what_was_logged(runs: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = classic("songs", Budget(steps=5))
    with Tracker.open(uri, runs / "first", None) as tracker:
        tracker.describe(config, {"device": "cpu"})
        tracker.data("s3://bucket/songs", "0" * 64, "training", songs=3, measured=2, seconds=4.04)
        tracker.data("s3://bucket/songs", "0" * 64, "validation", songs=1, measured=1, seconds=2)
        tracker.numbers({"train/loss": 0.5, "train/rate": float("nan")}, step=3)
        tracker.picture("vocals", Figure(), number=1)
        tracker.listen({"vocals": np.zeros((2, 4410), np.float32)}, 44_100)
        tracker.note("**8.21 dB**")
        (runs / "classic.mar").write_bytes(b"archive")
        tracker.archive(runs / "classic.mar", FACTS)
    assert tracker.run_id is not None
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "first"
    assert run.data.params["batch_size"] == str(config.batches.batch_size) and run.data.params["seed"] == "0"
    assert run.data.params["ema_decays"] == "0.99, 0.999"
    assert "minutes" not in run.data.params and len(run.data.params) <= 13, "no None, and few"
    assert run.data.tags["device"] == "cpu" and run.data.tags["end"] == "completed"
    assert run.data.tags["mlflow.note.content"] == "**8.21 dB**"
    assert run.data.tags["archive.sha256"] == hashlib.sha256(b"archive").hexdigest()
    training, validation = sorted(run.inputs.dataset_inputs, key=lambda one: one.tags[0].value)
    assert training.dataset.digest == "0" * 12 and training.dataset.source_type == "s3"
    assert json.loads(training.dataset.profile) == {"songs": 3, "measured_songs": 2, "seconds": 4.0}
    assert json.loads(validation.dataset.profile)["songs"] == 1
    assert run.data.metrics == {"train/loss": 0.5, "best/usdr_db": 8.21}, "what is not finite is left out"
    for folder, file in (("listen", "vocals.flac"), ("archive", "classic.mar")):
        assert files(uri, tracker.run_id, folder) == [f"{folder}/{file}"]
    pictures = {Path(path).suffix for path in files(uri, tracker.run_id, "images")}
    assert pictures == {".png", ".webp"}
    assert str(runs / "mlartifacts") in run.info.artifact_uri
    assert list((runs / "first" / "spool" / "files").iterdir()) == [], "what was sent takes no room"
    link = f"#/experiments/{run.info.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=scores"
    assert capsys.readouterr().err.count(link) == 2, "at the start and at the end"


def test_a_summary_is_replaced_and_a_file_of_the_same_name_too(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "better", None) as tracker:
        for usdr_db in (5.0, 7.12345, 6.5):
            time.sleep(0.002)
            tracker.summary({"best/usdr_db": usdr_db, "best/step": 3})
            tracker.table("songs.json", ["song", "usdr_db"], [["A", usdr_db]])
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id or "")
    assert run.data.metrics == {"best/usdr_db": 6.5, "best/step": 3.0}, "the last one is shown, not the largest"
    assert [value for _, value in history(uri, tracker.run_id, "best/usdr_db")] == [5.0, 7.123, 6.5]
    (stored,) = Path(str(run.info.artifact_uri).removeprefix("file://")).glob("songs.json")
    assert json.loads(stored.read_text()) == {"columns": ["song", "usdr_db"], "data": [["A", 6.5]]}
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "songs.json", "type": "table"}]


def test_the_experiment_has_a_description_and_the_saved_view(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "viewed", None):
        pass
    (experiment,) = mlflow.MlflowClient(uri).search_experiments(filter_string="name = 'stemwright'")
    assert "`best/`" in experiment.tags["mlflow.note.content"]
    view = json.loads(experiment.tags["mlflow.sharedViewState.scores"])
    kind, _, packed = view["state"].partition(";")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert (
        view["name"] == "Scores"
        and kind == "deflate"
        and len(experiment.tags["mlflow.sharedViewState.scores"]) < 20_000
    )
    assert state["orderByKey"] == "metrics.`best/usdr_db`" and not state["orderByAsc"]
    assert state["selectedColumns"][0] == "metrics.`best/usdr_db`"


def test_numbers_keep_the_time_at_which_they_were_logged(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "timed", None) as tracker:
        before_ms = time.time_ns() // 1_000_000
        tracker.numbers({"train/loss": 1.0}, step=1)
        after_ms = time.time_ns() // 1_000_000
        time.sleep(0.1)
    assert tracker.run_id is not None
    (metric,) = mlflow.MlflowClient(uri).get_metric_history(tracker.run_id, "train/loss")
    assert before_ms <= metric.timestamp <= after_ms


@pytest.mark.parametrize("machine", ["same", "other"])
def test_a_run_is_continued_and_no_step_doubled(runs: Path, uri: str, machine: str) -> None:
    config = classic("songs", Budget(steps=5))
    with pytest.raises(ValueError, match="broken"), Tracker.open(uri, runs / machine, None) as first:
        first.describe(config, {})
        for step in (1, 2, 3):
            first.numbers({"train/loss": float(step)}, step)
        raise ValueError("broken")
    folder = runs / machine if machine == "same" else runs / "elsewhere" / machine
    with Tracker.open(uri, folder, None if machine == "same" else first.run_id) as again:
        again.describe(classic("songs", Budget(steps=9)), {"resumed": "at step 3"})
        for step in (2, 3, 4):
            again.numbers({"train/loss": float(step)}, step)
    assert again.run_id == first.run_id
    assert history(uri, first.run_id) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    run = mlflow.MlflowClient(uri).get_run(first.run_id or "")
    assert run.info.status == "FINISHED" and run.data.params["steps"] == "5"
    assert run.data.tags["resume.steps"] == "9" and run.data.tags["resumed"] == "at step 3"
    assert "resume.batch_size" not in run.data.tags
    assert run.data.tags["end"] == "completed" and "error" not in run.data.tags, "of the first time"
    (stored,) = Path(str(run.info.artifact_uri).removeprefix("file://")).glob("config.json")
    assert json.loads(stored.read_text())["budget"]["steps"] == 9


@pytest.mark.parametrize("is_gone", ["unknown", "deleted"])
def test_a_run_that_the_store_does_not_know_goes_on_as_a_new_one(runs: Path, uri: str, is_gone: str) -> None:
    client, run_id = mlflow.MlflowClient(uri), "0123456789abcdef0123456789abcdef"
    if is_gone == "deleted":
        with Tracker.open(uri, runs / "gone", None) as old:
            pass
        run_id = str(old.run_id)
        client.delete_run(run_id)
    with Tracker.open(uri, runs / "moved" / is_gone, run_id, step=30) as tracker:
        tracker.numbers({"train/loss": 1.0}, 31)
    run = client.get_run(tracker.run_id or "")
    assert run.info.run_id != run_id and run.info.status == "FINISHED"
    assert run.data.tags["continues.run"] == run_id and run.data.tags["continues.step"] == "30"
    assert history(uri, tracker.run_id) == [(31, 1.0)]


@pytest.mark.parametrize(
    ("error", "status", "end"),
    [
        (SystemExit(143), "KILLED", "interrupted"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (NotFinite("no gradient was finite"), "FAILED", "diverged"),
        (ValueError("x is 3\nand more"), "FAILED", "failed"),
        (ValueError(), "FAILED", "failed"),
    ],
)
def test_a_run_ends_as_its_block_does(runs: Path, uri: str, error: BaseException, status: str, end: str) -> None:
    with pytest.raises(type(error)), Tracker.open(uri, runs / "ended", None) as tracker:
        raise error
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id or "")
    assert run.info.status == status and run.data.tags["end"] == end
    sentence = {"no gradient was finite": "no gradient was finite", "x is 3\nand more": "x is 3", "": "ValueError"}
    assert run.data.tags.get("error") == (sentence[str(error)] if status == "FAILED" else None)


def test_the_first_end_counts(runs: Path, uri: str) -> None:
    with Tracker.open(uri, runs / "stopped", None) as tracker:
        tracker.close("interrupted")
    run = mlflow.MlflowClient(uri).get_run(tracker.run_id or "")
    assert run.info.status == "KILLED" and run.data.tags["end"] == "interrupted"


def test_the_machine_is_watched(runs: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_INTERVAL_S", 0.3)
    with Tracker.open(uri, runs / "watched", None) as tracker:
        time.sleep(1.5)
    stored = mlflow.MlflowClient(uri).get_run(tracker.run_id or "").data.metrics
    assert all(name.startswith(("system/cpu", "system/system_memory", "system/gpu")) for name in stored)
    steps = [step for step, _ in history(uri, tracker.run_id, "system/cpu_utilization_percentage")]
    assert steps == sorted(set(steps)) and len(steps) >= 2
    assert 0 < history(uri, tracker.run_id, "system/system_memory_usage_percentage")[0][1] < 100


def test_what_mlflow_will_never_take_is_said_and_does_not_block_the_rest(
    runs: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(uri, runs / "refused", None) as tracker:
        tracker.numbers({"no such name!": 1.0}, step=1)
        tracker.picture("vocals", Figure(), number=1)
        tracker.numbers({"train/loss": 1.0}, step=2)
    assert history(uri, tracker.run_id) == [(2, 1.0)]
    assert "MLflow refuses reports of this run (numbers)" in capsys.readouterr().err


def log_for_ever(uri: str, run_dir: Path, first: int, steps: Connection) -> None:
    spool.INTERVAL_S = 0.02
    with Tracker.open(uri, run_dir, None) as tracker:
        for step in itertools.count(first):
            tracker.numbers({"train/loss": float(step), "rate": 0.5}, step)
            steps.send(step)


def test_a_run_killed_at_random_and_continued_holds_every_step_once(
    runs: Path, uri: str, times: Callable[[int, int], int]
) -> None:
    reached = 0
    for moment in range(times(2, 20)):
        steps, theirs = Pipe(duplex=False)
        process = forked(log_for_ever, uri, runs / "killed", max(0, reached - 500), theirs)
        theirs.close()
        reached = steps.recv()
        time.sleep(random.Random(moment).uniform(0, 1))
        process.kill()
        with suppress(EOFError, OSError):  # the end of what it sent, and of a message that it was sending
            while True:
                reached = steps.recv()
    with Tracker.open(uri, runs / "killed", None) as tracker:
        tracker.numbers({"train/loss": float(reached + 1)}, reached + 1)
    for key in ("train/loss", "rate"):
        steps = [step for step, _ in history(uri, tracker.run_id, key)]
        assert steps == list(range(len(steps))) and len(steps) > reached
    assert len(mlflow.MlflowClient(uri).search_runs(["1"], "run_name = 'killed'")) == 1


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(runs)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def gate(server: MlflowServer) -> Iterator[Gate]:
    with gate_to(server.port) as gate:
        yield gate


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "START_S", 0.5)
    monkeypatch.setattr(spool, "INTERVAL_S", 0.1)
    monkeypatch.setattr(spool, "LONGEST_PAUSE_S", 0.2)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_hangs_from_the_start_gets_everything_once_it_answers(
    runs: Path, server: MlflowServer, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.hang()
    started = time.monotonic()
    with Tracker.open(f"http://user:secret@127.0.0.1:{gate.port}", runs / "hung", None) as tracker:
        tracker.describe(classic("songs", Budget(steps=5)), {"device": "cpu"})
        for step in range(500):
            tracker.numbers({"train/loss": float(step)}, step)
        tracker.picture("vocals", Figure(), number=1)
        assert time.monotonic() - started < 3
        assert tracker.run_id is None
        said = capsys.readouterr().err
        assert f"MLflow at http://***@127.0.0.1:{gate.port} does not answer yet: training goes on" in said
        gate.open()
    assert history(server.uri, tracker.run_id) == [(step, float(step)) for step in range(500)]
    assert len(files(server.uri, tracker.run_id, "images")) == 2
    run = mlflow.MlflowClient(server.uri).get_run(tracker.run_id or "")
    assert run.info.status == "FINISHED" and run.data.tags["device"] == "cpu"
    assert "secret" not in said + capsys.readouterr().err


@pytest.mark.usefixtures("impatient")
def test_what_a_dead_server_did_not_get_is_sent_later(
    runs: Path, server: MlflowServer, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{gate.port}"
    started = time.monotonic()
    with Tracker.open(uri, runs / "dead", None) as tracker:
        tracker.numbers({"train/loss": 1.0}, 1)
        tracker.close("completed", timeout_s=0.5)
    assert time.monotonic() - started < 3
    assert f"python -m training sync --run-dir {runs / 'dead'}, or --resume" in capsys.readouterr().err
    with pytest.raises(TrackingError, match="Connection refused"):
        sync(uri, runs / "dead")
    for thread in threading.enumerate():
        if thread.name == "spool":
            thread.join(60)  # with the last attempt of the run, which its process would not outlive
    gate.open()
    assert sync(uri, runs / "dead") == 4
    assert sync(uri, runs / "dead") == 0
    (run,) = mlflow.MlflowClient(server.uri).search_runs(["1"], "run_name = 'dead'")
    assert history(server.uri, run.info.run_id) == [(1, 1.0)] and run.info.status == "FINISHED"


def sync_and_die(uri: str, run_dir: Path) -> None:
    tracker = Tracker.open(uri, run_dir, None)
    tracker.numbers({"train/loss": 1.0}, 1)
    sync(uri, run_dir)
    os.kill(os.getpid(), signal.SIGKILL)


def test_sync_ends_a_run_that_was_killed_and_none_that_goes_on(runs: Path, uri: str) -> None:
    folder = runs / "killed"
    with Tracker.open(uri, folder, None):  # a run that went on
        pass
    killed = forked(sync_and_die, uri, folder)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    run_id = run_id_in(folder)
    client = mlflow.MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    assert sync(uri, folder) == 2
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.tags["end"] == "interrupted"
    assert run.info.end_time <= time.time_ns() // 1_000_000
    assert sync(uri, folder) == 0


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
    tracker.numbers({"train/loss": 1.0}, 1)
"""


def test_a_server_that_hangs_does_not_keep_the_process(runs: Path, gate: Gate) -> None:
    gate.hang()
    command = [sys.executable, "-c", HANGS_AND_ENDS, f"http://127.0.0.1:{gate.port}", str(runs / "leaves")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "MLflow did not get everything" in ended.stderr


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_killed_in_the_middle_and_started_again_holds_every_step_once(
    runs: Path, server: MlflowServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker.open(server.uri, runs / "interrupted", None) as tracker:
        step = 0
        for pause in (lambda: time.sleep(0.5), server.kill, server.start, lambda: time.sleep(0.5)):
            pause()
            for _ in range(200):
                tracker.numbers({"train/loss": float(step)}, step)
                step += 1
    assert history(server.uri, tracker.run_id) == [(n, float(n)) for n in range(800)]
    said = capsys.readouterr().err
    assert "lags behind" in said and "works again" in said
