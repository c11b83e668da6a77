"""Whole runs in miniature: real songs of a few seconds, a real MLflow store, a network of hardly any weights."""

import dataclasses
import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch

import training.data.supply
import training.run.loop
import training.run.showcase
import training.run.signals
import training.run.validate
from serving.model.archive import read_archive
from tests.pictures import empty_picture
from tests.stores import new_store
from tests.tiny import tiny_run
from training.checkpoints.checkpoints import Checkpoints
from training.checkpoints.tensor_file import read_tensors
from training.config import Budget, TrainConfig, Validation
from training.data.crops import AHEAD
from training.data.decoded import DecodedSong
from training.data.supply import Supply
from training.demo.songs import write_songs
from training.errors import ConfigError, NotFinite, OutOfMemory
from training.evaluation.evaluate import Score, SongScores, evaluate_song
from training.evaluation.plots import spectrogram_figure
from training.optimization.machine import Machine
from training.optimization.ranks import Ranks
from training.optimization.schedule import schedule
from training.optimization.step import Stepper
from training.run.train import Places, RunResult, stored_config, train
from training.run.validate import Scored, Validator

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs, and the store that all runs of this file are tracked in."""
    folder = tmp_path_factory.mktemp("train")
    new_store(folder / "mlflow.db")
    write_songs(folder / "songs", train=3, test=1, seconds=3, seed=0)
    return folder


@pytest.fixture
def config(folder: Path) -> TrainConfig:
    return tiny_run(folder / "songs", steps=6, batch_size=2, crop_s=0.5, validations=2)


@pytest.fixture(autouse=True)
def tracked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(training.run.loop, "LOG_INTERVAL_STEPS", 1)
    monkeypatch.setattr(training.run.showcase, "spectrogram_figure", empty_picture)
    for name in ("PATIENCE_S", "SHORT_PATIENCE_S"):
        monkeypatch.setattr(training.run.signals, name, 600)  # else a stop may end pytest on a busy machine
    before = signal.signal(signal.SIGTERM, not_taken)
    yield mlflow.MlflowClient(uri)
    signal.signal(signal.SIGTERM, before)


def not_taken(*_: object) -> None:
    """Fail a test whose signal the run does not take; the system would end pytest."""
    raise AssertionError("a signal came when no run took it")


def start(config: TrainConfig, run_dir: Path, resume: bool = False, publish: str | None = None) -> RunResult:
    return train(
        config, Places(run_dir, run_dir.parent / "cache", publish=publish), Machine(CPU), resume=resume, wait=False
    )


def last_checkpoint(run_dir: Path) -> Path:
    return max(run_dir.glob("step-*.safetensors"))


def test_a_run_ends_with_an_archive_of_its_best_weights_and_everything_in_mlflow(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.run.showcase, "spectrogram_figure", spectrogram_figure)
    result = start(config, tmp_path / "run", publish=str(tmp_path / "published" / "copy.mar"))
    assert result.steps == 6 and result.stopped_by is None
    assert TrainConfig.from_json(json.loads((tmp_path / "run" / "config.json").read_text())) == config

    archive = read_archive(tmp_path / "run" / "classic.mar")
    best, facts = read_tensors(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in archive.tensors.items())
    assert archive.licences.to_json() == facts.pop("licences")
    assert archive.origin == facts and facts["run_id"] == result.run_id
    assert read_archive(tmp_path / "published" / "copy.mar").weights_sha256 == archive.weights_sha256

    run = tracked.get_run(result.run_id)
    assert run.info.status == "FINISHED" and run.data.params["crop_s"] == "0.5"
    assert [m.step for m in tracked.get_metric_history(result.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [m.step for m in tracked.get_metric_history(result.run_id, "valid/vocals_usdr_db")] == [3, 6]
    listed = {f.path for d in ("", "listen", "archive") for f in tracked.list_artifacts(result.run_id, d)}
    assert {"listen/mixture.flac", "listen/vocals.flac", "listen/vocals_true.flac", "archive/classic.mar"} <= listed
    assert {"songs.json", "training_songs.json", "config.json"} <= listed
    pictures = {re.split("[%~+]", f.path)[2] for f in tracked.list_artifacts(result.run_id, "images")}
    assert pictures == {"0", "1"}, "a picture for each validation, by its number"

    best = {name: score["usdr_db"] for name, score in facts["validation"].items()}
    metrics = run.data.metrics
    assert metrics["best/vocals_usdr_db"] == pytest.approx(best["vocals"], abs=6e-4)
    assert (
        metrics["best/usdr_db"] == pytest.approx(sum(best.values()) / 2, abs=6e-4)
        and metrics["best/step"] == facts["step"]
    )
    assert metrics["best/usdr_db"] == pytest.approx(result.best_usdr, abs=6e-4)
    assert metrics["cost/real_time_factor"] > 0 and metrics["cost/parameters"] > 0
    assert all(name.count("/") == 1 for name in metrics)
    assert "None" not in run.data.params.values() and len(run.data.params) <= 13
    assert run.data.tags["end"] == "completed" and len(run.data.tags["commit"]) == 40 and "dirty" in run.data.tags
    assert f"**{metrics['best/usdr_db']:.2f} dB** uSDR" in run.data.tags["mlflow.note.content"]
    profiles = {one.tags[0].value: json.loads(one.dataset.profile) for one in run.inputs.dataset_inputs}
    assert profiles["training"] == {"songs": 2, "measured_songs": 2, "seconds": 6.0}
    assert profiles["validation"] == {"songs": 1, "measured_songs": 1, "seconds": 3.0}


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, validation=Validation(validations=1))
    start(config, tmp_path / "whole")
    whole, _ = read_tensors(last_checkpoint(tmp_path / "whole"))

    real_step = Stepper.__call__

    def step_and_be_told_to_stop(self: Stepper, decoded: torch.Tensor, learning_rate: float) -> None:
        if self.state.step == 3:
            signal.raise_signal(signal.SIGTERM)
        real_step(self, decoded, learning_rate)

    monkeypatch.setattr(Stepper, "__call__", step_and_be_told_to_stop)
    stopped = start(config, tmp_path / "cut")
    monkeypatch.setattr(Stepper, "__call__", real_step)
    assert stopped.stopped_by == signal.SIGTERM and stopped.steps == 4 and stopped.archive is None

    resumed = start(config, tmp_path / "cut", resume=True)
    assert resumed.run_id == stopped.run_id and resumed.steps == 6
    cut, _ = read_tensors(last_checkpoint(tmp_path / "cut"))
    assert cut.keys() == whole.keys()
    assert not [name for name, tensor in whole.items() if not torch.equal(tensor, cut[name])]
    assert [m.step for m in tracked.get_metric_history(resumed.run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_folder_with_a_run_is_not_overwritten(config: TrainConfig, tmp_path: Path) -> None:
    start(dataclasses.replace(config, budget=Budget(steps=1)), tmp_path / "run")
    before = last_checkpoint(tmp_path / "run").read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        start(config, tmp_path / "run")
    assert last_checkpoint(tmp_path / "run").read_bytes() == before


def test_the_schedule_rises_falls_and_ends_at_zero() -> None:
    assert schedule(0.0, warmup=0.1) == 0.0 and schedule(0.05, warmup=0.1) == 0.5
    assert schedule(0.1, warmup=0.1) == 1.0 and schedule(0.55, warmup=0.1) == pytest.approx(0.5)
    assert schedule(1.0, warmup=0.1) == pytest.approx(0.0) and schedule(0.0, warmup=0.0) == 1.0


def test_a_stop_that_comes_during_validation_leaves_it_for_the_next_time(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, validation=Validation(validations=2, valid_share=0.6))  # two songs
    scored = []

    def score_and_be_told_to_stop(*arguments: object) -> SongScores:
        scored.append(arguments)
        signal.raise_signal(signal.SIGTERM)
        return evaluate_song(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(training.run.validate, "evaluate_song", score_and_be_told_to_stop)
        stopped = start(config, tmp_path / "run")
    assert stopped.stopped_by == signal.SIGTERM and stopped.steps == 3 and len(scored) == 1
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert stopped.run_id is not None and tracked.get_run(stopped.run_id).info.status == "KILLED"
    resumed = start(config, tmp_path / "run", resume=True)
    assert [m.step for m in tracked.get_metric_history(str(resumed.run_id), "valid/vocals_usdr_db")] == [3, 6]


def test_patience_ends_a_run_that_does_not_get_better(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, validation=Validation(validations=6, patience=2))
    scores = Score(csdr_db=1.0, usdr_db=1.0)
    monkeypatch.setattr(
        training.run.validate, "evaluate_song", lambda *_: SongScores("song", dict.fromkeys(config.model.stems, scores))
    )
    result = start(config, tmp_path / "run")
    assert result.steps == 3 and result.best_usdr == 1.0 and result.archive is not None
    assert tracked.get_run(result.run_id).data.tags["end"] == "stalled"


def test_a_run_goes_on_elsewhere_from_its_mirror(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient
) -> None:
    mirror, first = str(tmp_path / "mirror"), tmp_path / "first"
    half = dataclasses.replace(config, budget=Budget(steps=3))
    begun = train(half, Places(first, tmp_path / "cache", mirror), Machine(CPU), resume=True, wait=False)
    shutil.rmtree(first)
    stored = stored_config(tmp_path / "second", mirror)
    assert stored == half
    resumed = train(
        config, Places(tmp_path / "second", tmp_path / "cache", mirror), Machine(CPU), resume=True, wait=False
    )
    assert resumed.run_id == begun.run_id and resumed.steps == 6
    assert [m.step for m in tracked.get_metric_history(str(resumed.run_id), "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_without_the_old_store_as_a_new_run_that_names_the_old_one(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = dataclasses.replace(config, budget=Budget(steps=3))
    begun = start(half, tmp_path / "run")
    best = tracked.get_run(begun.run_id).data.metrics["best/usdr_db"]
    shutil.rmtree(tmp_path / "run" / "spool")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "other.db"))
    still = dataclasses.replace(config.optimization, learning_rate=1e-30)
    resumed = start(dataclasses.replace(config, optimization=still), tmp_path / "run", resume=True)
    run = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'other.db'}").get_run(resumed.run_id)
    assert resumed.run_id != begun.run_id and run.data.tags["continues.run"] == begun.run_id
    assert run.data.tags["continues.step"] == "3" and run.info.status == "FINISHED"
    assert run.data.metrics["best/usdr_db"] >= best, "the new run shows the best weights so far"


def test_a_run_that_diverges_says_so(config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient) -> None:
    wild = dataclasses.replace(config, optimization=dataclasses.replace(config.optimization, learning_rate=1e30))
    with pytest.raises(NotFinite, match="--learning-rate"):
        start(wild, tmp_path / "run")
    (run,) = tracked.search_runs(["1"], "run_name = 'run' and tags.end = 'diverged'")
    assert "--learning-rate" in run.data.tags["error"] and run.info.status == "FAILED"
    assert not [name for name in run.data.metrics if name.startswith(("best/", "valid/"))]


def test_a_run_that_starts_from_an_archive_has_its_weights(config: TrainConfig, tmp_path: Path) -> None:
    start(config, tmp_path / "first")
    archive = tmp_path / "first" / "classic.mar"
    still = dataclasses.replace(
        config, init=str(archive), optimization=dataclasses.replace(config.optimization, learning_rate=1e-30)
    )
    start(still, tmp_path / "second")
    weights, again = (
        read_archive(run / "classic.mar").tensors["mask.weight"] for run in (tmp_path / "first", tmp_path / "second")
    )
    assert torch.equal(weights, again)


def test_songs_that_arrive_later_are_trained_on_from_then_on_and_after_a_resume(
    config: TrainConfig, tmp_path: Path, tracked: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One song to train on is there at the start; a group of one more arrives when the run is at step 2."""
    monkeypatch.setattr(training.data.supply, "ENOUGH_SONGS", 1)
    real_arrived, calls = Supply.arrived, itertools.count()

    def prepared_late(self: Supply) -> list[DecodedSong]:
        if next(calls) < 2:
            return []
        self.thread.join()
        return real_arrived(self)

    monkeypatch.setattr(Supply, "arrived", prepared_late)
    config = dataclasses.replace(config, budget=Budget(steps=12), validation=Validation(validations=1))
    result = start(config, tmp_path / "run")
    _, facts = read_tensors(last_checkpoint(tmp_path / "run"))
    (start_step, first), (later_step, second) = facts["songs"]
    assert (start_step, later_step) == (0, 2 + AHEAD + 1) and len(first) == len(second) == 1
    assert [(m.step, m.value) for m in tracked.get_metric_history(str(result.run_id), "train/songs")] == [
        (0, 1),
        (2, 2),
    ]

    resumed = dataclasses.replace(config, budget=Budget(steps=14))
    start(resumed, tmp_path / "run", resume=True)
    _, again = read_tensors(last_checkpoint(tmp_path / "run"))
    assert again["songs"] == facts["songs"]


