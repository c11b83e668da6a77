"""Options that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

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
    command.add_argument("--device", help="auto, cpu, cuda or cuda:N (default auto: a GPU where there is one)")


def chosen_device(given: argparse.Namespace, local_rank: int = 0) -> "torch.device":
    """The device that was asked for, else the GPU of this rank, else the CPU. Raises ServerError for one that is not there."""
    import torch

    from serving.model import device

    usual = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    return device.device_of(given.device, usual, asked_by="--device")


def told_device(given: argparse.Namespace) -> "torch.device":
    """Choose the device as `chosen_device` does, and say which it is."""
    from serving.model.device import device_name
    from training.progress import say

    device = chosen_device(given)
    say(f"computing on {device_name(device)}")
    return device
