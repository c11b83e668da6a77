"""One training several times with other flags: child runs below a parent in MLflow.

A sweep goes on where it stopped: a child that has its archive is not trained again, one that was interrupted is resumed.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from training.errors import ConfigError, TrainingError
from training.progress import say
from training.tracking.sweeps import Child, Parent

Flags = Mapping[str, str]
"""Values by the name of a flag, without its dashes."""

Train = Callable[[Sequence[Child]], Iterator[tuple[Child, int]]]
"""Trains children, each in its run folder with its flags; yields each with its exit code as it ends."""


def sweep(uri: str, folder: Path, tries: Sequence[Flags], train: Train) -> str:
    """Train every try in its own folder below `folder`. Returns a table of the tries, the best first.

    Raises TrainingError where a child ends with an error, after the others have been trained. A signal ends the sweep.
    """
    parent = Parent.open(uri, folder)
    children = [Child(label(flags), folder.resolve() / label(flags), flags) for flags in tries]
    failed = []
    for child, code in train([child for child in children if not any(child.run_dir.glob("*.mar"))]):
        if code > 128:
            raise TrainingError(f"stopped in {child.name}: the same command goes on with the sweep")
        if code != 0:
            failed.append(child.name)
        parent.show(children)
    if failed:
        raise TrainingError(f"{', '.join(failed)} failed: the messages above say why; the same command tries again")
    return parent.table(children)


def one_by_one(arguments: Sequence[str]) -> Train:
    """Train on this machine, each child by a command of its own with these further arguments."""

    def train(children: Sequence[Child]) -> Iterator[tuple[Child, int]]:
        for number, child in enumerate(children, start=1):
            say(f"{number} of {len(children)}: {child.name}")
            yield child, subprocess.run([sys.executable, *words_of(child, arguments)], check=False).returncode

    return train


def words_of(child: Child, arguments: Sequence[str]) -> list[str]:
    """The words behind `python` of the command that trains a child or goes on with it."""
    tried = [word for name, value in child.flags.items() for word in (f"--{name}", value)]
    return ["-m", "training", "train", "--run-dir", str(child.run_dir), "--resume", *arguments, *tried]


def label(flags: Flags) -> str:
    return ",".join(f"{name}={value}" for name, value in flags.items())


def grid(given: Sequence[str]) -> list[Flags]:
    """Every combination of `name=value,value…`. Raises ConfigError for words of another form."""
    values = {name: listed.split(",") for name, listed in map(parts, given)}
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def drawn(given: Sequence[str], count: int, seed: int) -> list[Flags]:
    """Draw `count` tries: log-uniform numbers from `name=low..high`, one value from each list."""
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
