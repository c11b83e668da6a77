"""Scores of archives: evaluate, compare; and tour, one song seen on its way."""

import argparse
import json
import tempfile
from pathlib import Path

from training.commands.options import ARCHIVE, DATA, Commands, add_cache, add_device, device_of
from training.errors import ConfigError


def add(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score an archive on songs with stems")
    evaluate.add_argument("--model", required=True, help=ARCHIVE)
    evaluate.add_argument("--data", required=True, help=DATA)
    evaluate.add_argument("--split", choices=("valid", "test"), default="test")
    evaluate.add_argument("--quality", choices=("fast", "best"), default="fast", help="as songs are separated")
    evaluate.add_argument("--json", type=Path, help="write every score there")
    add_cache(evaluate)
    add_device(evaluate)
    evaluate.set_defaults(run=run_evaluate)

    compare = commands.add_parser(
        "compare", help="several archives in one table: how well they separate, what they cost"
    )
    compare.add_argument("archives", nargs="+", metavar="ARCHIVE", help=ARCHIVE)
    compare.add_argument("--data", required=True, help=DATA)
    compare.add_argument("--split", choices=("valid", "test"), default="test")
    compare.add_argument("--json", type=Path, help="write every score there")
    compare.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw every song there, the first archive against each other one"
    )
    add_cache(compare)
    add_device(compare)
    compare.set_defaults(run=run_compare)

    tour = commands.add_parser("tour", help="walk one song through every step of the separation")
    tour.add_argument("song", type=Path)
    tour.add_argument("--model", help=ARCHIVE)
    tour.add_argument(
        "--out", type=Path, default=Path("tour"), help="folder of the picture and the stems (default tour)"
    )
    add_device(tour)
    tour.set_defaults(run=run_tour)


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


def run_tour(given: argparse.Namespace) -> int:
    from serving.model.separator import Separator
    from serving.model.source import resolve
    from training.evaluation.tour import tour

    with tempfile.TemporaryDirectory() as folder:
        separator = Separator.open(resolve(given.model, Path(folder)), device_of(given)) if given.model else None
        print(tour(given.song, separator, given.out))
    return 0
