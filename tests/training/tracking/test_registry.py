"""Archives as logged models and versions, against a real SQLite store."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from serving.model.source import resolve
from tests.stores import new_store
from tests.training.tracking.test_tracking import FACTS
from training.errors import TrackingError
from training.tracking.registry import find_version, point, point_back, register, registered_name, versions
from training.tracking.runs import runs
from training.tracking.stored_run import ArchiveFacts
from training.tracking.tracking import Tracker

pytestmark = pytest.mark.slow

FOUR = ("vocals", "drums", "bass", "other")


def archived(uri: str, run_dir: Path, content: bytes, facts: ArchiveFacts = FACTS) -> str:
    """The id of a run that logged an archive of this content."""
    with Tracker.open(uri, run_dir, None) as tracker:
        tracker.summary({"best/usdr_db": 8.21})
        tracker.note("**8.21 dB**")
        archive = run_dir / "classic.mar"
        archive.write_bytes(content)
        tracker.archive(archive, facts)
    assert tracker.run_id is not None
    return tracker.run_id


def test_a_version_holds_the_archive_its_scores_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    first, second = (archived(uri, tmp_path / name, name.encode()) for name in ("first", "second"))
    four = archived(uri, tmp_path / "four", b"four", replace(FACTS, stems=FOUR))
    assert register(uri, first) == "models:/stemwright-2stems/1"
    assert register(uri, second) == "models:/stemwright-2stems/2"
    assert register(uri, four) == "models:/stemwright-4stems/1"

    client = mlflow.MlflowClient(uri)
    (model,) = client.search_logged_models(["1"], f"source_run_id = '{second}'")
    assert str(model.status) == "READY" and model.tags["stems"] == "vocals, accompaniment"
    (score,) = model.metrics
    assert (score.key, score.value, score.dataset_name) == ("best/usdr_db", 8.21, "songs validation")
    assert json.loads(client.get_logged_model(model.model_id).tags["mlflow.modelVersions"]) == [
        {"name": "stemwright-2stems", "version": 2}
    ]
    assert client.get_run(second).outputs.model_outputs[0].model_id == model.model_id
    version = client.get_model_version("stemwright-2stems", "2")
    assert version.description == "**8.21 dB**" and version.tags["licence"] == "CC BY-NC 4.0"
    assert version.tags["best/usdr_db"] == "8.21"
    assert version.tags["archive.sha256"] == hashlib.sha256(b"second").hexdigest()

    for address, content in (("models:/stemwright-2stems/2", b"second"), (f"runs:/{first}/archive", b"first")):
        folder = tmp_path / content.decode() / "copy"
        folder.mkdir()
        assert resolve(address, folder).read_bytes() == content

    assert [version.address for version in versions(uri)] == [
        *("models:/stemwright-2stems/2", "models:/stemwright-2stems/1", "models:/stemwright-4stems/1")
    ]
    assert {row.name: row.usdr_db for row in runs(uri)} == dict.fromkeys(("first", "second", "four"), 8.21)

    older, newer = (find_version(uri, f"models:/stemwright-2stems/{number}") for number in (1, 2))
    point(uri, older, "champion", "the first")
    point(uri, newer, "champion", "better by 1 dB")
    assert find_version(uri, "models:/stemwright-2stems@champion").number == "2"
    assert find_version(uri, "models:/stemwright-2stems/2").tags["champion.reason"] == "better by 1 dB"
    assert point_back(uri, "stemwright-2stems", "champion").number == "1"
    champion = find_version(uri, "models:/stemwright-2stems@champion")
    assert champion.number == "1" and "version 2 was rolled back" in champion.tags["champion.reason"]
    with pytest.raises(TrackingError, match="nothing to go back to"):
        point_back(uri, "stemwright-2stems", "champion")
    with pytest.raises(TrackingError, match="is not in the registry"):
        find_version(uri, "models:/stemwright-2stems/9")
    with pytest.raises(TrackingError, match="there is no registered model other"):
        point_back(uri, "other", "champion")


def test_a_run_without_an_archive_is_not_registered(tmp_path: Path) -> None:
    uri = new_store(tmp_path / "mlflow.db")
    with Tracker.open(uri, tmp_path / "run", None) as tracker:
        pass
    with pytest.raises(TrackingError, match="has no archive in MLflow"):
        register(uri, str(tracker.run_id))


def test_a_registered_model_is_named_after_its_stems() -> None:
    assert registered_name(("drums", "vocals", "other", "bass")) == "stemwright-4stems"
    assert registered_name(("vocals", "drums")) == "stemwright-vocals-drums"
