"""SIGTERM at any moment of a run: it saves, exits with 143, and goes on as if it had never been stopped."""

import importlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import training.run.signals
from tests.bad_network import BadNetwork, Fault, Request
from tests.pictures import draw_no_spectrograms
from tests.processes import forked
from tests.s3 import bucket_fixture  # noqa: F401
from tests.stores import new_store
from tests.tiny import tiny_run
from training.checkpoints.tensor_file import read_tensors
from training.config import TrainConfig
from training.demo.songs import write_songs
from training.optimization.machine import Machine
from training.run.signals import exit_on_signal
from training.run.train import Places, train

pytestmark = pytest.mark.slow

STEPS = 6
WITHIN_S = 8
"""Docker waits ten."""

# The function that never returns, and the number of calls that do.
HANGS = {
    "decoding": ("training.run.train", "decode", 0),
    "description": ("training.run.train", "show_data", 0),
    "a step": ("training.optimization.step", "augment", 3),  # one of them to see if a batch fits
    "validation": ("training.run.validate", "evaluate_song", 0),
    "a picture": ("training.run.showcase", "spectrogram_figure", 0),
    "export": ("training.run.train", "export", 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    new_store(folder / "mlflow.db")
    write_songs(folder / "songs", train=2, test=1, seconds=1.5, seed=0)
    return folder


@pytest.fixture
def config(folder: Path) -> TrainConfig:
    songs = folder / "songs"
    return tiny_run(songs, steps=STEPS, batch_size=1, crop_s=0.3, validations=2, valid_excerpt_s=1.2)


def run(config: TrainConfig, run_dir: Path, hang: str | None = None) -> None:
    """A process of its own, as `stemwright train` is one."""
    draw_no_spectrograms()
    signal.signal(signal.SIGTERM, exit_on_signal)
    if hang is not None:
        training.run.signals.PATIENCE_S = 0.5
        module, name, returning = HANGS[hang]
        original, calls = getattr(importlib.import_module(module), name), itertools.count()

        def hanging(*arguments: object, **options: object) -> object:
            if next(calls) < returning:
                return original(*arguments, **options)
            (run_dir / "hangs").touch()
            while True:
                time.sleep(60)

        setattr(importlib.import_module(module), name, hanging)
    places = Places(run_dir, run_dir.parent / "cache", publish=str(run_dir / "published.mar"), overwrite=True)
    result = train(config, places, Machine(torch.device("cpu")), resume=True, wait=False)
    raise SystemExit(0 if result.stopped_by is None else 128 + result.stopped_by)


def finish(config: TrainConfig, run_dir: Path) -> dict[str, torch.Tensor]:
    """The tensors that a run ends with, and those of its best weights."""
    process = forked(run, config, run_dir)
    process.join()
    assert process.exitcode == 0
    state, facts = read_tensors(max(run_dir.glob("step-*.safetensors")))
    assert facts["step"] == STEPS and (run_dir / "published.mar").exists()
    best, _ = read_tensors(run_dir / "best.safetensors")
    return {**state, **{f"best/{name}": tensor for name, tensor in best.items()}}


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """The end of a run that nobody stops, once there is one."""
    return {}


def assert_as_if_never_stopped(config: TrainConfig, run_dir: Path, whole: dict[str, torch.Tensor]) -> None:
    if not whole:
        whole |= finish(config, run_dir.parent / "whole")
    again = finish(config, run_dir)
    assert again.keys() == whole.keys()
    assert not [name for name, tensor in whole.items() if not torch.equal(tensor, again[name])]


@pytest.mark.parametrize("hang", HANGS)
def test_what_never_returns_does_not_keep_a_run_from_stopping(
    folder: Path, config: TrainConfig, whole: dict[str, torch.Tensor], hang: str
) -> None:
    run_dir = folder / hang.replace(" ", "-")
    process = forked(run, config, run_dir, hang)
    while not (run_dir / "hangs").exists():
        assert process.exitcode is None
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(WITHIN_S)
    assert process.exitcode == 128 + signal.SIGTERM
    saved = sorted(int(path.name[5:13]) for path in run_dir.glob("step-*.safetensors"))
    assert saved[-1:] == {"decoding": [], "description": [], "a step": [2], "validation": [3], "a picture": [3]}.get(
        hang, [STEPS]
    )
    if hang != "decoding":  # which comes before the run in MLflow
        assert '"op": "end", "status": "KILLED"' in (run_dir / "spool" / "journal.jsonl").read_text()
    assert_as_if_never_stopped(config, run_dir, whole)


def run_on_store(config: TrainConfig, run_dir: Path, environment: dict[str, str]) -> None:
    """The same with a mirror and a place to publish in a bucket."""
    draw_no_spectrograms()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, exit_on_signal)
    store = {"checkpoint_uri": "s3://a-bucket/checkpoints", "publish": "s3://a-bucket/published.mar"}
    places = Places(run_dir, run_dir.parent / "cache", **store, overwrite=True)
    result = train(config, places, Machine(torch.device("cpu")), resume=True, wait=False)
    raise SystemExit(0 if result.stopped_by is None else 128 + result.stopped_by)


@pytest.mark.parametrize("what", ["published.mar", "step-"])
def test_a_store_that_hangs_does_not_keep_a_run_from_stopping(
    bucket: Path, folder: Path, config: TrainConfig, what: str
) -> None:
    run_dir = folder / f"hanging-{what}"
    hanging = threading.Event()

    def fault(request: Request) -> Fault | None:
        if request.method != "PUT" or what not in request.path or hanging.is_set():
            return None
        hanging.set()
        return Fault(silence_s=60)

    network = BadNetwork(os.environ["AWS_ENDPOINT_URL"], fault)
    with network.serving() as address:
        environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        environment["AWS_ENDPOINT_URL"] = address
        process = forked(run_on_store, config, run_dir, environment)
        assert hanging.wait(120) and process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(WITHIN_S)
        assert process.exitcode == 128 + signal.SIGTERM
        assert list(run_dir.glob("step-*.safetensors"))

        again = forked(run_on_store, config, run_dir, environment)
        again.join(120)
        assert again.exitcode == 0
    stored = {path.name for path in bucket.rglob("*") if path.is_file()}
    assert "published.mar" in stored and any(name.startswith(f"step-{STEPS:08d}") for name in stored)


def test_a_run_stops_at_random_moments(
    folder: Path, config: TrainConfig, whole: dict[str, torch.Tensor], times: Callable[[int, int], int]
) -> None:
    rng = random.Random(0)
    began = time.monotonic()
    finish(config, folder / "timed")
    whole_s = time.monotonic() - began
    for moment in range(times(2, 30)):
        run_dir = folder / f"moment-{moment}"
        process = forked(run, config, run_dir)
        process.join(rng.uniform(0.2, 1) * whole_s)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
            process.join(WITHIN_S)
            done = (run_dir / "published.mar").exists()  # the signal may come when the work is over
            assert process.exitcode == 128 + signal.SIGTERM or (process.exitcode == 0 and done)
        assert_as_if_never_stopped(config, run_dir, whole)
