"""A run, from a data set to a model archive; reads top to bottom."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor

from serving.storage.storage import Progress, exists, fetch_file, no_progress
from serving.version import commit
from training.checkpoints.checkpoints import Checkpoints
from training.checkpoints.tensor_file import read_tensors
from training.config import TrainConfig, read_config, tracking_uri
from training.data.augment import samples_to_cut
from training.data.crops import Crops
from training.data.data_set import DataSet, list_dataset
from training.data.decoded import DecodedSong, decode
from training.data.errata import reports
from training.data.musdb18 import Song
from training.data.stems import DECODED_STEMS
from training.data.supply import Supply, first_songs, scheduled
from training.errors import ConfigError
from training.progress import ProgressBar, say
from training.run.ema import Average
from training.run.export import export
from training.run.loop import Run
from training.run.precision import prepare
from training.run.pretrained import take_weights
from training.run.ranks import Ranks, synced
from training.run.signals import stop_requests
from training.run.state import RunState
from training.tracking.tracking import Tracker

KEPT_CHECKPOINTS = 3
CLOSING_S = 10
"""How long the mirror and the tracker may each take at the end: a spot machine gives 30 s from the signal on."""


@dataclass(frozen=True)
class Places:
    """Where a run keeps things: its own folder, data for any number of runs, and copies in object storage."""

    run_dir: Path
    cache: Path
    checkpoint_uri: str | None = None
    publish: str | None = None


@dataclass(frozen=True)
class Result:
    """What a run came to. `stopped_by` is the signal that ended it early: then there is no archive, and `--resume` goes on."""

    run_id: str | None
    steps: int
    best_usdr: float
    archive: str | None
    stopped_by: int | None


def train(config: TrainConfig, places: Places, device: torch.device, ranks: Ranks, resume: bool, wait: bool) -> Result:
    """Train, keep the weights that score best in validation, export them; a copy of the archive goes to `publish`.

    The run folder holds config.json, step-….safetensors, best.safetensors and, at the end, <preset>.mar. With `resume` the
    run goes on from its newest good checkpoint, there or at `checkpoint_uri`; where there is none it starts.
    Raises TrainingError or StemwrightError with one sentence on what is wrong.
    """
    with ranks.connected(device), stop_requests() as stop:
        prepare(config.deterministic)
        checkpoints = Checkpoints(places.run_dir, places.checkpoint_uri, KEPT_CHECKPOINTS)
        saved = ranks.from_first(find_saved(checkpoints, places, resume) if ranks.first else None)
        config = ranks.from_first(config)
        ranks.require_share_of(config.batches.batch_size)

        state = RunState(config, device)
        if saved is not None:
            state.restore(*saved)
        elif config.init is not None:
            start_from(config.init, state, config, ranks)
        if ranks.world_size > 1:
            synced(state.network)

        progress = ProgressBar() if ranks.first else no_progress
        data = list_dataset(config.data, places.cache / "data", config.validation.valid_share)
        data.bring(data.valid, progress)
        complete = wait or config.deterministic or ranks.world_size > 1
        supply, crops = start_supply(config, data, places.cache / "decoded", state, ranks, complete, progress)

        archive = None
        with closing(supply), tracked(config, places, device, data.digest, state, ranks) as tracker:
            try:
                if tracker is not None:
                    checkpoints.mirror(write_config(config, places.run_dir))
                Run(config, places.run_dir, device, ranks, data, supply, crops, state, checkpoints, tracker, stop).go()
            finally:
                if ranks.first:
                    checkpoints.close(CLOSING_S)
            if tracker is not None and stop.signal is not None:
                tracker.close("KILLED", CLOSING_S)
            elif tracker is not None:
                archive = export(places.run_dir, str(places.run_dir))
                tracker.archive(Path(archive))
                if places.publish is not None:
                    archive = export(places.run_dir, places.publish)
        return Result(state.run_id, state.step, state.best_usdr, archive, stop.signal)


def start_supply(
    config: TrainConfig,
    data: DataSet,
    cache: Path,
    state: RunState,
    ranks: Ranks,
    complete: bool,
    progress: Progress,
) -> tuple[Supply, Crops]:
    """Excerpts of the songs that training starts with, and the other songs on their way."""

    def prepare(songs: Sequence[Song], stopping: Event, progress: Progress = no_progress) -> list[DecodedSong]:
        data.bring(songs, progress, stopping)
        return decode(songs, config.model.audio, DECODED_STEMS, cache, progress, stopping)

    schedule = state.songs or first_songs(data.train, config.seed, complete)
    known, others = scheduled(data.train, schedule)
    (_, first), *later = [(step, prepare(songs, Event(), progress)) for step, songs in known]
    cut = samples_to_cut(config.crop_samples)
    crops = Crops(first, config.batches.batch_size, cut, config.seed, ranks.rank, ranks.world_size)
    for step, songs in later:
        crops.add(songs, step)
    state.songs = crops.schedule
    if ranks.first:
        for report in reports(song.name for song in data.train):
            say(report)
        if others:
            say(f"training starts with {len(data.train) - len(others)} songs, {len(others)} more are on their way")
    return Supply(others, prepare), crops


def find_saved(
    checkpoints: Checkpoints, places: Places, resume: bool
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The newest good checkpoint, None where there is none. Raises ConfigError where there is one that is not to go on."""
    newest = checkpoints.newest()
    if newest is None:
        if resume:
            say(f"nothing to resume in {places.run_dir}: a new run starts")
        return None
    if not resume:
        raise ConfigError(f"{newest} is of a run already: go on with --resume, or name another --run-dir")
    best = places.run_dir / "best.safetensors"
    if best.exists() or checkpoints.fetch(best.name):
        checkpoints.mirror(best)
    say(f"going on from {newest.name}")
    return read_tensors(newest)


def start_from(archive: str, state: RunState, config: TrainConfig, ranks: Ranks) -> None:
    """Begin with the weights of an archive, in the averages, too."""
    fresh = take_weights(state.network, config.model, archive)
    state.averages = [Average(state.network, average.decay) for average in state.averages]
    if ranks.first:
        say(f"starting from the weights of {archive}" + (f", but for {', '.join(fresh)}" if fresh else ""))


def stored_config(run_dir: Path, checkpoint_uri: str | None) -> TrainConfig | None:
    """The configuration of the run in a folder or, where the folder has none, in its mirror; None where there is none."""
    path, copy = run_dir / "config.json", f"{checkpoint_uri}/config.json"
    if not path.exists() and checkpoint_uri is not None and exists(copy):
        fetch_file(copy, path)
    return read_config(run_dir) if path.exists() else None


def write_config(config: TrainConfig, run_dir: Path) -> Path:
    path, partial = run_dir / "config.json", run_dir / ".config.json.partial"
    run_dir.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(config.to_json(), indent=2) + "\n")
    return partial.replace(path)


@contextmanager
def tracked(
    config: TrainConfig, places: Places, device: torch.device, digest: str, state: RunState, ranks: Ranks
) -> Iterator[Tracker | None]:
    """The run in MLflow, described there; None on every rank but the first."""
    if not ranks.first:
        yield None
        return
    with Tracker.open(tracking_uri(places.run_dir), places.run_dir, state.run_id) as tracker:
        if state.run_id is None:
            tracker.describe(config, {"device": name_of(device), "commit": commit(), "data.digest": digest})
            tracker.data(config.data, digest)
        yield tracker


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
