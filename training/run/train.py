"""A run, from a data set to a model archive. Read `train` from top to bottom."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from torch import Tensor

from serving.storage.progress import no_progress
from serving.storage.storage import exists, fetch_file
from training.checkpoints.checkpoints import Checkpoints
from training.checkpoints.tensor_file import read_tensors
from training.config import Batches, TrainConfig, provenance, read_config, tracking_uri
from training.data.augment import samples_to_cut
from training.data.crops import Crops
from training.data.data_set import DataSet, list_dataset
from training.data.decoded import DecodedSong, decode
from training.data.song import Song
from training.data.supply import Schedule, first_songs, scheduled
from training.errors import ConfigError, Stopped
from training.optimization.ema import Average
from training.optimization.machine import Machine
from training.optimization.precision import prepare
from training.optimization.ranks import synced
from training.optimization.state import RunState
from training.optimization.step import Stepper
from training.preflight import preflight, refuse_to_overwrite
from training.progress import ProgressBar, say
from training.run.excerpts import Excerpts
from training.run.export import export, publish, published_as
from training.run.loop import LAST_WAIT_S, Output, Run, write_json
from training.run.origin import Origin
from training.run.plan import Plan
from training.run.pretrained import take_weights
from training.run.showcase import show_archive, show_best, show_data
from training.run.signals import StopRequest, stop_requests
from training.run.validate import Validator
from training.tracking.tracking import Tracker

KEPT_CHECKPOINTS = 3
CLOSING_S = 10
"""Seconds that mirror and tracker may each take at the end of a run that nobody stops."""


Saved = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and facts of a checkpoint."""


@dataclass(frozen=True)
class Places:
    """The places of a run: its own folder, a cache that runs share, and copies in object storage."""

    run_dir: Path
    cache: Path
    checkpoint_uri: str | None = None
    publish: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class RunResult:
    """The end of a run. `stopped_by` is the signal that ended it early; `--resume` continues then."""

    run_id: str | None
    steps: int
    best_usdr: float
    archive: str | None
    stopped_by: int | None


def train(config: TrainConfig, places: Places, machine: Machine, *, resume: bool, wait: bool) -> RunResult:
    """Train, keep the weights that validate best, export them, and copy the archive to `publish`.

    The run folder holds config.json, training_songs.json, step-….safetensors, best.safetensors and, at the end,
    <preset>.mar. With `resume` the run continues from its newest intact checkpoint, local or at `checkpoint_uri`, and
    starts if there is none. With `wait` it starts when all songs are here. Raises TrainingError or StemwrightError with one
    sentence on what is wrong.
    """
    ranks = machine.ranks
    with ranks.connected(machine.device), stop_requests() as stop:
        prepare(config.deterministic)
        checkpoints = Checkpoints(places.run_dir, places.checkpoint_uri, KEPT_CHECKPOINTS)
        saved = ranks.from_first(find_saved(checkpoints, places, resume) if ranks.first else None)
        if ranks.first:
            try_places(places, config.preset, going_on=saved is not None)
        config = ranks.from_first(config)
        ranks.require_share_of(config.batches.batch_size)

        state = initial_state(config, machine, saved)
        recorded = ranks.from_first(recorded_songs(places.run_dir, checkpoints) if ranks.first and resume else [])
        data = list_dataset(config.data, places.cache / "data", config.validation.valid_share)
        complete = wait or config.deterministic or ranks.world_size > 1
        state.songs = plan_songs(data, state, recorded, complete)
        try:
            excerpts = open_excerpts(data, state, config.batches, machine, cache=places.cache, stop=stop)
        except Stopped:
            return RunResult(state.run_id, state.step, state.best_usdr, None, stop.signal)

        validator = Validator(config.model, data.valid, config.validation.valid_excerpt_s, machine)
        archive = None
        with closing(excerpts), tracked(config, places.run_dir, machine, state) as tracker:
            output = Output(places.run_dir, checkpoints, tracker)
            try:
                if tracker is not None:
                    stop.save = partial(tracker.close, "interrupted", LAST_WAIT_S)  # until there are steps to save
                    tracker.tag({"data.digest": data.digest})
                    show_data(tracker, data, [name for _, names in state.songs for name in names])
                    checkpoints.mirror(write_json(places.run_dir / "config.json", config.to_json()))
                Run(
                    plan=Plan(config.budget, config.validation, state),
                    stepper=Stepper(state, config.batches, machine, compile=config.compile),
                    excerpts=excerpts,
                    validator=validator,
                    origin=Origin(config.preset, config.data, data.digest, data.licence(config.data_licence)),
                    output=output,
                    stop=stop,
                ).go()
            finally:
                if ranks.first:
                    checkpoints.close(min(CLOSING_S, stop.left_s))
            if tracker is not None and stop.signal is not None:
                tracker.close("interrupted", min(CLOSING_S, stop.left_s))
            elif tracker is not None:
                archive = str(export(places.run_dir))
                show_archive(tracker, Path(archive))
                if places.publish is not None:
                    archive = publish(places.run_dir, places.publish, places.overwrite)
        return RunResult(state.run_id, state.step, state.best_usdr, archive, stop.signal)


def try_places(places: Places, preset: str, going_on: bool) -> None:
    """Write to every place of a run before its first step. A resumed run may continue without MLflow.

    Raises ConfigError, StorageError or TrackingError.
    """
    stores = [store for store in (places.checkpoint_uri, places.publish) if store is not None]
    uri = tracking_uri(places.run_dir)
    failure = preflight([places.run_dir, places.cache], stores, uri, places.run_dir)
    if places.publish is not None and not (places.overwrite or going_on):
        refuse_to_overwrite(published_as(places.publish, places.run_dir, preset))
    if failure is not None and not going_on:
        raise failure
    if failure is not None:
        say(f"{failure}; the run goes on, {places.run_dir}/spool keeps what it reports")


