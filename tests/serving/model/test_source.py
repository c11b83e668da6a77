"""Archives from every place `resolve` knows but object storage's own server, against a real MLflow store in SQLite."""

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from serving.errors import ArchiveError, StorageError
from serving.model.source import resolve, version_behind
from tests.stores import new_store

pytestmark = pytest.mark.slow

CONTENTS = b"what an archive holds is not looked at here"


@dataclass(frozen=True)
class Registry:
    """A store with one run that has `archive/song.mar` and two archives in `pair`, and a registered model without versions."""

    client: MlflowClient
    run_id: str
    artifacts: str

    def register(self, source: str) -> str:
        """A new version, champion among them, made from an artifact of the run."""
        version = self.client.create_model_version("stemwright", source, self.run_id).version
        self.client.set_registered_model_alias("stemwright", "champion", version)
        return str(version)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(new_store(folder / "mlflow.db"))
    client = MlflowClient()
    run = client.create_run(client.create_experiment("separation", artifact_location=str(folder / "artifacts")))
    for name, artifact_folder in (("song.mar", "archive"), ("song.mar", "pair"), ("other.mar", "pair")):
        (folder / name).write_bytes(CONTENTS)
        client.log_artifact(run.info.run_id, str(folder / name), artifact_folder)
    client.create_registered_model("stemwright")
    yield Registry(client, run.info.run_id, run.info.artifact_uri)
    mlflow.set_tracking_uri(before)


def test_a_path_is_itself(tmp_path: Path) -> None:
    archive = tmp_path / "x.mar"
    archive.write_bytes(CONTENTS)
    assert resolve(str(archive), tmp_path / "elsewhere") == archive


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"no model archive at .*/missing\.mar"):
        resolve(str(tmp_path / "missing.mar"), tmp_path)


def test_an_artifact_of_a_run(registry: Registry, tmp_path: Path) -> None:
    for address in ("archive/song.mar", "archive"):
        fetched = resolve(f"runs:/{registry.run_id}/{address}", tmp_path / "fetched")
        assert fetched.name == "song.mar" and fetched.read_bytes() == CONTENTS
        assert fetched.is_relative_to(tmp_path / "fetched")


def test_a_run_alone_means_its_archive(registry: Registry, tmp_path: Path) -> None:
    assert resolve(f"runs:/{registry.run_id}", tmp_path / "fetched").read_bytes() == CONTENTS


def test_the_latest_version_is_the_one_of_the_highest_number(registry: Registry, tmp_path: Path) -> None:
    for _ in range(10):
        registry.register(f"runs:/{registry.run_id}/pair/other.mar")
    newest = registry.register(f"runs:/{registry.run_id}/archive")
    assert int(newest) > 10
    for address in ("models:/stemwright/latest", "models:/stemwright"):
        assert resolve(address, tmp_path / "fetched").name == "song.mar"
    with pytest.raises(StorageError, match="the registry has no model stranger"):
        resolve("models:/stranger/latest", tmp_path)


@pytest.mark.parametrize("silent", [False, True])
def test_a_tracking_server_that_is_away_is_named_soon(
    silent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`silent` takes the connection and never answers."""
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that the test's end takes back what is set
        monkeypatch.delenv(name)
    before = mlflow.get_tracking_uri()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        mlflow.set_tracking_uri(f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            start = time.monotonic()
            with pytest.raises(StorageError, match="MLFLOW_TRACKING_URI"):
                if silent:
                    resolve("models:/stemwright@champion", tmp_path)
                else:
                    version_behind("models:/stemwright@champion")
            assert time.monotonic() - start < 20
        finally:
            mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    "source", ["runs:/{run}/archive/song.mar", "runs:/{run}/archive", "{artifacts}/archive/song.mar"]
)
def test_a_registered_version_by_alias_and_number(registry: Registry, tmp_path: Path, source: str) -> None:
    version = registry.register(source.format(run=registry.run_id, artifacts=registry.artifacts))
    for address in ("models:/stemwright@champion", f"models:/stemwright/{version}"):
        assert resolve(address, tmp_path / "fetched").read_bytes() == CONTENTS


def test_a_folder_with_two_archives_is_no_answer(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"it holds other\.mar, song\.mar"):
        resolve(f"runs:/{registry.run_id}/pair", tmp_path / "fetched")


@pytest.mark.parametrize(
    "address", ["models:/stemwright@nobody", "models:/stemwright/77", "models:/stranger/1", "runs:/0/x.mar"]
)
def test_what_the_store_does_not_have_is_named(registry: Registry, tmp_path: Path, address: str) -> None:
    assert registry.run_id
    with pytest.raises(StorageError, match=f"MLflow does not give {address}: .*not found"):
        resolve(address, tmp_path)


def test_without_a_tracking_server_the_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)
    with pytest.raises(StorageError, match="set MLFLOW_TRACKING_URI"):
        resolve("models:/stemwright@champion", tmp_path)
    with pytest.raises(StorageError, match="set MLFLOW_TRACKING_URI"):
        version_behind("models:/stemwright@champion")
    assert not Path("mlflow.db").exists()
