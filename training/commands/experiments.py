"""Commands over runs and models: runs, models, promote, rollback, sweep."""

import argparse
from datetime import datetime
from pathlib import Path

from serving.settings import ray_address
from training.commands.options import DATA, Commands, add_cache, add_device, add_store, told_device
from training.config import store_uri, tracking_uri
from training.errors import ConfigError


def add(commands: Commands) -> None:
    runs = commands.add_parser("runs", help="list the runs in MLflow, the best first")
    add_store(runs)
    runs.set_defaults(run=run_runs)

    models = commands.add_parser("models", help="list the registered models, their versions and what is served")
    add_store(models)
    models.set_defaults(run=run_models)

    promote = commands.add_parser("promote", help="serve a version unless it is worse than the one served now")
    promote.add_argument("version", metavar="models:/NAME/VERSION")
    promote.add_argument("--data", required=True, help=DATA)
    promote.add_argument("--split", choices=("valid", "test"), default="test")
    add_alias(promote)
    promote.add_argument(
        "--slower",
        type=float,
        default=1.5,
        help="refuse a version that takes more than so many times as long (default 1.5)",
    )
    promote.add_argument("--force", action="store_true", help="promote despite objections, which are recorded")
    add_store(promote)
    add_cache(promote)
    add_device(promote)
    promote.set_defaults(run=run_promote)

    rollback = commands.add_parser("rollback", help="return to the version that was served before")
    rollback.add_argument("name", metavar="NAME", help="a registered model, such as stemwright-2stems")
    add_alias(rollback)
    add_store(rollback)
    rollback.set_defaults(run=run_rollback)

    sweep = commands.add_parser(
        "sweep",
        help="train several times with other flags, here or on the Ray cluster in RAY_ADDRESS, and compare the runs",
    )
    sweep.add_argument("--try", dest="tries", action="append", required=True, metavar="FLAG=VALUES")
    sweep.add_argument(
        "--draw", type=int, metavar="N", help="draw N tries at random, also from ranges such as 1e-4..1e-2"
    )
    sweep.add_argument("--draw-seed", type=int, default=0, help="seed of the draw (default 0)")
    sweep.add_argument(
        "--run-dir", type=Path, required=True, help="folder of the sweep; each try gets a run folder in it"
    )
    sweep.add_argument("train", nargs=argparse.REMAINDER, metavar="-- FLAGS", help="the other flags of `train`")
    sweep.set_defaults(run=run_sweep)


def add_alias(command: argparse.ArgumentParser) -> None:
    command.add_argument("--alias", default="champion", help="alias of the served version (default champion)")


def run_runs(given: argparse.Namespace) -> int:
    from training.tracking.runs import runs

    print(f"{'run':32}  {'name':24} {'preset':13} {'end':12} {'best uSDR':>9}  began")
    for row in runs(store_uri(given.runs)):
        score = "-" if row.usdr_db is None else f"{row.usdr_db:.2f} dB"
        began = datetime.fromtimestamp(row.began_ms / 1000).strftime("%Y-%m-%d %H:%M")
        print(f"{row.run_id:32}  {row.name:24} {row.preset:13} {row.end:12} {score:>9}  {began}")
    return 0


def run_models(given: argparse.Namespace) -> int:
    from training.tracking.registry import versions

    print(f"{'version':36} {'best uSDR':>9}  {'aliases':16} stems")
    for version in versions(store_uri(given.runs)):
        score = f"{float(version.tags['best/usdr_db']):.2f} dB" if "best/usdr_db" in version.tags else "-"
        print(f"{version.address:36} {score:>9}  {', '.join(version.aliases):16} {version.tags.get('stems', '')}")
        for alias in version.aliases:
            if reason := version.tags.get(f"{alias}.reason"):
                print(f"    {alias}: {reason}")
    return 0


def run_promote(given: argparse.Namespace) -> int:
    from training.data.data_set import open_dataset
    from training.experiments.promotion import promote
    from training.progress import ProgressBar
    from training.tracking.registry import use_store

    if not given.version.startswith("models:/"):
        raise ConfigError(f"{given.version} is no registered version: `stemwright models` lists them")
    uri = store_uri(given.runs)
    use_store(uri)
    data = open_dataset(given.data, given.cache / "data", progress=ProgressBar(), splits=[given.split])
    songs, device = data.split(given.split), told_device(given)
    reason = promote(uri, given.version, given.alias, songs, device, slower=given.slower, force=given.force)
    print(f"{given.version} is the {given.alias}: {reason}")
    return 0


def run_rollback(given: argparse.Namespace) -> int:
    from training.tracking.registry import point_back

    version = point_back(store_uri(given.runs), given.name, given.alias)
    print(f"{version.address} is the {given.alias} again")
    return 0


def run_sweep(given: argparse.Namespace) -> int:
    from training.experiments.ray_hosts import on_ray
    from training.experiments.sweep import drawn, grid, one_by_one, sweep

    tries = grid(given.tries) if given.draw is None else drawn(given.tries, given.draw, given.draw_seed)
    given.run_dir.mkdir(parents=True, exist_ok=True)
    arguments = given.train[1:] if given.train[:1] == ["--"] else given.train
    address = ray_address()
    train = on_ray(address, arguments) if address else one_by_one(arguments)
    print(sweep(tracking_uri(given.run_dir / "try"), given.run_dir, tries, train))
    return 0