def test_a_signal_while_the_ranks_agree_is_not_lost(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree = Ranks.largest

    def agree_and_be_told_to_stop(self: Ranks, *values: float) -> list[float]:
        agreed = agree(self, *values)
        if len(values) == 2 and next(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return agreed

    calls = itertools.count()
    monkeypatch.setattr(Ranks, "largest", agree_and_be_told_to_stop)
    stopped = start(config, tmp_path / "run")
    assert stopped.stopped_by == signal.SIGTERM and stopped.steps == 3


def test_every_step_has_the_learning_rate_of_the_schedule(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        config,
        validation=Validation(validations=1),
        optimization=dataclasses.replace(config.optimization, learning_rate=0.5, warmup=0.5),
    )
    real_update, rates = Stepper.update, []

    def update(self: Stepper, learning_rate: float) -> torch.Tensor:
        finite = real_update(self, learning_rate)
        rates.append([group["lr"] for group in self.state.optimizer.param_groups])
        return finite

    monkeypatch.setattr(Stepper, "update", update)
    start(config, tmp_path / "run")
    assert rates == [[0.5 * schedule(step / 6, 0.5)] * 2 for step in range(6)]


def test_a_checkpoint_is_saved_as_time_passes(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.run.loop, "SAVE_INTERVAL_S", 0)
    config = dataclasses.replace(config, validation=Validation(validations=1))
    real_save, saved = Checkpoints.save, []

    def save(self: Checkpoints, step: int, write: Callable[[Path], None]) -> None:
        saved.append(step)
        real_save(self, step, write)

    monkeypatch.setattr(Checkpoints, "save", save)
    start(config, tmp_path / "run")
    assert saved == list(range(7))


def test_memory_that_runs_out_in_validation_is_explained_and_the_steps_before_it_are_saved(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> SongScores:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.run.validate, "evaluate_song", too_large)
    with pytest.raises(
        OutOfMemory, match=r"ran out in validation .*--batch-size.*step 3 is saved: go on with --resume"
    ):
        start(config, tmp_path / "run")
    assert [int(path.name[5:13]) for path in (tmp_path / "run").glob("step-*")] == [3]


def test_a_killed_run_draws_songs_again_from_the_steps_that_they_arrived_at(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One song is there at the start. Another arrives at step 2, after the only checkpoint of the run that is killed."""
    monkeypatch.setattr(training.data.supply, "ENOUGH_SONGS", 1)
    real_arrived, real_step = Supply.arrived, Stepper.__call__
    config = dataclasses.replace(config, budget=Budget(steps=12), validation=Validation(validations=1))

    def arrived_at_step_2(self: Supply) -> list[DecodedSong]:
        if next(calls) < 2:
            return []
        self.thread.join()
        return real_arrived(self)

    def step_and_be_killed(self: Stepper, decoded: torch.Tensor, learning_rate: float) -> None:
        if self.state.step == 4:
            raise MemoryError("a kill")  # nobody catches it: nothing is saved
        real_step(self, decoded, learning_rate)

    calls = itertools.count()
    monkeypatch.setattr(Supply, "arrived", arrived_at_step_2)
    start(config, tmp_path / "whole")
    calls = itertools.count()
    monkeypatch.setattr(Stepper, "__call__", step_and_be_killed)
    with pytest.raises(MemoryError):
        start(config, tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("step-*"))

    monkeypatch.setattr(Stepper, "__call__", real_step)
    monkeypatch.setattr(Supply, "arrived", lambda _: [])
    start(config, tmp_path / "killed", resume=True)
    (whole, facts), (killed, again) = (read_tensors(last_checkpoint(tmp_path / run)) for run in ("whole", "killed"))
    assert again["songs"] == facts["songs"] and len(facts["songs"]) == 2
    assert not [name for name, tensor in whole.items() if not torch.equal(tensor, killed[name])]


def test_minutes_are_those_on_the_wall_with_validation(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that only steps and validations move: 1 s and 10 s of one minute, of which a validation may take a quarter."""
    now_s = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    real_step, real_best = Stepper.__call__, Validator.best

    def step(self: Stepper, *arguments: Any) -> None:
        pass_time(1)
        real_step(self, *arguments)

    def best(self: Validator, *arguments: Any) -> Scored | None:
        pass_time(10)
        began_s.append(now_s - 10)
        return real_best(self, *arguments)

    began_s: list[float] = []
    monkeypatch.setattr(Stepper, "__call__", step)
    monkeypatch.setattr(Validator, "best", best)
    monkeypatch.setattr(training.run.loop, "time", SimpleNamespace(monotonic=lambda: now_s))
    minute = dataclasses.replace(config, budget=Budget(minutes=1), validation=Validation(validations=12))
    result = start(minute, tmp_path / "run")
    assert began_s == [5, 50] and now_s == 60 and result.steps == 40
