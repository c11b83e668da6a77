"""Commands of one run: train, profile, export, sync."""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from training.commands.options import ARCHIVE, DATA, Commands, add_cache, add_device, chosen_device
from training.config import TrainConfig, launched
from training.errors import ConfigError
from training.flags import add_flags, resumed, started
from training.presets import PRESETS

PLACE = "name.mar, s3://bucket/name.mar, or a folder or prefix, which gets <preset>-<name of the run folder>.mar"


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train a model and export its archive")
    train.add_argument("--data", help=DATA)
    train.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    train.add_argument("--preset", choices=PRESETS, help="(default classic)")
    train.add_argument("--resume", action="store_true", help="continue the run if there is one, else start it")
    train.add_argument("--wait", action="store_true", help="start when all songs are here, not with the first sixteen")
    train.add_argument(
        "--checkpoint-uri", metavar="URL", help="keep a copy of what --resume needs there: s3://… or a folder"
    )
    train.add_argument("--publish", metavar="URL", help=f"put the archive there too: {PLACE}")
    train.add_argument("--overwrite", action="store_true", help="let --publish replace an archive of that name")
    add_cache(train)
    add_device(train)
    add_flags(train)
    train.set_defaults(run=run_train)

    profile = commands.add_parser("profile", help="show where the time of a training step goes (of 20, or of --steps)")
    profile.add_argument("--data", required=True, help=DATA)
    profile.add_argument("--preset", choices=PRESETS, help="(default classic)")
    add_cache(profile)
    add_device(profile)
    add_flags(profile)
    profile.set_defaults(run=run_profile, resume=False, steps=20)

    export = commands.add_parser(
        "export", help="make an archive of a run's best weights, or an ONNX model of an archive"
    )
    whose = export.add_mutually_exclusive_group(required=True)
    whose.add_argument("--run-dir", type=Path, help="a run, for its best weights")
    whose.add_argument("--model", help=f"{ARCHIVE}, or starter; for --onnx")
    where = export.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="URL", help=f"write the archive there: {PLACE}")
    where.add_argument(
        "--onnx",
        type=Path,
        metavar="DIR",
        help="write model.onnx, its test vectors and a program that uses it there; needs the extra onnx",
    )
    export.add_argument("--overwrite", action="store_true", help="replace an archive of that name")
    export.add_argument("--register", action="store_true", help="also make it the next version of the registered model")
    export.set_defaults(run=run_export)

    sync = commands.add_parser("sync", help="send MLflow the reports that it missed during a run")
    sync.add_argument("--run-dir", type=Path, required=True)
    sync.add_argument(
        "--to", metavar="URL", help="then copy the run to another MLflow, as from a SQLite file to a server"
    )
    sync.set_defaults(run=run_sync)


def run_train(given: argparse.Namespace) -> int:
    # Nothing is there to save until `train` takes signals itself. The system ends a process inside the loading of a library,
    # too, where Python cannot; the first process of a container it never ends.
    if os.getpid() != 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from training.optimization.machine import Machine
    from training.optimization.ranks import Ranks
    from training.progress import say
    from training.run.train import Places, train

    ranks = Ranks(*launched())
    places = Places(given.run_dir, given.cache, given.checkpoint_uri, given.publish, given.overwrite)
    machine = Machine(chosen_device(given, ranks.local_rank), ranks)
    result = train(configuration(given), places, machine, resume=given.resume, wait=given.wait)
    if result.stopped_by is not None:
        say(f"stopped at step {result.steps}; go on with --resume --run-dir {given.run_dir}")
        return 128 + result.stopped_by
    if ranks.first:
        print(f"{result.steps} steps, best validation uSDR {result.best_usdr:.2f} dB, archive {result.archive}")
    return 0


def configuration(given: argparse.Namespace) -> TrainConfig:
    """The configuration of a run: the stored one if it is resumed, else the preset; with the given flags."""
    from training.run.train import stored_config

    stored = stored_config(given.run_dir, given.checkpoint_uri) if given.resume else None
    flags = vars(given)
    return started(given.preset, flags) if stored is None else resumed(stored, given.preset, flags)


def run_profile(given: argparse.Namespace) -> int:
    from training.optimization.machine import Machine
    from training.optimization.ranks import Ranks
    from training.run.profile import profile

    ranks = Ranks(*launched())
    machine = Machine(chosen_device(given, ranks.local_rank), ranks)
    profiled = profile(configuration(given), given.steps, given.cache, machine)
    if ranks.first:
        print(f"{profiled.table()}\n\n{profiled.advice()}")
    return 0


def run_export(given: argparse.Namespace) -> int:
    from training.config import tracking_uri
    from training.run.export import publish, run_id_of
    from training.tracking.probe import probe_store
    from training.tracking.registry import register

    if given.onnx:
        return run_export_onnx(given)
    if given.model:
        raise ConfigError("--model goes with --onnx: --to publishes the archive of a run, named by --run-dir")
    uri = tracking_uri(given.run_dir)
    if given.register:  # tried before anything is published
        probe_store(uri, given.run_dir)
        run_id = run_id_of(given.run_dir)
    print(publish(given.run_dir, given.to, given.overwrite))
    if given.register:
        print(register(uri, run_id))
    return 0


def run_export_onnx(given: argparse.Namespace) -> int:
    from serving.model.source import resolve
    from training.run.export import export
    from training.run.onnx_model import export_onnx

    if given.register or given.overwrite:
        raise ConfigError("--register and --overwrite are for archives: leave them out with --onnx")
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(resolve(given.model, Path(folder)) if given.model else export(given.run_dir), given.onnx)
    print(f"{given.onnx}: model.onnx, vectors.npz and example.py, which separates songs with them and without torch")
    return 0


def run_sync(given: argparse.Namespace) -> int:
    from training.config import tracking_uri
    from training.tracking.copying import copy_run, known_run_id
    from training.tracking.tracking import sync

    uri = tracking_uri(given.run_dir)
    print(f"{sync(uri, given.run_dir)} reports of {given.run_dir} sent to MLflow")
    if given.to is not None:
        print(f"run {copy_run(uri, known_run_id(given.run_dir), given.to)} in {given.to}")
    return 0
