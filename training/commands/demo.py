"""Commands that need no data: songs, demo."""

import argparse
from pathlib import Path

from training.commands.options import Commands


def add(commands: Commands) -> None:
    songs = commands.add_parser("songs", help="write demo songs with true stems")
    songs.add_argument("out", type=Path)
    songs.add_argument("--train", type=int, default=20, help="songs to train on (default 20)")
    songs.add_argument("--test", type=int, default=4, help="songs to test on (default 4)")
    songs.add_argument("--seconds", type=float, default=20.0, help="length of a song (default 20)")
    songs.add_argument("--seed", type=int, default=0)
    songs.set_defaults(run=run_songs)

    demo = commands.add_parser("demo", help="the whole path on this machine: songs, S3, training, TorchServe, stems")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything it makes (default demo)")
    demo.add_argument("--minutes", type=float, default=3.0, help="minutes of training (default 3)")
    demo.set_defaults(run=run_demo)


def run_songs(given: argparse.Namespace) -> int:
    from training.demo.songs import write_songs
    from training.progress import ProgressBar

    write_songs(
        given.out,
        train=given.train,
        test=given.test,
        seconds=given.seconds,
        seed=given.seed,
        progress=ProgressBar(),
    )
    print(f"{given.train} songs to train on and {given.test} to test on are in {given.out}")
    return 0


def run_demo(given: argparse.Namespace) -> int:
    from training.demo.demo import demo

    demo(given.out, given.minutes)
    return 0
