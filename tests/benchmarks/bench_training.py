"""The cost of a training step beside other ways to take it: python -m pytest -s tests/benchmarks/bench_training.py

On a GPU where there is one. Ratios of one run on one machine; rivals take turns, so that both meet what else it does.
RESULTS.md has what was measured. Open-Unmix comes in when its package is on the path; torchaudio, which it imports for
reading files, is not needed:

    pip install --no-deps --target /tmp/openunmix openunmix && export PYTHONPATH=/tmp/openunmix
"""

import dataclasses
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from serving.model.spectrogram import Stft
from tests.steppers import state_of, stepper_of
from training.checkpoints.checkpoints import Checkpoints
from training.config import Batches, Budget, TrainConfig
from training.data.augment import samples_to_cut
from training.data.crops import Crops, prepared_batches
from training.data.decoded import decode
from training.data.song import SOURCES, Song
from training.data.stem_folder import StemFolder
from training.optimization.losses import relative_error_db
from training.optimization.precision import prepare
from training.optimization.step import Stepper
from training.presets import classic
from training.run.loop import LOG_INTERVAL_STEPS, SAVE_INTERVAL_S
from training.run.profile import profile_steps
from training.tracking.tracking import Tracker

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BATCH, CROP_S = (16, 6.0) if GPU else (4, 3.0)
STEPS, TURNS = (10, 5) if GPU else (1, 5)
SONGS, SONG_S = 4, 60

Steps = Callable[[], None]
"""Takes STEPS steps and waits for the device."""


def seconds_a_step(*rivals: Steps) -> list[float]:
    """Seconds of each rival in its fastest turn, after one that is not counted."""
    fastest = [float("inf")] * len(rivals)
    for turn in range(TURNS + 1):
        for index, steps in enumerate(rivals):
            started = time.perf_counter()
            steps()
            if turn > 0:
                fastest[index] = min(fastest[index], (time.perf_counter() - started) / STEPS)
    return fastest


@pytest.fixture
def config() -> TrainConfig:
    prepare(deterministic=False)
    return dataclasses.replace(classic("", Budget(steps=1000)), batches=Batches(BATCH, CROP_S))


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Song]:
    """Noise at the rate of the model, so that reading it takes no resampling."""
    root, rng, rate_hz = tmp_path_factory.mktemp("songs"), np.random.default_rng(0), 22_050
    songs: list[Song] = [StemFolder(f"A - {number}", root / f"A - {number}") for number in range(SONGS)]
    for song in songs:
        song.path.mkdir()
        for stem in SOURCES:
            audio = rng.integers(-8_000, 8_000, (SONG_S * rate_hz, 2), dtype=np.int16)
            soundfile.write(song.path / f"{stem}.wav", audio, rate_hz)
    return songs


@pytest.fixture
def crops(config: TrainConfig, songs: list[Song], tmp_path_factory: pytest.TempPathFactory) -> Crops:
    cache = tmp_path_factory.getbasetemp() / "decoded"
    decoded = decode(songs, config.model.audio, SOURCES, cache)
    return Crops(decoded, BATCH, samples_to_cut(config.crop_samples), seed=0)


@pytest.fixture
def stepper(config: TrainConfig) -> Stepper:
    return stepper_of(config, DEVICE)


def steps_of(stepper: Stepper, crops: Crops) -> Steps:
    upcoming = prepared_batches(crops, stepper.state.step, pin_memory=GPU)
    stepper.fit(crops.batch(stepper.state.step))

    def steps() -> None:
        for _ in range(STEPS):
            stepper(next(upcoming), 1e-3)
        stepper.report()

    return steps


def plain_steps(config: TrainConfig, songs: list[Song]) -> Steps:
    """The same network in a loop as one writes it first: no augmentation, no averages, no threads, no mixed precision."""
    network = state_of(config, torch.device("cpu")).network.to(memory_format=torch.contiguous_format).to(DEVICE)
    # The network itself asks for channels-last order before its first level.
    network.encoder[0].register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous())
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, foreach=False, fused=False)
    stft = Stft(config.model.stft).to(DEVICE)
    rng = np.random.default_rng(0)
    rate_hz = config.model.audio.sample_rate_hz

    def excerpt(stem: str) -> np.ndarray:
        start_s, path = rng.uniform(0, SONG_S - CROP_S), songs[rng.integers(SONGS)].path / f"{stem}.wav"
        audio, _ = soundfile.read(path, round(CROP_S * rate_hz), round(start_s * rate_hz), dtype="float32")
        return audio.mean(axis=1)

    def steps() -> None:
        for _ in range(STEPS):
            stems = np.stack([[excerpt(stem) for stem in SOURCES] for _ in range(BATCH)])
            voices_and_rest = torch.from_numpy(np.stack([stems[:, 0], stems[:, 1:].sum(axis=1)], axis=1)).to(DEVICE)
            references = stft(voices_and_rest[:, :, None])
            loss = relative_error_db(network(references.sum(dim=1)), references)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            loss.item()

    return steps


