"""The profile of a training step: what is timed, what is counted, what is advised."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training.run.profile
from serving.model.spec import ModelSpec
from tests.data_sets import write_data_set
from tests.steppers import stepper_of
from tests.tiny import tiny_run
from training.__main__ import main
from training.config import TrainConfig
from training.data.crops import Crops
from training.data.decoded import DecodedSong
from training.presets import PRESETS
from training.run.profile import Profile, Stopwatch, matrix_rate, profile_steps, step_flop

pytestmark = pytest.mark.slow

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PARTS = ("data wait", "to device", "augment, STFT", "forward", "backward", "optimizer", "rest")


@pytest.fixture
def config() -> TrainConfig:
    return tiny_run("songs", steps=4, batch_size=2, crop_s=0.5, validations=1)


@pytest.fixture
def crops(tmp_path: Path) -> Crops:
    samples = np.random.default_rng(0).integers(-(2**14), 2**14, (4, 2, 22_050), dtype=np.int16)
    np.save(tmp_path / "song.npy", samples)
    return Crops([DecodedSong("A - 1", tmp_path / "song.npy", clipped=0)], 2, 11_025, seed=0)


@pytest.fixture
def usual(config: TrainConfig) -> Profile:
    """A batch of 2 x 0.5 s that a GPU with little memory left takes 0.1 s for, at half its matrix rate."""
    return Profile(
        preset="classic",
        batches=config.batches,
        compiled=False,
        device=GPU,
        precision="bfloat16",
        world_size=1,
        pieces=1,
        parts_s={"data wait": 0.001, "forward": 0.04, "backward": 0.08, "rest": 0.0},
        step_s=0.1,
        exchange_s=0.001,
        data_wait_s=0.001,
        flop=50 * 10**9,
        matrix_flop_per_s=1e12,
        peak_bytes=6 * 10**9,
        memory_bytes=8 * 10**9,
    )


def test_the_command_shows_every_part_and_what_to_change(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "classic", lambda data, budget: dataclasses.replace(config, data=data, budget=budget))
    data = write_data_set(tmp_path / "songs", train=2)
    flags = ["--steps", "2", "--batch-size", "3", "--crop-s", "0.1", "--device", "cpu", "--precision", "float32"]

    assert main(["profile", "--data", str(data), "--cache", str(tmp_path / "cache"), *flags]) == 0

    title, _, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "classic on cpu in float32: 3 excerpts of 0.1 s"
    assert [row[:15].strip() for row in rows[: len(PARTS)]] == [*PARTS]
    assert rows[-1].startswith("The ")


def test_the_parts_make_up_the_step(config: TrainConfig, crops: Crops) -> None:
    stepper = stepper_of(config, CPU)
    started = time.perf_counter()

    profiled = profile_steps(stepper, crops, 4, "classic")

    assert tuple(profiled.parts_s) == PARTS
    assert all(part_s > 0 for part_s in profiled.parts_s.values())
    assert profiled.parts_s["backward"] > profiled.parts_s["to device"]
    assert 4 * (profiled.step_s + sum(profiled.parts_s.values())) < time.perf_counter() - started
    assert profiled.memory_bytes > profiled.peak_bytes > 10**7


def test_batches_that_come_too_late_are_told_from_slow_steps(
    config: TrainConfig, crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, late_s = crops.batch, 1.5

    def slow(step: int, pin_memory: bool = False) -> Tensor:
        time.sleep(late_s)
        return quick(step, pin_memory)

    monkeypatch.setattr(crops, "batch", slow)

    profiled = profile_steps(stepper_of(config, CPU), crops, 2, "classic")

    assert 0.1 < profiled.data_wait < 1
    assert profiled.parts_s["forward"] < late_s  # the wait is none of the network's time, however busy the machine
    assert "--cache" in profiled.advice()


def test_a_part_is_timed_from_a_device_at_rest_to_a_device_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, pending_s = 0.0, 0.0

    def wait() -> None:
        nonlocal now_s, pending_s
        now_s, pending_s = now_s + pending_s, 0.0

    monkeypatch.setattr(training.run.profile, "perf_counter", lambda: now_s)
    watch = Stopwatch(wait)
    pending_s = 4.0
    with watch("after other work"):
        pass
    for _ in range(2):
        with watch("work"):
            pending_s = 8.0

    assert watch.seconds == {"after other work": 0, "work": 16}


class Remembering(nn.Module):
    """An LSTM and a projection: a network whose products can be counted by hand."""

    def __init__(self, bins: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(bins, units, batch_first=True)
        self.expand = nn.Linear(units, bins)

    def forward(self, mixture: Tensor) -> Tensor:
        remembered, _ = self.lstm(mixture.abs()[:, 0].transpose(1, 2))
        vocals = self.expand(remembered).transpose(1, 2)[:, None] * mixture
        return torch.stack([vocals, mixture - vocals], dim=1)


def test_every_product_of_an_lstm_is_counted(tiny_spec: ModelSpec) -> None:
    bins, units, batch, frames = tiny_spec.stft.bins, 6, 3, 11
    inputs, recurrent, output = 4 * units * bins, 4 * units * units, units * bins

    counted = step_flop(Remembering(bins, units), tiny_spec, batch, crop_samples=10 * tiny_spec.stft.hop_samples)

    # A product forwards and two backwards, but for the mixture and the first state, which need no gradient.
    assert counted == 2 * batch * (frames * (2 * inputs + 3 * recurrent + 3 * output) - recurrent)


def test_the_matrix_rate_is_that_of_the_device() -> None:
    assert 1e9 < matrix_rate(CPU, torch.float32) < 1e14


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "arithmetic is the limit"),
        ({"data_wait_s": 0.021}, "put --cache on a faster disk"),
        ({"pieces": 2}, "a --batch-size of 1."),
        ({"exchange_s": 0.05}, "takes 50% of a step: a larger --batch-size"),
        ({"flop": 10**9, "peak_bytes": 10**9}, "1% of its matrix rate and has memory left: take --batch-size 4"),
        ({"flop": 10**9}, "try --compile"),
        ({"flop": 10**9, "device": CPU}, "train on a GPU"),
    ],
)
def test_advice_names_the_flag_that_helps(usual: Profile, changes: dict[str, object], advice: str) -> None:
    assert advice in dataclasses.replace(usual, **changes).advice()


def test_what_no_flag_helps_gets_no_flag(usual: Profile) -> None:
    compiled = dataclasses.replace(usual, flop=10**9, compiled=True)
    assert "--" not in compiled.advice()


def test_the_table_has_speeds_of_the_step_in_training(usual: Profile) -> None:
    table = usual.table()
    assert "20.0 crops a second, 10.0 seconds of audio a second" in table
    assert "500.0 GFLOP/s, 50% of the 1000.0" in table
    assert "6.00 GB at most, of 8.0" in table
    assert "1.0% of it waiting for data" in table
