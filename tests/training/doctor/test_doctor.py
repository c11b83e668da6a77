"""The doctor against a real store, a real MLflow and a real archive; and against bad ones."""

from pathlib import Path

import mlflow
import pytest
from torch import nn

from serving.model.archive import write_archive
from serving.model.spec import ModelSpec
from tests.s3 import bucket_fixture  # noqa: F401
from tests.stores import new_store
from training.__main__ import main
from training.doctor.finding import Finding, findings_table
from training.doctor.machine import in_wheel, memory

pytestmark = pytest.mark.slow


def test_everything_asked_for_works(
    bucket: Path,
    tiny_spec: ModelSpec,
    tiny_network: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_archive(tmp_path / "tiny.mar", tiny_spec, tiny_network, {})
    (bucket / "songs").mkdir()
    (bucket / "songs" / "a.wav").write_bytes(b"a song")
    uri = new_store(tmp_path / "mlflow.db")
    asked = ["--store", "s3://a-bucket/songs", "--store", str(bucket), "--model", "tiny.mar", "--device", "cpu"]
    assert main(["doctor", *asked, "--mlflow", uri]) == 0
    told = capsys.readouterr().out
    assert "ok     storage     s3://a-bucket/songs: list (1 files), write and delete work" in told
    assert f"{uri}: read and write work" in told and "tiny.mar: vocals, accompaniment; a second took" in told
    assert "wrong" not in told
    assert all(
        f"  {name} " in told for name in ("Stemwright", "Python", "torch", "precision", "memory", "disk", "Java")
    )
    assert [path.name for path in bucket.rglob("*") if path.is_file()] == ["a.wav"]
    assert "stemwright.tried" in mlflow.MlflowClient(uri).get_experiment_by_name("stemwright").tags


@pytest.mark.usefixtures("bucket")
def test_what_was_asked_for_and_does_not_work_is_wrong_and_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "bad.mar").write_bytes(b"no archive")
    assert main(["doctor", "--store", "s3://no-bucket/songs", "--model", "bad.mar", "--device", "cuda:7"]) == 1
    told = capsys.readouterr().out
    wrong = [line.split()[1] for line in told.splitlines() if line.startswith("wrong")]
    assert wrong == ["torch", "storage", "MLflow", "archive"]
    assert "→ there is no bucket no-bucket" in told and "check MLFLOW_TRACKING_URI" in told


def test_a_machine_alone_is_never_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    assert "storage" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("card", "held", "runs"),
    [
        ("sm_86", ["sm_75", "sm_80", "sm_90"], True),  # a later minor of the same major
        ("sm_75", ["sm_80", "sm_90"], False),
        ("sm_61", ["sm_50", "sm_60", "sm_70"], True),
        ("sm_120", ["sm_75", "sm_80", "sm_90"], False),
        ("sm_120", ["sm_80", "compute_90"], True),  # PTX, compiled for the card when it is loaded
        ("sm_90", ["sm_90a"], True),
    ],
)
def test_a_wheel_holds_code_for_a_card_or_not(card: str, held: list[str], runs: bool) -> None:
    assert in_wheel(card, held) is runs


def test_the_limit_of_a_container_is_its_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert memory(tmp_path) == Finding(
        "memory",
        "2.1 GB, the limit of the container",
        "note",
        "training wants 4 GB and more: raise the limit of the container",
    )
    (tmp_path / "memory.max").write_text("max\n")
    assert "limit" not in memory(tmp_path).found


def test_remedies_stand_below_what_they_are_for() -> None:
    lines = findings_table([Finding("a", "b"), Finding("long", "c", "wrong", "d")]).splitlines()
    assert lines == ["ok     a     b", "wrong  long  c", "             → d"]
