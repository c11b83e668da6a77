"""One training several times with other flags: child runs below a parent in MLflow, one after the other.

A sweep goes on where it stopped: a child that has its archive is not trained again, one that was interrupted is resumed.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.errors import ConfigError, TrainingError
from training.progress import say
from training.tracking.sweeps import Child, Parent

Flags = Mapping[str, str]
"""Values by the name of a flag, without its dashes."""

Train = Callable[[Path, Flags], int]
"""Trains in a run folder with these flags; returns the exit code."""


def sweep(uri: str, folder: Path, tries: Sequence[Flags], train: Train) -> str:
    """Train once for each try, in a folder of its own below `folder`; a table of the tries, the best first.

    Raises TrainingError where a child ends with an error, after the others have been trained. A signal ends the sweep.
    """
    parent = Parent.open(uri, folder)
    failed, children = [], []
    for number, flags in enumerate(tries, start=1):
        name = label(flags)
        run_dir = folder / name
        if not any(run_dir.glob("*.mar")):
            say(f"{number} of {len(tries)}: {name}")
            code = train(run_dir, flags)
            if code > 128:
                raise TrainingError(f"stopped in {name}: the same command goes on with the sweep")
            if code != 0:
                failed.append(name)
        children.append(Child(name, run_dir, flags))
        parent.show(children)
    if failed:
        raise TrainingError(f"{', '.join(failed)} failed: the messages above say why; the same command tries again")
    return parent.table(children)


def train_in_process(arguments: Sequence[str]) -> Train:
    """Training as a command of its own, with further arguments, whose memory goes with it."""

    def train(run_dir: Path, flags: Flags) -> int:
        tried = [word for name, value in flags.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "training", "train", "--run-dir", str(run_dir), "--resume"]
        return subprocess.run([*command, *arguments, *tried], check=False).returncode

    return train


def label(flags: Flags) -> str:
    return ",".join(f"{name}={value}" for name, value in flags.items())


def grid(given: Sequence[str]) -> list[Flags]:
    """Every combination of `name=value,value…`. Raises ConfigError for words of another form."""
    values = {name: listed.split(",") for name, listed in map(parts, given)}
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def drawn(given: Sequence[str], count: int, seed: int) -> list[Flags]:
    """So many tries: of `name=low..high` a number between, even by its logarithm; of a list one of its values."""
    rng = np.random.default_rng(seed)

    def draw(listed: str) -> str:
        low, between, high = listed.partition("..")
        if not between:
            return str(rng.choice(listed.split(",")))
        try:
            bounds = np.log([float(low), float(high)])
        except ValueError as error:
            raise ConfigError(f"{listed} is no range: write two numbers, such as 1e-4..1e-2") from error
        return f"{np.exp(rng.uniform(*bounds)):.3g}"

    return [{name: draw(listed) for name, listed in map(parts, given)} for _ in range(count)]


def parts(word: str) -> tuple[str, str]:
    name, equals, listed = word.removeprefix("--").partition("=")
    if not (name and equals and listed):
        raise ConfigError(f"--try {word} tries nothing: write a flag and its values, such as learning-rate=1e-3,2e-3")
    return name, listed
