"""Options that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from training.errors import ConfigError

if TYPE_CHECKING:
    import torch

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The return value of `add_subparsers`, to which a command is added."""

DATA = "folder, zip or s3:// prefix of songs"
ARCHIVE = "a .mar file, s3://…, runs:/… or models:/…"


def add_cache(command: argparse.ArgumentParser) -> None:
    help = "folder for copies of remote data and decoded songs (default cache)"
    command.add_argument("--cache", type=Path, default=Path("cache"), metavar="DIR", help=help)


def add_store(command: argparse.ArgumentParser) -> None:
    help = "folder of run folders; its mlflow.db is read unless MLFLOW_TRACKING_URI is set (default runs)"
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help=help)


def add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")


def chosen_device(given: argparse.Namespace, local_rank: int = 0) -> "torch.device":
    """The device that was asked for, else the GPU of this rank, else the CPU. Raises ConfigError for one that is not there."""
    import torch

    try:
        device = torch.device(given.device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"--device {given.device} cannot be used here ({reason}): name another one, or leave it out to take what is there"
        ) from error
    return device
