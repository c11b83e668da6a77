"""A run that is killed at any moment, again and again, ends as one that was left alone."""

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import mlflow
import pytest
import torch

import training.run.loop
from tests.pictures import draw_no_spectrograms
from tests.processes import forked
from tests.stores import new_store
from tests.tiny import tiny_run
from training.checkpoints.tensor_file import read_tensors
from training.config import TrainConfig
from training.demo.songs import write_songs
from training.optimization.machine import Machine
from training.run.train import Places, train

pytestmark = pytest.mark.slow

STEPS = 20


def run(config: TrainConfig, run_dir: Path) -> None:
    """In a process of its own: save and log after every step."""
    draw_no_spectrograms()
    training.run.loop.SAVE_INTERVAL_S, training.run.loop.LOG_INTERVAL_STEPS = 0, 1
    train(config, Places(run_dir, run_dir.parent / "cache"), Machine(torch.device("cpu")), resume=True, wait=True)


def test_killed_at_random_moments_and_resumed_it_has_the_weights_and_the_log_of_an_undisturbed_run(
    tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    write_songs(tmp_path / "songs", train=3, test=1, seconds=2, seed=0)
    songs = tmp_path / "songs"
    new_store(tmp_path / "mlflow.db")
    config = tiny_run(songs, steps=STEPS, batch_size=2, crop_s=0.3, validations=2, valid_excerpt_s=1.5)
    process = forked(run, config, tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    assert final_state(tmp_path / "whole")

    rng, wanted = random.Random(0), times(2, 20)
    for kill in range(wanted):
        process = forked(run, config, tmp_path / "killed")
        wait_for_step(tmp_path / "killed", STEPS * kill // wanted, process)
        process.join(rng.uniform(0, 0.5))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), "a fast machine may be ready before"
    process = forked(run, config, tmp_path / "killed")
    process.join()
    assert process.exitcode == 0

    whole, killed = final_state(tmp_path / "whole"), final_state(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert not [name for name, tensor in whole.items() if not torch.equal(tensor, killed[name])]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run_id,) = [r.info.run_id for r in client.search_runs(["1"], "attributes.run_name = 'killed'")]
    assert sorted(m.step for m in client.get_metric_history(run_id, "train/loss")) == list(range(1, STEPS + 1))


def wait_for_step(run_dir: Path, step: int, process: BaseProcess) -> None:
    """Until the run has saved a step later than this one."""
    while not any(int(path.name[5:13]) > step for path in run_dir.glob("step-*.safetensors")):
        assert process.exitcode is None
        time.sleep(0.01)


def final_state(run_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors of the last checkpoint and of the best weights."""
    state, facts = read_tensors(max(run_dir.glob("step-*.safetensors")))
    assert facts["step"] == STEPS
    best, _ = read_tensors(run_dir / "best.safetensors")
    return {**state, **{f"best/{name}": tensor for name, tensor in best.items()}}
