"""The loop of a run: validate, save, stop, step, log; until the budget is spent, scores stall or a stop is requested."""

import json
import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.errors import StemwrightError
from training.checkpoints.checkpoints import Checkpoints
from training.checkpoints.tensor_file import write_tensors
from training.errors import CheckpointError, NotFinite, TrainingError
from training.optimization.schedule import schedule
from training.optimization.step import Stepper
from training.progress import run_bar, say
from training.run.excerpts import Excerpts
from training.run.origin import Origin
from training.run.plan import Plan
from training.run.showcase import show, show_best
from training.run.signals import StopRequest
from training.run.validate import Validator
from training.tracking.tracking import Tracker

SAVE_INTERVAL_S = 300
LOG_INTERVAL_STEPS = 10
LAST_WAIT_S = 0.5
"""Seconds that each part of the ending may take when the process has to end at once."""


@dataclass(frozen=True)
class Output:
    """The targets of a run: its folder, its checkpoints, and MLflow, which only the first rank has."""

    run_dir: Path
    checkpoints: Checkpoints
    tracker: Tracker | None


@dataclass(kw_only=True)
class Run:
    """The loop and its parts. All ranks run it in step; only the first one writes."""

    plan: Plan
    stepper: Stepper
    excerpts: Excerpts
    validator: Validator
    origin: Origin
    output: Output
    stop: StopRequest
    saved_at: float = field(default_factory=time.monotonic)
    saved_step: int = -1
    ticked_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.state, self.ranks = self.stepper.state, self.stepper.ranks

    def go(self) -> None:
        """Run to the end. If memory runs out or a rank is lost, save a checkpoint, then raise the error."""
        self.saved_step = self.state.step
        self.stop.save = self.save_and_close
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
        state, stepper, plan, optimization = self.state, self.stepper, self.plan, self.state.optimization
        stepper.fit(self.excerpts.batch(state.step))
        upcoming = self.excerpts.batches(state.step, pin_memory=stepper.machine.on_gpu)
        audio_s_per_s = Rate(stepper.batches.audio_s)
        with closing(upcoming), closing(run_bar(self.origin.preset, self.ranks.first, plan.progress)) as bar:
            self.ticked_at = time.monotonic()
            while not self.finished():
                self.take_songs()
                rate = optimization.learning_rate * schedule(plan.progress, optimization.warmup)
                stepper(next(upcoming), rate)
                if state.step % LOG_INTERVAL_STEPS == 0:
                    report = stepper.report()
                    numbers = {"loss": report.loss, "learning_rate": rate, "skipped": len(report.skipped)}
                    numbers["audio_s_per_s"] = audio_s_per_s(state.step)
                    self.log(numbers, report.skipped)
                    heard = f", {rate_s:.3g} s of audio a second" if (rate_s := numbers["audio_s_per_s"]) else ""
                    bar.at(plan.progress, f"step {state.step}, loss {report.loss:.2f}{heard}{self.best}")
            bar.at(plan.progress, f"step {state.step}{self.best}")

    @property
    def best(self) -> str:
        """The best score as text for the bar; empty before the first validation."""
        return f", best {self.state.best_usdr:.2f} dB" if math.isfinite(self.state.best_usdr) else ""

    def finished(self) -> bool:
        """Validate and save when due. Returns True, on all ranks alike, when the run is over."""
        state, plan = self.state, self.plan
        self.tick()
        state.trained_s, signal = self.ranks.largest(state.trained_s, self.stop.signal or 0)
        self.stop.note(signal)
        stopped = signal > 0  # agreed by all ranks: a signal that comes later waits for the next step
        due = plan.validates
        if due and not stopped:
            stopped = not self.validate()
        finished = plan.progress >= 1 or plan.stalled or stopped
        if plan.stalled and self.output.tracker is not None:
            self.output.tracker.end = "stalled"
        if due or finished or time.monotonic() - self.saved_at > SAVE_INTERVAL_S:
            self.save()
        return finished

    def tick(self) -> None:
        """Add the time since the last call to `trained_s`: wall time from the first step on."""
        now = time.monotonic()
        self.state.trained_s, self.ticked_at = self.state.trained_s + now - self.ticked_at, now

    def take_songs(self) -> None:
        """Let batches that are not prepared yet draw from songs that have arrived."""
        if self.excerpts.take_arrived(self.state.step):
            self.state.songs = self.excerpts.schedule
            self.log_songs()

    def validate(self) -> bool:
        """Score the averages; keep and report the best weights of the run. False if a stop was requested meanwhile."""
        state, output = self.state, self.output
        scored = self.validator.best(state.averages, self.stop)
        if scored is None:
            return False
        usdr = scored.evaluation.usdr
        if not math.isfinite(usdr):
            raise NotFinite(f"the scores at step {state.step} are not finite: take a lower --learning-rate")
        better = usdr > state.best_usdr
        if output.tracker is not None and better:
            # Stored before the state mentions them: no checkpoint refers to best weights that are not there.
            best, trained_audio_s = output.run_dir / "best.safetensors", state.step * self.stepper.batches.audio_s
            origin = self.origin.of(scored, state, trained_audio_s, output.tracker.run_id)
            write_tensors(best, scored.average.network.state_dict(), origin)
            output.checkpoints.mirror(best)
        with state.lock:
            state.validations = self.plan.validations
            state.stale_validations = 0 if better else state.stale_validations + 1
            state.best_usdr = max(state.best_usdr, usdr)
        if output.tracker is not None:
            if better:
                show_best(output.tracker, origin)
            separator, song = self.validator.separator(scored.average), self.validator.songs[0]
            show(output.tracker, scored, separator, song, step=state.step, number=state.validations, better=better)
        began_s = state.trained_s
        self.tick()
        state.validated_at_s, took_s = self.ranks.largest(state.trained_s, state.trained_s - began_s)
        state.validation_s = max(state.validation_s, took_s)
        return True

    def save(self) -> None:
        """Save a checkpoint, on the first rank."""
        with self.state.lock:
            self.saved_at, self.saved_step = time.monotonic(), self.state.step
            if self.output.tracker is not None:
                self.state.run_id = self.output.tracker.run_id
                self.output.checkpoints.save(self.state.step, self.state.write)

    def save_and_close(self) -> None:
        """Save the last step unless it is saved, and close mirror and MLflow within moments. Any thread may call it."""
        if self.state.lock.acquire(timeout=LAST_WAIT_S):
            if self.state.step > self.saved_step:
                self.save()
            self.output.checkpoints.close(LAST_WAIT_S)
        if self.output.tracker is not None:
            self.output.tracker.close("interrupted", LAST_WAIT_S)

    def log(self, numbers: dict[str, float], skipped: tuple[int, ...]) -> None:
        """Log numbers of the step. Name the songs in the batches of skipped steps."""
        if self.output.tracker is not None:
            self.output.tracker.numbers({f"train/{name}": value for name, value in numbers.items()}, self.state.step)
            for step in skipped:
                say(
                    f"step {step} is skipped, its gradients are not finite; its songs: {', '.join(self.excerpts.names(step))}"
                )

    def log_songs(self) -> None:
        """Record and log the songs by the first step that may draw from them.

        The record is written before the first batch with a new song, so a run that is killed and resumed draws the same
        batches.
        """
        tracker, checkpoints = self.output.tracker, self.output.checkpoints
        if tracker is not None:
            by_step = [{"from_step": step, "songs": names} for step, names in self.state.songs]
            checkpoints.mirror(write_json(self.output.run_dir / "training_songs.json", by_step))
            tracker.numbers({"train/songs": sum(len(names) for _, names in self.state.songs)}, self.state.step)
            tracker.facts("training_songs.json", by_step)


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file that appears only when it is complete. Returns its path."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(content, indent=2) + "\n")
    return partial.replace(path)


class Rate:
    """The growth of a counter per second since the last call, times `amount`."""

    def __init__(self, amount: float) -> None:
        self.amount = amount
        self.last: tuple[int, float] | None = None

    def __call__(self, count: int) -> float:
        now = time.monotonic()
        last, self.last = self.last, (count, now)
        return (count - last[0]) * self.amount / (now - last[1]) if last else 0.0
