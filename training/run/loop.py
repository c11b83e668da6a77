"""A run in progress: validate, save, stop, step, log; until the budget is spent, validation stalls or a stop is asked for."""

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from serving.errors import StemwrightError
from serving.version import commit
from training.checkpoints.checkpoints import Checkpoints
from training.checkpoints.tensor_file import write_tensors
from training.config import TrainConfig
from training.data.crops import AHEAD, Crops, batches
from training.data.data_set import DataSet
from training.data.supply import Supply
from training.errors import CheckpointError, TrainingError
from training.progress import run_bar, say
from training.run.ranks import Ranks
from training.run.schedule import schedule
from training.run.signals import StopRequest
from training.run.state import RunState
from training.run.step import Stepper
from training.run.validate import Scored, show, validate
from training.tracking.tracking import Tracker

SAVE_INTERVAL_S = 300
LOG_INTERVAL_STEPS = 10


@dataclass
class Run:
    """Everything that the loop works with. All ranks run it in step; only the first has a tracker, and writes."""

    config: TrainConfig
    run_dir: Path
    device: torch.device
    ranks: Ranks
    data: DataSet
    supply: Supply
    crops: Crops
    state: RunState
    checkpoints: Checkpoints
    tracker: Tracker | None
    stop: StopRequest
    saved_at: float = field(default_factory=time.monotonic)

    def go(self) -> None:
        """Run to the end. What ends it early, memory or a rank that is gone, leaves a checkpoint to go on from."""
        self.log_songs()
        try:
            self.steps()
        except CheckpointError:
            raise
        except (TrainingError, StemwrightError) as error:
            self.save()
            message = f"{error}; step {self.state.step} is saved: go on with --resume"
            raise type(error)(message) from error

    def steps(self) -> None:
        config, state = self.config, self.state
        stepper = Stepper(config, state, self.device, self.ranks)
        stepper.fit(self.crops.batch(state.step))
        upcoming = batches(self.crops, state.step, pin_memory=self.device.type == "cuda")
        audio_s_per_s = Rate(config.batches.batch_size * config.batches.crop_s)
        with closing(upcoming), closing(run_bar(config.preset, self.ranks.first)) as bar:
            while not self.finished():
                started = time.monotonic()
                self.take_songs()
                rate = config.optimization.learning_rate * schedule(self.progress, config.optimization.warmup)
                stepper(next(upcoming), rate)
                if state.step % LOG_INTERVAL_STEPS == 0:
                    report = stepper.report()
                    numbers = {"loss": report.loss, "learning_rate": rate, "skipped": len(report.skipped)}
                    numbers["audio_s_per_s"] = audio_s_per_s(state.step)
                    self.log(numbers, report.skipped)
                    news = "step {}, loss {loss:.2f}, {audio_s_per_s:.0f} audio s/s, best {:.2f} dB"
                    bar.set_postfix_str(news.format(state.step, state.best_usdr, **numbers), refresh=False)
                    bar.update(self.progress - bar.n)
                state.trained_s += time.monotonic() - started

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, 0..1."""
        return self.config.budget.progress(self.state.step, self.state.trained_s)

    def finished(self) -> bool:
        """Whether the run ends here, on all ranks alike. Validates and saves when it is time to, and at the end."""
        state, validation = self.state, self.config.validation
        state.trained_s, signal = self.ranks.largest(state.trained_s, self.stop.signal or 0)
        stopped = signal > 0  # as all ranks know it: a signal that comes from here on waits for the next time
        if stopped:
            self.stop.signal = int(signal)
        due = self.progress * validation.validations >= state.validations + 1
        if due and not stopped:
            stopped = not self.validate()
        stalled = state.stale_validations >= (validation.patience or math.inf)
        finished = self.progress >= 1 or stalled or stopped
        if due or finished or time.monotonic() - self.saved_at > SAVE_INTERVAL_S:
            self.save()
        return finished

    def take_songs(self) -> None:
        """Let the batches that are not prepared yet draw from the songs that have arrived."""
        songs = self.supply.arrived()
        if songs:
            self.crops.add(songs, from_step=self.state.step + AHEAD + 1)
            self.state.songs = self.crops.schedule
            self.log_songs()

    def validate(self) -> bool:
        """Score the averages, keep the best weights of the run, show what they do; or leave it, False, where a stop comes."""
        config, state, songs = self.config, self.state, self.data.valid
        scored = validate(config, state.averages, songs, self.device, self.ranks, self.stop)
        if scored is None:
            return False
        state.validations = math.floor(self.progress * config.validation.validations)
        better = scored.evaluation.usdr > state.best_usdr
        state.stale_validations = 0 if better else state.stale_validations + 1
        state.best_usdr = max(state.best_usdr, scored.evaluation.usdr)
        if self.tracker is not None:
            if better:
                best = self.run_dir / "best.safetensors"
                write_tensors(best, scored.average.network.state_dict(), self.origin(scored, self.tracker.run_id))
                self.checkpoints.mirror(best)
            show(config, scored, songs[0], self.device, self.tracker, state.step)
        return True

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if self.tracker is not None:
            self.state.run_id = self.tracker.run_id
            self.checkpoints.save(self.state.step, self.state.write)

    def log(self, numbers: dict[str, float], skipped: tuple[int, ...]) -> None:
        """Log what is finite of the numbers; say which songs were in the batches of skipped steps."""
        if self.tracker is not None:
            finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
            self.tracker.numbers(finite, self.state.step)
            for step in skipped:
                songs = sorted({song for example in self.crops.names(step) for song in example})
                say(f"step {step} is skipped, its gradients are not finite; it heard {', '.join(songs)}")

    def log_songs(self) -> None:
        """Log how many songs there are, and which ones from which step on."""
        if self.tracker is not None:
            count = sum(len(names) for _, names in self.state.songs)
            self.tracker.numbers({"songs": count}, self.state.step)
            self.tracker.facts("songs.json", [{"from_step": step, "songs": names} for step, names in self.state.songs])

    def origin(self, scored: Scored, run_id: str | None) -> dict[str, Any]:
        """Where weights come from, as their archive will say."""
        return {
            "preset": self.config.preset,
            "run_id": run_id,
            "step": self.state.step,
            "ema_decay": scored.average.decay,
            "commit": commit(),
            "data": self.config.data,
            "data_digest": self.data.digest,
            "validation": {stem: score.to_json() for stem, score in scored.evaluation.stems.items()},
        }


class Rate:
    """Amount per second since the last call, for a counter that grows."""

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self.last: tuple[int, float] | None = None

    def __call__(self, count: int) -> float:
        now = time.monotonic()
        last, self.last = self.last, (count, now)
        return (count - last[0]) * self.amount / (now - last[1]) if last else 0.0
