"""A run, from a data set to a model archive; reads top to bottom.

Axes: b batch, s stem, c channel, n sample.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving.separator import Separator
from serving.spectrogram import Stft
from training.augment import augment
from training.checkpoint import RunState
from training.config import TrainConfig, git_commit, tracking_uri
from training.crops import Crops, batches
from training.decoded import decode
from training.errors import ConfigError, TrainingError
from training.evaluate import Evaluation, evaluate, middle
from training.export import export
from training.interrupt import StopRequest, stop_requests
from training.losses import relative_error_db
from training.musdb18 import DataSet, Song, open_dataset
from training.plots import spectrogram_figure
from training.precision import Precision
from training.progress import ProgressBar, run_bar
from training.stems import DECODED_STEMS, model_stems
from training.tracking import Tracker

SAVE_INTERVAL_S = 300
LOG_INTERVAL_STEPS = 10
LOGGED_EXCERPT_S = 10


@dataclass(frozen=True)
class Result:
    """What a run came to. `stopped_by` is the signal that ended it early: then there is no archive, and `--resume` goes on."""

    run_id: str
    steps: int
    best_usdr: float
    archive: str | None
    stopped_by: int | None


def train(
    config: TrainConfig, run_dir: Path, cache: Path, device: torch.device, resume: bool, publish: str | None
) -> Result:
    """Train, keep the weights that score best in validation, export them; a copy of the archive goes to `publish`.

    The run folder holds config.json, checkpoint.safetensors, best.safetensors and, at the end, <preset>.mar; `cache` holds
    copies of remote data and the decoded songs, for any number of runs.
    Raises TrainingError or StemwrightError with one sentence on what is wrong.
    """
    checkpoint = run_dir / "checkpoint.safetensors"
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{run_dir} holds a run already: go on with --resume, or name another --run-dir")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")

    data = open_dataset(config.data, cache / "data", config.validation.valid_share, ProgressBar())
    songs = decode(data.train, config.model.audio, DECODED_STEMS, cache / "decoded", ProgressBar())
    crop_samples = round(config.batches.crop_s * config.model.audio.sample_rate_hz)
    crops = Crops(songs, config.batches.batch_size, crop_samples, config.seed)

    state = RunState(config, device)
    if resume:
        state.load(checkpoint)

    with Tracker.open(tracking_uri(run_dir), run_dir, state.run_id) as tracker, stop_requests() as stop:
        if state.run_id is None:
            state.run_id = tracker.run_id
            tracker.describe(config, {"device": name_of(device), "commit": git_commit(), "data.digest": data.digest})
            tracker.data(config.data, data.digest)
        run_steps(config, run_dir, device, data, crops, state, tracker, stop)
        archive = None
        if stop.signal is None:
            archive = export(run_dir, str(run_dir))
            tracker.archive(Path(archive))
            if publish is not None:
                archive = export(run_dir, publish)
        return Result(state.run_id, state.step, state.best_usdr, archive, stop.signal)


def run_steps(
    config: TrainConfig,
    run_dir: Path,
    device: torch.device,
    data: DataSet,
    crops: Crops,
    state: RunState,
    tracker: Tracker,
    stop: StopRequest,
) -> None:
    """Validate, save, stop, step, log; until the budget is spent or a stop is asked for."""
    stft, precision = Stft(config.model.stft).to(device), Precision.of(device)
    upcoming = batches(crops, state.step, pin_memory=device.type == "cuda")
    audio_s_per_s = Rate(config.batches.batch_size * config.batches.crop_s)
    last_save = time.monotonic()
    bar = run_bar(config.preset)
    while True:
        progress = config.budget.progress(state.step, state.trained_s)
        due = progress * config.validation.validations >= state.validations + 1
        if due:
            state.validations = math.floor(progress * config.validation.validations)
            evaluation = validate(config, state, data.valid, device, tracker)
            if evaluation.usdr > state.best_usdr:
                state.best_usdr = evaluation.usdr
                state.save_averaged(run_dir / "best.safetensors", origin(config, state, data, evaluation))
        if due or stop.signal is not None or time.monotonic() - last_save > SAVE_INTERVAL_S:
            state.save(run_dir / "checkpoint.safetensors")
            last_save = time.monotonic()
        if progress >= 1 or stop.signal is not None:
            bar.update(progress - bar.n)
            bar.close()
            return

        started = time.monotonic()
        learning_rate = config.optimization.learning_rate * schedule(progress, config.optimization.warmup)
        loss = step(config, state, next(upcoming), learning_rate, stft, precision)
        state.step += 1
        if state.step % LOG_INTERVAL_STEPS == 0:
            numbers = {"loss": float(loss), "learning_rate": learning_rate, "audio_s_per_s": audio_s_per_s(state.step)}
            if not math.isfinite(numbers["loss"]):
                raise TrainingError(
                    f"the loss at step {state.step} is not finite: go on from the last checkpoint with --resume "
                    f"and a --learning-rate below {config.optimization.learning_rate:g}"
                )
            tracker.numbers(numbers, state.step)
            news = "step {}, loss {loss:.2f}, {audio_s_per_s:.0f} audio s/s, best {:.2f} dB"
            bar.set_postfix_str(news.format(state.step, state.best_usdr, **numbers), refresh=False)
            bar.update(progress - bar.n)
        state.trained_s += time.monotonic() - started


def step(
    config: TrainConfig, state: RunState, decoded: Tensor, learning_rate: float, stft: Stft, precision: Precision
) -> Tensor:
    """One step of the optimizer on int16 excerpts (b, s, 2, n); the loss, still on the device."""
    device = stft.window.device
    generator = torch.Generator(device).manual_seed(hash((config.seed, state.step)) % 2**63)
    stems = augment(decoded.to(device, non_blocking=True) / 32768.0, config.model.audio.channels, generator)
    references = stft(model_stems(stems, config.model))
    mixture = references.sum(dim=1)
    with precision.autocast(device):
        estimates = state.network.train()(mixture)
    loss = relative_error_db(estimates, references)

    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.scaler.scale(loss).backward()
    state.scaler.unscale_(state.optimizer)
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.optimization.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    state.averaged.update_parameters(state.network)
    return loss.detach()


def schedule(progress: float, warmup: float) -> float:
    """The share of the peak learning rate: linear from 0 over the warm-up, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def validate(
    config: TrainConfig, state: RunState, songs: Sequence[Song], device: torch.device, tracker: Tracker
) -> Evaluation:
    """Score the averaged weights on the validation songs; log the scores, and a picture and sound of the first song."""
    separator = Separator(config.model, state.averaged.module, device)
    evaluation = evaluate(separator, songs, progress=False, excerpt_s=config.validation.valid_excerpt_s)
    for stem, score in evaluation.stems.items():
        tracker.numbers({f"valid.{stem}.csdr_db": score.csdr_db, f"valid.{stem}.usdr_db": score.usdr_db}, state.step)

    references, rate_hz = songs[0].read(["vocals", "mixture"])
    target, mixture = middle(references, LOGGED_EXCERPT_S * rate_hz)
    estimates = separator.separate(mixture, rate_hz)
    tracker.picture(
        "spectrogram", spectrogram_figure(mixture, target, estimates[config.model.stems[0]], rate_hz), state.step
    )
    tracker.audio({"mixture": mixture, **estimates}, rate_hz, state.step)
    return evaluation


def origin(config: TrainConfig, state: RunState, data: DataSet, evaluation: Evaluation) -> dict[str, Any]:
    """Where weights come from, as their archive will say."""
    return {
        "preset": config.preset,
        "run_id": state.run_id,
        "step": state.step,
        "commit": git_commit(),
        "data": config.data,
        "data_digest": data.digest,
        "validation": {stem: score.to_json() for stem, score in evaluation.stems.items()},
    }


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


class Rate:
    """Amount per second since the last call, for a counter that grows."""

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self.last: tuple[int, float] | None = None

    def __call__(self, count: int) -> float:
        now = time.monotonic()
        last, self.last = self.last, (count, now)
        return (count - last[0]) * self.amount / (now - last[1]) if last else 0.0