def test_a_step_beside_a_plain_loop_of_the_same_network(
    config: TrainConfig, stepper: Stepper, crops: Crops, songs: list[Song]
) -> None:
    if GPU:
        torch.set_float32_matmul_precision("highest")  # what a plain loop has
    ours_s, plain_s = seconds_a_step(steps_of(stepper, crops), plain_steps(config, songs))
    heard_s = BATCH * CROP_S
    print(
        f"\n{DEVICE}, {torch.get_num_threads()} threads, {stepper.state.precision.name}, {BATCH} x {CROP_S:g} s: "
        f"{heard_s / ours_s:.1f} seconds of audio a second, {plain_s / ours_s:.2f} times a plain loop's {heard_s / plain_s:.1f}"
    )
    assert plain_s > (4 if GPU else 1.5) * ours_s


def test_a_step_hardly_waits_for_its_batch(stepper: Stepper, crops: Crops) -> None:
    profiled = profile_steps(stepper, crops, 50 if GPU else 8, "classic")
    print(f"\n{profiled.table()}")
    assert profiled.data_wait < 0.02


def test_saving_and_logging_take_a_hundredth_of_a_run(stepper: Stepper, crops: Crops, tmp_path: Path) -> None:
    """By what the run waits for: hashing, mirroring and sending go on in the background."""
    (step_s,) = seconds_a_step(steps_of(stepper, crops))
    checkpoints = Checkpoints(tmp_path, None, keep=3)
    saves_s = []
    for step in range(3):
        started = time.perf_counter()
        checkpoints.save(step, stepper.state.write)
        saves_s.append(time.perf_counter() - started)
        checkpoints.newest()  # waits for what goes on in the background, as it is over long before the next save
    checkpoints.close(timeout_s=0)
    save_s = statistics.median(saves_s)
    numbers = {"loss": 1.0, "learning_rate": 1e-3, "skipped": 0, "audio_s_per_s": 1.0}
    with Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path, None) as tracker:
        started = time.perf_counter()
        for step in range(100):
            tracker.numbers(numbers, step)
        log_s = (time.perf_counter() - started) / 100

    saving, logging = save_s / SAVE_INTERVAL_S, log_s / (LOG_INTERVAL_STEPS * step_s)
    print(
        f"\na save stops the run for {1e3 * save_s:.0f} ms every {SAVE_INTERVAL_S} s, a report for {1e3 * log_s:.2f} ms "
        f"every {LOG_INTERVAL_STEPS} steps: {saving + logging:.3%} of the run"
    )
    assert saving + logging < 0.01


def open_unmix_steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The step of Open-Unmix's own training script with its own settings, but for the size of a batch: 44.1 kHz, stereo,
    4096/1024, three LSTM layers, one target. Excerpts are in memory: its loader costs nothing here."""
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))
    model = pytest.importorskip("openunmix.model", reason="openunmix is not on the path, see the head of this file")
    transforms = pytest.importorskip("openunmix.transforms")
    utils = pytest.importorskip("openunmix.utils")
    stft, _ = transforms.make_filterbanks(n_fft=4096, n_hop=1024, sample_rate=44_100)
    encoder = nn.Sequential(stft, model.ComplexNorm(mono=False)).to(DEVICE)
    max_bin = utils.bandwidth_to_max_bin(44_100, 4096, 16_000)
    unmix = model.OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=512, max_bin=max_bin).to(DEVICE).train()
    optimizer = torch.optim.Adam(unmix.parameters(), lr=1e-3, weight_decay=1e-5)
    mixture, target = torch.rand(2, BATCH, 2, round(CROP_S * 44_100)) - 0.5

    def steps() -> None:
        for _ in range(STEPS):
            x, y = mixture.to(DEVICE), target.to(DEVICE)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(unmix(encoder(x)), encoder(y))
            loss.backward()
            optimizer.step()
            loss.item()

    return steps


def test_a_step_beside_one_of_open_unmix(stepper: Stepper, crops: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = open_unmix_steps(monkeypatch)
    ours_s, theirs_s = seconds_a_step(steps_of(stepper, crops), theirs)
    heard_s = BATCH * CROP_S
    print(
        f"\n{heard_s / ours_s:.1f} seconds of audio a second for two stems at 22,050 Hz, Open-Unmix "
        f"{heard_s / theirs_s:.1f} for one target in 44,100 Hz stereo: {theirs_s / ours_s:.2f} times its rate"
    )
    assert ours_s < 10 * theirs_s


def test_a_compiled_step_beside_one_that_is_not(config: TrainConfig, stepper: Stepper, crops: Crops) -> None:
    compiled = dataclasses.replace(config, compile=True)
    other = stepper_of(compiled, DEVICE)
    started = time.perf_counter()
    compiled_steps = steps_of(other, crops)
    if other.forward is other.state.network:
        pytest.skip("torch.compile does not work here")
    started_s = time.perf_counter() - started
    plain_s, compiled_s = seconds_a_step(steps_of(stepper, crops), compiled_steps)
    print(f"\n--compile: {plain_s / compiled_s:.2f} times the steps a second, {started_s:.0f} s before the first")
    assert plain_s > 0.5 * compiled_s
