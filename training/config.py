"""The facts of a run: frozen, stored in its folder and in MLflow. Presets are functions, flags are made from the fields.

The only reader of the environment in the training package.
"""

import argparse
import dataclasses
import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.errors import SpecError
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec, read_dataclass
from training.errors import ConfigError

PRECISIONS = ("float32", "bfloat16", "float16")


def flag(default: Any, help: str) -> Any:
    """A field that `python -m training train` offers as a flag of the field's name."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Budget:
    """How long training lasts: a number of steps, or of minutes that are spent on steps. The schedule is planned over it."""

    steps: int | None = flag(None, "train for so many steps")
    minutes: float | None = flag(None, "train for so many minutes")

    def progress(self, step: int, trained_s: float) -> float:
        """The share of the budget that is spent, 0..1."""
        spent = step / self.steps if self.steps is not None else trained_s / (60 * (self.minutes or 0))
        return min(1.0, spent)


@dataclass(frozen=True)
class Batches:
    """What one step sees."""

    batch_size: int = flag(4, "excerpts in a step")
    crop_s: float = flag(3.0, "length of an excerpt in seconds")


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and a cosine to zero at the end of the budget; averages of the weights are what counts."""

    learning_rate: float = flag(2e-3, "peak learning rate")
    weight_decay: float = flag(1e-2, "decoupled weight decay")
    warmup: float = flag(0.05, "share of the budget over which the learning rate rises")
    clip_norm: float = flag(1.0, "gradients are scaled down to this norm")
    ema_decays: tuple[float, ...] = flag((0.99, 0.999), "decays of the averages of the weights; validation picks one")


@dataclass(frozen=True)
class Validation:
    """How often and on what the averages of the weights are scored, and how many times in vain."""

    validations: int = flag(12, "how many times in a run")
    valid_share: float = flag(0.15, "share of own songs kept for validation (MUSDB18 has its own 14)")
    valid_excerpt_s: float = flag(30.0, "seconds scored from the middle of each validation song")
    patience: int | None = flag(None, "end after so many validations without a better score")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes."""

    preset: str
    data: str
    model: ModelSpec
    budget: Budget
    batches: Batches
    optimization: Optimization
    validation: Validation
    seed: int = flag(0, "seed of the weights, the excerpts and the augmentation")
    init: str | None = flag(None, "start from the weights of an archive: a .mar file, s3://…, runs:/… or models:/…")
    precision: str | None = flag(
        None, "float32, bfloat16 or float16 (default: the fastest that the device has natively)"
    )
    compile: bool = flag(False, "compile the network with torch.compile")
    deterministic: bool = flag(False, "the same numbers on every run of the same device, at some cost in speed")

    def __post_init__(self) -> None:
        check(
            (self.budget.steps is None) != (self.budget.minutes is None),
            "give either --steps or --minutes: one of them plans the run",
        )
        check(
            len(self.optimization.ema_decays) > 0 and all(0 <= decay < 1 for decay in self.optimization.ema_decays),
            "--ema-decays must be numbers from 0 to below 1, with commas between",
        )
        check(self.precision in (None, *PRECISIONS), f"--precision {self.precision}: take {' or '.join(PRECISIONS)}")
        for name, value in leaves(self):
            if isinstance(value, int | float) and name != "seed":
                check(
                    value > 0 or name in ("weight_decay", "warmup") or isinstance(value, bool),
                    f"--{name.replace('_', '-')} must be above 0",
                )

    @property
    def crop_samples(self) -> int:
        """The length of what the network trains on."""
        return round(self.batches.crop_s * self.model.audio.sample_rate_hz)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The configuration that `to_json` wrote. Raises ConfigError where it does not fit this version."""
        try:
            config: Self = read_dataclass(cls, facts)
        except SpecError as error:
            raise ConfigError(f"the stored configuration is not of this version: {error}") from error
        return config


def classic(data: str, budget: Budget) -> TrainConfig:
    """The plan's U-Net: 22,050 Hz, 2048/512, vocals and accompaniment; 15 s are 1,025 x 646."""
    return TrainConfig(
        preset="classic",
        data=data,
        model=ModelSpec(
            architecture="classic",
            dimensions={"channels": (48, 96, 128), "fold": 8, "memory_inputs": 384, "memory_units": 256},
            stems=("vocals", "accompaniment"),
            audio=AudioSpec(sample_rate_hz=22_050),
            stft=StftSpec(n_fft=2048, hop_samples=512),
            chunk=ChunkSpec(length_s=15, overlap_s=1),
        ),
        budget=budget,
        batches=Batches(),
        optimization=Optimization(),
        validation=Validation(),
    )


def studio(data: str, budget: Budget) -> TrainConfig:
    """The band-split U-Net: 44.1 kHz, 4096/1024, four stems."""
    return banded(
        "studio", data, budget, channels=(80, 160, 224), paths=2, units=128, memory_inputs=192, memory_units=96
    )


def studio_small(data: str, budget: Budget) -> TrainConfig:
    """The same for laptops."""
    return banded(
        "studio-small", data, budget, channels=(40, 80, 112), paths=1, units=96, memory_inputs=96, memory_units=48
    )


def banded(preset: str, data: str, budget: Budget, **size: int | tuple[int, ...]) -> TrainConfig:
    return TrainConfig(
        preset=preset,
        data=data,
        model=ModelSpec(
            architecture="banded",
            dimensions={"band_bins": (256, 512, 1280), "band_widths": (2, 8, 20), **size},
            stems=("vocals", "drums", "bass", "other"),
            audio=AudioSpec(sample_rate_hz=44_100),
            stft=StftSpec(n_fft=4096, hop_samples=1024),
            chunk=ChunkSpec(length_s=12, overlap_s=1),
        ),
        budget=budget,
        batches=Batches(),
        optimization=Optimization(weight_decay=1e-1),  # without, they learn few songs by heart
        validation=Validation(),
    )


PRESETS = {"classic": classic, "studio": studio, "studio-small": studio_small}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every field made with `flag`; what is not given is not in the namespace."""
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
    """The (nested) configuration with the given flags in place of its own values."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if "help" in field.metadata and field.name in given:
            changes[field.name] = given[field.name]
        elif dataclasses.is_dataclass(value) and not isinstance(value, ModelSpec):
            changes[field.name] = with_flags(value, given)
    return dataclasses.replace(config, **changes)


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every field that is not itself a group of fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield field.name, value


def tracking_uri(run_dir: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Where runs are tracked: MLFLOW_TRACKING_URI, else a SQLite store beside the run folder."""
    return environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this one and `extra`."""
    return {**os.environ, **extra}


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Rank, world size and rank on this host as torchrun gives them; 0, 1, 0 for a process that it did not start."""
    return int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1)), int(environ.get("LOCAL_RANK", 0))


def allow_deterministic_cublas(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give cuBLAS the workspace without which torch refuses to be deterministic on a GPU; before its first use."""
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration of the run in a folder. Raises ConfigError where there is none."""
    path = run_dir / "config.json"
    try:
        return TrainConfig.from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"{run_dir} holds no run: it has no config.json") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
