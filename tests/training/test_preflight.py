"""Every place of a run is tried before the first step: a bad one is one sentence, soon, and nothing is left behind."""

import dataclasses
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving.errors import StorageError
from serving.model.archive import read_archive
from tests.s3 import bucket_fixture  # noqa: F401
from tests.stores import new_store
from tests.tiny import tiny_run
from training.__main__ import main
from training.config import TrainConfig
from training.demo.local_s3 import free_port
from training.demo.songs import write_songs
from training.errors import ConfigError, TrackingError
from training.optimization.machine import Machine
from training.preflight import preflight
from training.run.export import publish
from training.run.train import Places, RunResult, train

pytestmark = pytest.mark.slow


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def store_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def test_good_places_are_left_as_they_were(bucket: Path, tmp_path: Path) -> None:
    stores = ["s3://a-bucket/checkpoints", "s3://a-bucket/models/x.mar", str(tmp_path / "models")]
    assert preflight([tmp_path / "run"], stores, store_in(tmp_path), tmp_path / "run") is None
    assert not [path for path in (*bucket.rglob("*"), *(tmp_path / "run").iterdir()) if path.is_file()]
    assert not list((tmp_path / "models").iterdir())


def test_a_bucket_that_is_not_there_is_named(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no-bucket"):
        preflight([], ["s3://a-bucket/models", "s3://no-bucket/models"], store_in(tmp_path), tmp_path)
    assert not list(bucket.rglob("*.try*"))


def test_a_store_and_a_server_that_never_answer_cost_the_deadline_once(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.preflight.DEADLINE_S", 2.0)
    for name, value in {"ENDPOINT_URL": silent, "ACCESS_KEY_ID": "k" * 20, "SECRET_ACCESS_KEY": "s" * 20}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    began = time.monotonic()
    with pytest.raises(StorageError, match="s3://a-bucket/models gives no answer"):
        preflight([], ["s3://a-bucket/models"], silent, tmp_path)
    assert time.monotonic() - began < 6


def test_mlflow_that_is_gone_is_named_without_its_password(tmp_path: Path) -> None:
    failure = preflight([], [], f"http://me:secret@127.0.0.1:{free_port()}", tmp_path)
    assert isinstance(failure, TrackingError)
    assert "check MLFLOW_TRACKING_URI" in str(failure) and "secret" not in str(failure)


def test_a_store_of_mlflow_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    failure = preflight([], [], store_in(tmp_path), tmp_path)
    assert isinstance(failure, TrackingError) and "unable to open database file" in str(failure)


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name another folder"):
        preflight([tmp_path / "file" / "run"], [], store_in(tmp_path), tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become someone else")
def test_a_folder_of_someone_else_names_chown_and_user(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o055) if folder.is_relative_to("/tmp/pytest-of-root") else None
    (tmp_path / "runs").mkdir(mode=0o755)
    child = os.fork()
    if child == 0:
        os.setuid(10001)
        try:
            preflight([tmp_path / "runs" / "first"], [], "", tmp_path)
        except ConfigError as error:
            os._exit(0 if re.search(r"chown -R 10001:\d+ \S+/runs`.*--user", str(error)) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("songs")
    write_songs(folder, train=2, test=1, seconds=3, seed=0)
    return str(folder)


@pytest.fixture
def config(songs: str) -> TrainConfig:
    return tiny_run(songs, steps=1, batch_size=1, crop_s=0.5, validations=1, valid_excerpt_s=2)


def start(config: TrainConfig, run_dir: Path, resume: bool = False, **places: object) -> RunResult:
    if not (store := run_dir.parent / "mlflow.db").exists():
        store.parent.mkdir(exist_ok=True)
        new_store(store)
    where = Places(run_dir, run_dir.parent / "cache", **places)  # type: ignore[arg-type]
    return train(config, where, Machine(torch.device("cpu")), resume=resume, wait=False)


def test_a_run_publishes_under_its_own_name_and_overwrites_nothing_unasked(
    bucket: Path,
    config: TrainConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STEMWRIGHT_MLFLOW_PUBLIC_URL", "https://mlflow.example")
    result = start(config, tmp_path / "first", publish="s3://a-bucket/models/")
    assert "scores of all runs: https://mlflow.example/#/experiments/" in capsys.readouterr().err
    assert result.archive == "s3://a-bucket/models/classic-first.mar"
    published = bucket / "models" / "classic-first.mar"
    first = published.read_bytes()

    with pytest.raises(ConfigError, match=r"models/classic-first.mar is there already: give --overwrite"):
        start(config, tmp_path / "again" / "first", publish="s3://a-bucket/models/")
    assert not list((tmp_path / "again" / "first").iterdir()), "no step, no checkpoint"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("training.tracking.tracking.START_S", 0.1)
    monkeypatch.setattr("training.tracking.tracking.END_S", 0.1)
    with pytest.raises(TrackingError, match="takes no runs"):
        start(config, tmp_path / "other")
    export = ["export", "--run-dir", str(tmp_path / "first"), "--to", str(tmp_path / "registered.mar"), "--register"]
    assert main(export) == 1 and not (tmp_path / "registered.mar").exists(), "the registry is tried before it publishes"
    assert "takes no runs" in capsys.readouterr().err
    start(config, tmp_path / "first", resume=True, publish="s3://a-bucket/models/")
    assert "the run goes on" in capsys.readouterr().err
    assert published.read_bytes() == first

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    start(dataclasses.replace(config, seed=1), tmp_path / "other")
    with pytest.raises(
        ConfigError, match=r"holds another archive.*; the archive is .*other/classic.mar: publish it with"
    ) as no:
        publish(tmp_path / "other", "s3://a-bucket/models/classic-first.mar")
    assert f"`stemwright export --run-dir {tmp_path / 'other'} --to s3://a-bucket/models/classic-first.mar`" in str(
        no.value
    )
    assert published.read_bytes() == first
    publish(tmp_path / "other", "s3://a-bucket/models/classic-first.mar", overwrite=True)
    assert read_archive(published).weights_sha256 == read_archive(tmp_path / "other" / "classic.mar").weights_sha256
