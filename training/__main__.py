"""The command line of the training package; the one edge that catches its errors."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from serving.errors import StemwrightError
from training.config import PRESETS, Budget, TrainConfig, add_flags, launched, with_flags
from training.errors import ConfigError, TrainingError
from training.run.signals import exit_on_signal

if TYPE_CHECKING:
    import torch


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 only if it did its work, 1 for what a user can put right."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        code: int = given.run(given)
    except (TrainingError, StemwrightError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m training", description="Train, evaluate and export source separators."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    songs = commands.add_parser("songs", help="write demo songs with true stems")
    songs.add_argument("out", type=Path)
    songs.add_argument("--train", type=int, default=20, help="songs to train on (default 20)")
    songs.add_argument("--test", type=int, default=4, help="songs to test on (default 4)")
    songs.add_argument("--seconds", type=float, default=20.0, help="length of a song (default 20)")
    songs.add_argument("--seed", type=int, default=0)
    songs.set_defaults(run=run_songs)

    push = commands.add_parser("push", help="put a folder or a zip of songs into object storage")
    push.add_argument("data", metavar="DIR_OR_ZIP")
    push.add_argument("to", metavar="s3://bucket/prefix")
    push.set_defaults(run=run_push)

    fetch = commands.add_parser("fetch", help="copy the stems of songs from object storage or a zip, and verify them")
    fetch.add_argument("data", metavar="s3://bucket/prefix", help="or a zip, here or there")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR")
    fetch.add_argument("--split", choices=("train", "valid", "test"), help="only the songs of one split")
    fetch.set_defaults(run=run_fetch)

    train = commands.add_parser("train", help="train a model and export its archive")
    train.add_argument("--data", help="folder, zip or s3:// prefix of songs")
    train.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    train.add_argument("--preset", choices=PRESETS, default="classic")
    train.add_argument("--resume", action="store_true", help="go on with the run where there is one, else start it")
    train.add_argument("--wait", action="store_true", help="start when all songs are here, not with the first sixteen")
    train.add_argument(
        "--checkpoint-uri", metavar="URL", help="keep a copy of what --resume needs there: s3://… or a folder"
    )
    train.add_argument("--publish", metavar="URL", help="put the archive there too: s3://…, a folder or a .mar file")
    add_cache(train)
    add_device(train)
    add_flags(train)
    train.set_defaults(run=run_train)

    profile = commands.add_parser("profile", help="show where the time of a training step goes (of 20, or of --steps)")
    profile.add_argument("--data", required=True, help="folder, zip or s3:// prefix of songs")
    profile.add_argument("--preset", choices=PRESETS, default="classic")
    add_cache(profile)
    add_device(profile)
    add_flags(profile)
    profile.set_defaults(run=run_profile, resume=False, steps=20)

    evaluate = commands.add_parser("evaluate", help="score an archive on songs with stems")
    evaluate.add_argument("--model", required=True, help="a .mar file, s3://…, runs:/… or models:/…")
    evaluate.add_argument("--data", required=True, help="folder, zip or s3:// prefix of songs")
    evaluate.add_argument("--split", choices=("valid", "test"), default="test")
    evaluate.add_argument("--quality", choices=("fast", "best"), default="fast", help="as songs are separated")
    evaluate.add_argument("--json", type=Path, help="write every score there")
    add_cache(evaluate)
    add_device(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    compare = commands.add_parser(
        "compare", help="several archives in one table: how well they separate, what they cost"
    )
    compare.add_argument("archives", nargs="+", metavar="ARCHIVE", help="a .mar file, s3://…, runs:/… or models:/…")
    compare.add_argument("--data", required=True, help="folder, zip or s3:// prefix of songs")
    compare.add_argument("--split", choices=("valid", "test"), default="test")
    compare.add_argument("--json", type=Path, help="write every score there")
    compare.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw every song there, the first archive against each other one"
    )
    add_cache(compare)
    add_device(compare)
    compare.set_defaults(run=run_compare)

    export = commands.add_parser("export", help="make an archive of a run's best weights")
    export.add_argument("--run-dir", type=Path, required=True)
    export.add_argument("--to", required=True, help="X.mar or s3://bucket/X.mar")
    export.add_argument("--register", action="store_true", help="also make it the next version of the registered model")
    export.set_defaults(run=run_export)

    starter = commands.add_parser("starter", help="make the archive of the model to begin with (extra: starter)")
    starter.add_argument("--to", type=Path, required=True, metavar="X.mar")
    starter.set_defaults(run=run_starter)

    sync = commands.add_parser("sync", help="send MLflow what it did not get while a run lasted")
    sync.add_argument("--run-dir", type=Path, required=True)
    sync.set_defaults(run=run_sync)

    tour = commands.add_parser("tour", help="walk one song through every step of the separation")
    tour.add_argument("song", type=Path)
    tour.add_argument("--model", help="a .mar file, s3://…, runs:/… or models:/…")
    tour.add_argument(
        "--out", type=Path, default=Path("tour"), help="folder of the picture and the stems (default tour)"
    )
    add_device(tour)
    tour.set_defaults(run=run_tour)

    demo = commands.add_parser("demo", help="the whole path on this machine: songs, S3, training, TorchServe, stems")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything it makes (default demo)")
    demo.add_argument("--minutes", type=float, default=3.0, help="minutes of training (default 3)")
    demo.set_defaults(run=run_demo)
    return root


def add_cache(command: argparse.ArgumentParser) -> None:
    help = "folder for copies of remote data and decoded songs (default cache)"
    command.add_argument("--cache", type=Path, default=Path("cache"), metavar="DIR", help=help)


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")


def run_songs(given: argparse.Namespace) -> int:
    from training.demo.songs import write_songs
    from training.progress import ProgressBar

    write_songs(given.out, given.train, given.test, given.seconds, given.seed, ProgressBar())
    print(f"{given.train} songs to train on and {given.test} to test on are in {given.out}")
    return 0


def run_push(given: argparse.Namespace) -> int:
    from training.data.push import push
    from training.progress import ProgressBar

    pushed = push(given.data, given.to, ProgressBar())
    print(
        f"{given.data} is in {given.to}: {pushed.files} files, {pushed.files - pushed.sent} of them were there already"
    )
    return 0


def run_fetch(given: argparse.Namespace) -> int:
    from training.data.data_set import SPLITS, copy_dataset
    from training.progress import ProgressBar

    data_set = copy_dataset(given.data, given.to, [given.split] if given.split else SPLITS, ProgressBar())
    print(
        f"{given.data} is in {given.to}: {data_set.layout}, " + (f"its {given.split} songs" if given.split else "whole")
    )
    return 0


def run_train(given: argparse.Namespace) -> int:
    from training.progress import say
    from training.run.ranks import Ranks
    from training.run.train import Places, train

    ranks = Ranks(*launched())
    places = Places(given.run_dir, given.cache, given.checkpoint_uri, given.publish)
    result = train(configuration(given), places, device_of(given, ranks.local_rank), ranks, given.resume, given.wait)
    if result.stopped_by is not None:
        say(f"stopped at step {result.steps}; go on with --resume --run-dir {given.run_dir}")
        return 128 + result.stopped_by
    if ranks.first:
        print(f"{result.steps} steps, best validation uSDR {result.best_usdr:.2f} dB, archive {result.archive}")
    return 0


def configuration(given: argparse.Namespace) -> TrainConfig:
    """The stored configuration of a run that is resumed, else the preset; with the flags that were given."""
    from training.run.train import stored_config

    flags = vars(given)
    stored = stored_config(given.run_dir, given.checkpoint_uri) if given.resume else None
    if stored is not None:
        flags = {**flags, "data": given.data or stored.data}
        resumed: TrainConfig = with_flags(stored, flags)
        return resumed
    if given.data is None:
        raise ConfigError("--data is missing: name a folder, a zip or an s3:// prefix of songs")
    budget = Budget(steps=flags.get("steps"), minutes=flags.get("minutes"))
    fresh: TrainConfig = with_flags(PRESETS[given.preset](given.data, budget), flags)
    return fresh


def run_profile(given: argparse.Namespace) -> int:
    from training.run.profile import profile
    from training.run.ranks import Ranks

    ranks = Ranks(*launched())
    profiled = profile(configuration(given), given.steps, given.cache, device_of(given, ranks.local_rank), ranks)
    if ranks.first:
        print(f"{profiled.table()}\n\n{profiled.advice()}")
    return 0


def run_evaluate(given: argparse.Namespace) -> int:
    from serving.model.separator import Separator
    from serving.model.source import resolve
    from training.data.data_set import open_dataset
    from training.evaluation.evaluate import evaluate
    from training.progress import ProgressBar

    with tempfile.TemporaryDirectory() as folder:
        separator = Separator.open(resolve(given.model, Path(folder)), device_of(given))
        data = open_dataset(given.data, given.cache / "data", progress=ProgressBar(), splits=[given.split])
        report = evaluate(separator, data.split(given.split), progress=True, quality=given.quality)
    print(report.table())
    if given.json:
        given.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 0


def run_compare(given: argparse.Namespace) -> int:
    from training.data.data_set import open_dataset
    from training.evaluation.compare import compare, resolved
    from training.progress import ProgressBar

    if given.plot and given.plot.suffix != ".png":
        raise ConfigError(f"--plot {given.plot} is no picture that is drawn here: let its name end in .png")
    with tempfile.TemporaryDirectory() as folder:
        archives = resolved(given.archives, Path(folder))
        data = open_dataset(given.data, given.cache / "data", progress=ProgressBar(), splits=[given.split])
        comparison = compare(archives, data.split(given.split), device_of(given), progress=True)
    print(comparison.table())
    if given.json:
        given.json.write_text(json.dumps(comparison.to_json(), indent=2) + "\n")
    if given.plot:
        comparison.figure().savefig(given.plot)
    return 0


def run_export(given: argparse.Namespace) -> int:
    from training.config import tracking_uri
    from training.run.export import export, run_id_of
    from training.tracking.registry import register

    print(export(given.run_dir, given.to))
    if given.register:
        print(register(tracking_uri(given.run_dir), run_id_of(given.run_dir)))
    return 0


def run_starter(given: argparse.Namespace) -> int:
    from serving.model.starter import LICENCES, write_starter

    write_starter(given.to)
    print(f"{given.to}: {LICENCES.source}; its weights are under the {LICENCES.weights} licence")
    return 0


def run_sync(given: argparse.Namespace) -> int:
    from training.config import tracking_uri
    from training.tracking.tracking import sync

    uri = tracking_uri(given.run_dir)
    print(f"{sync(uri, given.run_dir)} reports of {given.run_dir} sent to MLflow")
    return 0


def run_tour(given: argparse.Namespace) -> int:
    from serving.model.separator import Separator
    from serving.model.source import resolve
    from training.evaluation.tour import tour

    with tempfile.TemporaryDirectory() as folder:
        separator = Separator.open(resolve(given.model, Path(folder)), device_of(given)) if given.model else None
        print(tour(given.song, separator, given.out))
    return 0


def run_demo(given: argparse.Namespace) -> int:
    from training.demo.demo import demo

    demo(given.out, given.minutes)
    return 0


def device_of(given: argparse.Namespace, local_rank: int = 0) -> "torch.device":
    import torch

    try:
        device = torch.device(given.device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {given.device} cannot be used here: {error}") from error
    return device


if __name__ == "__main__":
    sys.exit(main())
