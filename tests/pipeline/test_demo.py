"""The main job with real parts, in miniature: S3, training, MLflow, TorchServe, HTTP; and nothing left running after it."""

import re
from pathlib import Path

import mlflow
import psutil
import pytest

import training.demo.demo
from serving.audio.audio_io import read
from training.data.song import PAIR
from training.demo.demo import demo

pytestmark = [pytest.mark.slow, pytest.mark.long]  # README's commands take the same way in `make test`


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    before = psutil.Process().children(recursive=True)
    monkeypatch.setattr(training.demo.demo, "SONGS", 3)
    monkeypatch.setattr(training.demo.demo, "TEST_SONGS", 1)
    monkeypatch.setattr(training.demo.demo, "SONG_S", 3)
    left_behind = tmp_path / "stems" / "classic-1" / "an earlier song"  # of a demo that was stopped
    left_behind.mkdir(parents=True)
    (tmp_path / "runs" / "classic-1").mkdir(parents=True)
    demo(tmp_path, minutes=0.02)
    report = capfd.readouterr().out
    assert re.search(r"classic-2 +starter +the mixture", report) and "vocals" in report
    assert "classic-2/classic.mar" in report.replace("\\", "/")

    (song,) = (tmp_path / "songs" / "test").iterdir()
    mixture, rate_hz = read(song / "mixture.wav")
    vocals, accompaniment = (
        read(tmp_path / "stems" / "classic-2" / song.name / "mixture" / f"{stem}.wav")[0] for stem in PAIR
    )
    assert vocals.shape == mixture.shape and rate_hz == 44_100
    assert abs(vocals + accompaniment - mixture).max() < 1e-4

    runs = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}").search_runs(["1"])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("classic-2", "FINISHED")]
    left = [
        p.info["cmdline"]
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
    assert not left
    assert not [p for p in psutil.Process().children(recursive=True) if p.is_running() and p not in before]
