"""The facts of a run: frozen, stored in its folder and in MLflow. Presets are functions, flags are made from the fields.

The only reader of the environment in the training package.
"""

import argparse
import dataclasses
import json
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.errors import SpecError
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec, read_dataclass
from serving.model.starter_spec import SPEC as STARTER_SPEC
from serving.version import commit
from training.errors import ConfigError

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Bounds:
    """The values that a number may have. Infinity and NaN are never among them."""

    above: float | None = None
    least: float | None = None
    below: float | None = None

    def allow(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        low = f"above {self.above:g}" if self.above is not None else f"{self.least or 0:g} or more"
        return low if self.below is None else f"{low} and below {self.below:g}"


POSITIVE, COUNTED, SHARE = Bounds(above=0), Bounds(least=0), Bounds(least=0, below=1)


def flag(default: Any, help: str, bounds: Bounds | None = None) -> Any:
    """A field that `stemwright train` offers as a flag of its name; every number of it has to be within bounds."""
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


@dataclass(frozen=True)
class Budget:
    """The length of training: a number of steps, or of minutes on the wall. The schedule is planned over it."""

    steps: int | None = flag(None, "train for so many steps", POSITIVE)
    minutes: float | None = flag(
        None, "train for so many minutes from the first step on, with validation and saving", POSITIVE
    )

    def progress(self, step: int, trained_s: float, closing_s: float = 0.0) -> float:
        """The share of the budget that is spent, 0..1. Of minutes, the last `closing_s` seconds are kept for the end."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        left_s = 60 * (self.minutes or 0) - closing_s
        return min(1.0, trained_s / left_s) if left_s > 0 else 1.0


@dataclass(frozen=True)
class Batches:
    """The excerpts of one step."""

    batch_size: int = flag(4, "excerpts in a step", POSITIVE)
    crop_s: float = flag(3.0, "length of an excerpt in seconds", POSITIVE)


@dataclass(frozen=True)
class Optimization:
    """AdamW with a linear warm-up and a cosine to zero at the end of the budget. Averages of the weights are scored."""

    learning_rate: float = flag(2e-3, "peak learning rate", POSITIVE)
    weight_decay: float = flag(1e-2, "decoupled weight decay", COUNTED)
    warmup: float = flag(0.05, "share of the budget over which the learning rate rises", SHARE)
    clip_norm: float = flag(1.0, "gradients are scaled down to this norm", POSITIVE)
    ema_decays: tuple[float, ...] = flag(
        (0.99, 0.999), "decays of the averages of the weights; validation picks one", SHARE
    )


@dataclass(frozen=True)
class Validation:
    """When and on which songs the EMA weights are scored, and when to stop early."""

    validations: int = flag(
        12, "validations in a run; fewer where they would take more than a quarter of --minutes", POSITIVE
    )
    valid_share: float = flag(
        0.15, "share of own songs kept for validation (MUSDB18 has its own 14)", Bounds(above=0, below=1)
    )
    valid_excerpt_s: float = flag(30.0, "seconds scored from the middle of each validation song", Bounds(least=1))
    patience: int | None = flag(None, "end after so many validations without a better score", POSITIVE)


@dataclass(frozen=True)
class TrainConfig:
    """The facts that decide the numbers of a run."""

    preset: str
    data: str
    model: ModelSpec
    budget: Budget
    batches: Batches
    optimization: Optimization
    validation: Validation
    seed: int = flag(0, "seed of the weights, the excerpts and the augmentation", Bounds(least=0, below=2**63))
    init: str | None = flag(None, "start from the weights of an archive: a .mar file, s3://…, runs:/… or models:/…")
    precision: str | None = flag(
        None, "float32, bfloat16 or float16 (default: the fastest that the device has natively)"
    )
    data_licence: str | None = flag(
        None, "licence of own songs as an SPDX name, or own for songs that belong to you (MUSDB18's is known)"
    )
    compile: bool = flag(False, "compile the network with torch.compile")
    deterministic: bool = flag(False, "the same numbers on every run of the same device, at some cost in speed")

    def __post_init__(self) -> None:
        check(
            (self.budget.steps is None) != (self.budget.minutes is None),
            "give either --steps or --minutes: one of them plans the run",
        )
        check(len(self.optimization.ema_decays) > 0, "--ema-decays needs a number: the decay of an average")
        check(self.precision in (None, *PRECISIONS), f"--precision {self.precision}: take {' or '.join(PRECISIONS)}")
        for section in (self, self.budget, self.batches, self.optimization, self.validation):
            for field in dataclasses.fields(section):
                check_bounds(field.name, getattr(section, field.name), field.metadata.get("bounds"))

    @property
    def crop_samples(self) -> int:
        """The length of an excerpt at the model's rate, after augmentation."""
        return round(self.batches.crop_s * self.model.audio.sample_rate_hz)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The configuration that `to_json` wrote. Raises ConfigError if it does not fit this version."""
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


def spleeter(data: str, budget: Budget) -> TrainConfig:
    """Spleeter's two U-Nets, to fine-tune the starter: `--init` with its archive. Few small steps, long excerpts, and few
    validations, because the start is good already."""
    return TrainConfig(
        preset="spleeter",
        data=data,
        model=STARTER_SPEC,
        budget=budget,
        batches=Batches(batch_size=2, crop_s=4.4),
        optimization=Optimization(learning_rate=1e-4),
        validation=Validation(validations=4),
    )


PRESETS = {"classic": classic, "studio": studio, "studio-small": studio_small, "spleeter": spleeter}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every field made with `flag`. A flag that is not given is not in the namespace."""
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


def started(preset: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a new run: a preset, `classic` if none is named, with the given flags. Raises ConfigError."""
    data = flags.get("data")
    if data is None:
        raise ConfigError("--data is missing: name a folder, a zip or an s3:// prefix of songs")
    budget = Budget(steps=flags.get("steps"), minutes=flags.get("minutes"))
    config: TrainConfig = with_flags(PRESETS[preset or "classic"](data, budget), flags)
    return config


def resumed(stored: TrainConfig, preset: str | None, flags: Mapping[str, Any]) -> TrainConfig:
    """The stored configuration of a run with the given flags. Raises ConfigError for those that would make it another run."""
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


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every field that is not itself a group of fields."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value)
        else:
            yield field.name, value


def tracking_uri(run_dir: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The address of MLflow: MLFLOW_TRACKING_URI, else a SQLite store beside the run folder."""
    return tracking_uri_given(environ) or f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"


def store_uri(runs: Path, environ: Mapping[str, str] = os.environ) -> str:
    """The address of the store of the runs in a folder: MLFLOW_TRACKING_URI, else the SQLite file that training makes there.

    Raises ConfigError where there is neither.
    """
    uri = known_store_uri(runs, environ)
    if uri is None:
        raise ConfigError(
            f"{runs} holds no mlflow.db: name the folder of your runs by --runs, or set MLFLOW_TRACKING_URI"
        )
    return uri


def known_store_uri(runs: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """As `store_uri`, None where there is neither."""
    file = runs.resolve() / "mlflow.db"
    return tracking_uri_given(environ) or (f"sqlite:///{file}" if file.exists() else None)


def tracking_uri_given(environ: Mapping[str, str] = os.environ) -> str | None:
    """MLFLOW_TRACKING_URI, None where it is not set."""
    return environ.get("MLFLOW_TRACKING_URI") or None


def public_uri(environ: Mapping[str, str] = os.environ) -> str | None:
    """STEMWRIGHT_MLFLOW_PUBLIC_URL: the address of MLflow in a browser, where a container knows it by another name."""
    return environ.get("STEMWRIGHT_MLFLOW_PUBLIC_URL", "").strip() or None


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this one and `extra`."""
    return {**os.environ, **extra}


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Rank, world size and rank on this host as torchrun gives them; 0, 1, 0 for a process that it did not start."""
    return int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1)), int(environ.get("LOCAL_RANK", 0))


def allow_deterministic_cublas(environ: MutableMapping[str, str] = os.environ) -> None:
    """Give cuBLAS the workspace without which torch refuses to be deterministic on a GPU; before its first use."""
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def provenance(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The commit of the code, whether the checkout differs from it, and the image, where the container names it."""
    code = commit()
    image = {"image": environ["STEMWRIGHT_IMAGE"]} if "STEMWRIGHT_IMAGE" in environ else {}
    return {"commit": code.removesuffix("-dirty"), "dirty": code.endswith("-dirty"), **image}


def read_config(run_dir: Path) -> TrainConfig:
    """The configuration of the run in a folder. Raises ConfigError if there is none."""
    path = run_dir / "config.json"
    try:
        return TrainConfig.from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"{run_dir} holds no run: it has no config.json") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error


def check_bounds(name: str, value: Any, bounds: Bounds | None) -> None:
    """Raises ConfigError, with the name of the flag, for a number out of bounds."""
    for number in value if isinstance(value, tuple) else (value,):
        if bounds is not None and number is not None:
            check(
                bounds.allow(number), f"--{name.replace('_', '-')} {number:g} is out of bounds: it has to be {bounds}"
            )


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
