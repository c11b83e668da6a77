"""The flags of `stemwright train`, made from the fields of the configuration."""

import argparse
import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from serving.model.spec import ModelSpec
from training.config import Batches, Budget, Optimization, TrainConfig, Validation
from training.errors import ConfigError
from training.presets import PRESETS


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field made with `flag`. The namespace holds only flags that are given."""
    for section in (Budget, Batches, Optimization, Validation, TrainConfig):
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            if "help" in field.metadata:
                add_flag(parser, field.name, hints[field.name], field.default, field.metadata["help"])


def add_flag(parser: argparse.ArgumentParser, name: str, hint: Any, default: Any, help: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    if hint is bool:
        parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=help)
        return
    readers: dict[type, Callable[[str], Any]] = {int: int, float: float, str: str, tuple: numbers}
    kinds = (hint, typing.get_origin(hint), *typing.get_args(hint))
    reader = next(readers[kind] for kind in kinds if kind in readers)
    default = ",".join(map(str, default)) if isinstance(default, tuple) else default
    shown = f" (default {default})" if default is not None else ""
    parser.add_argument(flag, type=reader, default=argparse.SUPPRESS, help=help + shown)


def numbers(text: str) -> tuple[float, ...]:
    """The numbers in "0.99,0.999"."""
    return tuple(float(word) for word in text.split(","))


def with_flags(config: Any, given: Mapping[str, Any]) -> Any:
    """A configuration, with its sections, in which given flags replace values."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "help" in field.metadata and field.name in given:
            changes[field.name] = given[field.name]
        elif dataclasses.is_dataclass(value) and not isinstance(value, ModelSpec):
            changes[field.name] = with_flags(value, given)
    return dataclasses.replace(config, **changes)


def started(preset: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a new run: a preset, by default `classic`, with the given flags. Raises ConfigError."""
    data = flags.get("data")
    if data is None:
        raise ConfigError("--data is missing: name a folder, a zip or an s3:// prefix of songs")
    budget = Budget(steps=flags.get("steps"), minutes=flags.get("minutes"))
    config: TrainConfig = with_flags(PRESETS[preset or "classic"](data, budget), flags)
    return config


def resumed(stored: TrainConfig, preset: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The stored configuration of a run with the given flags. Raises ConfigError for flags that would make it another run."""
    if preset is not None and preset != stored.preset:
        raise ConfigError(
            f"--preset {preset} is not that of the run, {stored.preset}: leave it out, or start a new run"
        )
    planned, other = ("steps", "minutes") if stored.budget.steps is not None else ("minutes", "steps")
    if flags.get(other) is not None:
        raise ConfigError(
            f"--{other} does not fit a run that is planned in {planned}: give its new length with --{planned}, which is "
            f"{getattr(stored.budget, planned):g} now"
        )
    config: TrainConfig = with_flags(stored, flags)
    return config if flags.get("data") is None else dataclasses.replace(config, data=flags["data"])
