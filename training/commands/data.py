"""Commands that move songs: push, fetch."""

import argparse
from pathlib import Path

from training.commands.options import Commands


def add(commands: Commands) -> None:
    push = commands.add_parser("push", help="put a folder or a zip of songs into object storage")
    push.add_argument("data", metavar="DIR_OR_ZIP")
    push.add_argument("to", metavar="s3://bucket/prefix")
    push.set_defaults(run=run_push)

    fetch = commands.add_parser("fetch", help="copy the stems of songs from object storage or a zip, and verify them")
    fetch.add_argument("data", metavar="s3://bucket/prefix", help="or a zip, here or there")
    fetch.add_argument("--to", type=Path, required=True, metavar="DIR")
    fetch.add_argument("--split", choices=("train", "valid", "test"), help="only the songs of one split")
    fetch.set_defaults(run=run_fetch)


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