def initial_state(config: TrainConfig, machine: Machine, saved: Saved | None) -> RunState:
    """The state of a checkpoint; without one a fresh state, with the weights of `--init` if given."""
    first = machine.ranks.first
    state = RunState(config.model, config.optimization, machine.device, seed=config.seed, precision=config.precision)
    if first:
        say(f"training on {machine.name} in {state.precision.name}")
    if saved is not None:
        state.restore(*saved)
    elif config.init is not None:
        start_from(config.init, state, quiet=not first)
    if machine.ranks.world_size > 1:
        synced(state.network, machine.device)
    return state


def open_excerpts(
    data: DataSet, state: RunState, batch: Batches, machine: Machine, *, cache: Path, stop: StopRequest
) -> Excerpts:
    """Fetch the validation songs and those that training starts with; make their excerpts, and fetch the others meanwhile."""
    ranks = machine.ranks
    progress = ProgressBar() if ranks.first else no_progress

    stems = data.decoded_stems(state.model.stems)
    cut = samples_to_cut(batch.crop_samples(state.model.audio.sample_rate_hz))

    def prepared(songs: Sequence[Song], stopping: Event) -> list[DecodedSong]:
        data.bring(songs, progress, stopping=stopping)
        return decode(songs, state.model.audio, stems, cache / "decoded", progress, stopping=stopping)

    def crops(songs: Sequence[DecodedSong]) -> Crops:
        return Crops(songs, batch.batch_size, cut, state.seed, rank=ranks.rank, world_size=ranks.world_size)

    data.bring(data.valid, progress, stop.event)
    excerpts = Excerpts.open(data.train, state.songs, prepared, crops, stop.event)
    progress = no_progress  # the background shows no bar
    state.songs = excerpts.schedule
    if ranks.first:
        for report in data.reports():
            say(report)
        here = sum(len(names) for _, names in state.songs)
        if here < len(data.train):
            say(f"training starts with {here} songs, {len(data.train) - here} more are on their way")
    return excerpts


def plan_songs(data: DataSet, state: RunState, recorded: Schedule, complete: bool) -> list[tuple[int, list[str]]]:
    """The schedule of a run's songs, as far as it is decided.

    A recorded schedule that goes beyond the checkpoint is followed, so the steps after the checkpoint are repeated exactly.
    If `complete`, as several ranks require, the remaining songs are added now.
    """
    known = list(state.songs)
    if list(recorded[: len(known)]) == known and len(recorded) > len(known):
        known = [(step, list(names)) for step, names in recorded]
    if not known:
        known = [(step, list(names)) for step, names in first_songs(data.train, state.seed, complete)]
    _, others = scheduled(data.train, known)
    if others and complete:
        known.append((state.step, sorted(song.name for song in others)))
    return known


def recorded_songs(run_dir: Path, checkpoints: Checkpoints) -> list[tuple[int, list[str]]]:
    """The schedule in a run's `training_songs.json`; empty without the file."""
    path = run_dir / "training_songs.json"
    if not path.exists() and not checkpoints.fetch(path.name):
        return []
    return [(entry["from_step"], entry["songs"]) for entry in json.loads(path.read_text())]


def find_saved(checkpoints: Checkpoints, places: Places, resume: bool) -> Saved | None:
    """The newest intact checkpoint; None if there is none. Raises ConfigError if there is one and `resume` is false."""
    newest = checkpoints.newest()
    if newest is None:
        if resume:
            say(f"nothing to resume in {places.run_dir}: a new run starts")
        return None
    if not resume:
        raise ConfigError(f"{newest} belongs to a run: go on with --resume, or name another --run-dir")
    best = places.run_dir / "best.safetensors"
    if best.exists() or checkpoints.fetch(best.name):
        checkpoints.mirror(best)
    say(f"going on from {newest.name}")
    return read_tensors(newest)


def start_from(archive: str, state: RunState, *, quiet: bool) -> None:
    """Start weights and averages from an archive."""
    fresh, licences = take_weights(state.network, state.model, archive)
    state.started_from = licences.to_json()
    state.statistics.remember()
    state.averages = [Average(state.network, average.decay) for average in state.averages]
    if not quiet:
        say(f"starting from the weights of {archive}" + (f", but for {', '.join(fresh)}" if fresh else ""))


def stored_config(run_dir: Path, checkpoint_uri: str | None) -> TrainConfig | None:
    """The configuration of a run, from its folder or else its mirror; None if neither has one."""
    path, copy = run_dir / "config.json", f"{checkpoint_uri}/config.json"
    if not path.exists() and checkpoint_uri is not None and exists(copy):
        fetch_file(copy, path)
    return read_config(run_dir) if path.exists() else None


@contextmanager
def tracked(config: TrainConfig, run_dir: Path, machine: Machine, state: RunState) -> Iterator[Tracker | None]:
    """Describe a run in MLflow, a resumed one with its best weights. Yields None on all ranks but the first."""
    if not machine.ranks.first:
        yield None
        return
    with Tracker.open(tracking_uri(run_dir), run_dir, state.run_id, state.step) as tracker:
        facts = {"device": machine.name, "world_size": machine.ranks.world_size, **provenance()}
        tracker.describe(config, facts)
        if state.step > 0:
            tracker.tag({"resumed": f"at step {state.step}"})
            best = run_dir / "best.safetensors"
            if best.exists():
                show_best(tracker, read_tensors(best)[1])
        yield tracker
