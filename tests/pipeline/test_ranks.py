"""Runs of two processes beside the same run in one."""

import dataclasses
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import mlflow
import pytest
import torch

import training.run.loop
import training.tracking.tracking
from tests.pictures import draw_no_spectrograms
from tests.processes import forked
from tests.stores import new_store
from tests.tiny import tiny_run
from training.config import Budget, Optimization, TrainConfig
from training.demo.local_s3 import free_port
from training.demo.songs import write_songs
from training.errors import RankLost
from training.optimization.machine import Machine
from training.optimization.ranks import Ranks
from training.optimization.state import RunState
from training.run.train import Places, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "runs").mkdir()
    new_store(folder / "runs" / "mlflow.db")
    write_songs(folder / "songs", train=4, test=1, seconds=2, seed=0)
    return folder


@pytest.fixture
def config(folder: Path) -> TrainConfig:
    return tiny_run(
        folder / "songs",
        steps=10,
        batch_size=4,
        crop_s=0.5,
        validations=1,
        valid_excerpt_s=1,
        optimization=Optimization(
            learning_rate=1e-4
        ),  # Adam makes much of rounding where a gradient is next to nothing
        precision="float32",
    )


write = RunState.write


def slow_write(state: RunState, path: Path) -> None:
    time.sleep(0.3)
    write(state, path)


def run(config: TrainConfig, run_dir: Path, rank: int, world_size: int, port: int) -> None:
    """One rank, told what torchrun tells its workers."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    draw_no_spectrograms()
    training.run.loop.LOG_INTERVAL_STEPS = 1
    training.tracking.tracking.rounded = float  # type: ignore[assignment]  # all digits of a loss
    RunState.write = slow_write  # type: ignore[method-assign]  # the rank that does not write is done long before
    places = Places(run_dir, run_dir.parent.parent / "cache")
    try:
        train(config, places, Machine(torch.device("cpu"), Ranks(rank, world_size, rank)), resume=True, wait=True)
    except RankLost as error:
        (run_dir / "lost").write_text(str(error))
        raise SystemExit(1) from error


def start(config: TrainConfig, run_dir: Path, world_size: int) -> list[BaseProcess]:
    port = free_port()
    return [forked(run, config, run_dir, rank, world_size, port) for rank in range(world_size)]


def finish(ranks: list[BaseProcess]) -> None:
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0


def losses(folder: Path, run: str) -> dict[int, float]:
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    (found,) = client.search_runs(["1"], f"attributes.run_name = '{run}'")
    return {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "train/loss")}


def test_two_ranks_take_the_steps_of_one_and_either_goes_on_for_the_other(folder: Path, config: TrainConfig) -> None:
    finish(start(config, folder / "runs" / "one", 1))
    finish(start(config, folder / "runs" / "two", 2))
    one, two = losses(folder, "one"), losses(folder, "two")
    # The ranks add up in another order: a loss of -4.5 in float32 has its last digit at 4.8e-7.
    assert list(two) == list(range(1, 11)) and two == pytest.approx(one, abs=5e-6)
    longer = dataclasses.replace(config, budget=Budget(steps=11))
    finish(start(longer, folder / "runs" / "two", 1))
    finish(start(longer, folder / "runs" / "one", 2))
    assert list(losses(folder, "two")) == list(losses(folder, "one")) == list(range(1, 12))


def test_the_loss_of_a_rank_ends_the_run_with_a_checkpoint_to_go_on_from(folder: Path, config: TrainConfig) -> None:
    run_dir = folder / "runs" / "lost"
    endless = dataclasses.replace(config, budget=Budget(steps=10**6))
    first, second = start(endless, run_dir, 2)
    while not (run_dir / "spool").exists() or '"train/loss"' not in (run_dir / "spool" / "journal.jsonl").read_text():
        assert first.exitcode is None
        time.sleep(0.05)
    assert second.pid is not None
    os.kill(second.pid, signal.SIGKILL)
    first.join(60)
    assert first.exitcode == 1
    message = (run_dir / "lost").read_text()
    (saved,) = run_dir.glob("step-*.safetensors")
    assert message.startswith("another rank is gone") and f"step {int(saved.name[5:13])} is saved" in message
    assert "--resume" in message
