"""Commands that score archives: evaluate, compare; and tour, which walks one song through a model."""

import argparse
import json
import tempfile
from pathlib import Path

from training.commands.options import ARCHIVE, DATA, Commands, add_cache, add_device, add_store, told_device
from training.config import known_store_uri, store_uri
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

    compare = commands.add_parser("compare", help="compare archives in one table: scores and cost")
    compare.add_argument("archives", nargs="+", metavar="ARCHIVE", help=ARCHIVE)
    compare.add_argument("--data", required=True, help=DATA)
    compare.add_argument("--split", choices=("valid", "test"), default="test")
    compare.add_argument("--json", type=Path, help="write every score there")
    compare.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw every song, the first archive against each other one"
    )
    compare.add_argument(
        "--report", type=Path, metavar="HTML", help="write a page to hear and see the archives side by side"
    )
    compare.add_argument(
        "--log",
        action="store_true",
        help="log the report and the scores in MLflow, and test/ scores with the runs compared",
    )
    add_store(compare)
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
        separator = Separator.open(resolve(given.model, Path(folder)), told_device(given))
        data = open_dataset(given.data, given.cache / "data", progress=ProgressBar(), splits=[given.split])
        report = evaluate(separator, data.split(given.split), progress=True, quality=given.quality)
    print(report.table())
    if given.json:
        given.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 0


def run_compare(given: argparse.Namespace) -> int:
    from training.data.data_set import open_dataset
    from training.evaluation.compare import compare, resolved
    from training.experiments.comparison import Compared, curves_of, log_comparison, origins
    from training.experiments.report import Collector, report
    from training.progress import ProgressBar
    from training.tracking.registry import use_store

    for flag, file, suffix in (("--plot", given.plot, ".png"), ("--report", given.report, ".html")):
        if file and file.suffix != suffix:
            raise ConfigError(f"{flag} {file} is written as {suffix[1:]}: let its name end in {suffix}")
    uri = store_uri(given.runs) if given.log else known_store_uri(given.runs)
    if uri is not None:
        use_store(uri)
    collected = Collector() if given.report else None
    with tempfile.TemporaryDirectory() as folder:
        archives = resolved(given.archives, Path(folder))
        data = open_dataset(given.data, given.cache / "data", progress=ProgressBar(), splits=[given.split])
        songs = data.split(given.split)
        comparison = compare(archives, songs, told_device(given), progress=True, each_song=collected)
        compared = Compared(comparison, origins(archives), f"{data.data} {given.split}")
    print(comparison.table())
    if given.json:
        given.json.write_text(json.dumps(comparison.to_json(), indent=2) + "\n")
    if given.plot:
        comparison.figure().savefig(given.plot)
    if collected is not None:
        curves = curves_of(uri, compared.origins) if uri is not None else {}
        costs = {name: origin.get("cost", {}) for name, origin in compared.origins.items()}
        given.report.write_text(report(comparison, collected, compared.title, curves, costs))
        print(f"report: {given.report}")
    if given.log:
        print(f"logged: {log_comparison(store_uri(given.runs), compared, given.report)}")
    return 0


def run_tour(given: argparse.Namespace) -> int:
    from serving.model.separator import Separator
    from serving.model.source import resolve
    from training.evaluation.tour import tour

    with tempfile.TemporaryDirectory() as folder:
        separator = Separator.open(resolve(given.model, Path(folder)), told_device(given)) if given.model else None
        print(tour(given.song, separator, given.out))
    return 0
