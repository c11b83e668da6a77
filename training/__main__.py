"""The command `stemwright`, which `python -m training` starts, too; the one edge that catches the errors of both packages."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from serving.errors import StemwrightError
from training.commands import GROUPS
from training.errors import TrainingError
from training.run.signals import exit_on_signal

OF_SIGNALS = (128 + signal.SIGINT, 128 + signal.SIGTERM)


def process() -> NoReturn:
    """Run the command of this process and end it: at once if a signal asked for it.

    Python would first take torch and MLflow apart, for a second on an idle machine and five on a busy one.
    """
    try:
        code: Any = main()
    except SystemExit as leaving:
        code = leaving.code
    if code in OF_SIGNALS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0 if it did its work, 1 for an error that the user can put right."""
    given = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, exit_on_signal)
    try:
        return int(given.run(given))
    except (TrainingError, StemwrightError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(
        prog="stemwright", description="Train, compare, serve and use music source separators."
    )
    root.add_argument("--version", action=ShowVersion, help="print version, commit, torch and CUDA")
    root.add_argument(
        "--completion",
        action=ShowCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print the completion of this shell",
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    for add in GROUPS:
        add(commands)
    return root


class ShowVersion(argparse.Action):
    """Prints what runs here, and exits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, *_: Any) -> None:
        from serving.version import installed

        print(installed())
        sys.exit()


class ShowCompletion(argparse.Action):
    """Prints a script that completes commands, options and their choices in a shell, and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, _space: Any, shell: str | Sequence[Any] | None, _flag: Any = None
    ) -> None:
        import shtab

        print(shtab.complete(parser, str(shell)))
        sys.exit()


if __name__ == "__main__":
    process()
