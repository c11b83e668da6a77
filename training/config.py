"""The facts of a run, frozen, stored in its folder and in MLflow; and the environment, which training reads nowhere else."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.errors import SpecError
from serving.model.spec import ModelSpec, read_dataclass
from serving.version import commit
from training.errors import ConfigError

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Interval:
    """The values that a number may have. Infinity and NaN are never allowed."""

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


POSITIVE, COUNTED, SHARE = Interval(above=0), Interval(least=0), Interval(least=0, below=1)


def flag(default: Any, help: str, bounds: Interval | None = None) -> Any:
    """A field that is a flag of `stemwright train`. Every number in it must lie within `bounds`."""
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


@dataclass(frozen=True)
class Budget:
    """The length of a run, in steps or minutes of wall time. The schedule spans it."""

    steps: int | None = flag(None, "number of steps", POSITIVE)
    minutes: float | None = flag(
        None, "minutes of training from the first step on, including validation and saving", POSITIVE
    )

    def progress(self, step: int, trained_s: float, closing_s: float = 0.0) -> float:
        """The share of the budget that is spent, 0..1. The last `closing_s` seconds of a budget in minutes are set aside."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        left_s = 60 * (self.minutes or 0) - closing_s
        return min(1.0, trained_s / left_s) if left_s > 0 else 1.0


@dataclass(frozen=True)
class Batches:
    """The excerpts of a step."""

    batch_size: int = flag(4, "excerpts in a step", POSITIVE)
    crop_s: float = flag(3.0, "length of an excerpt in seconds", POSITIVE)

    @property
    def audio_s(self) -> float:
        """Seconds of audio in a step."""
        return self.batch_size * self.crop_s

    def crop_samples(self, rate_hz: int) -> int:
        """The length of an excerpt after augmentation."""
        return round(self.crop_s * rate_hz)


@dataclass(frozen=True)
class Optimization:
    """AdamW with linear warm-up and a cosine to zero at the end of the budget. Averages of the weights are scored."""

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
        0.15, "share of own songs kept for validation (MUSDB18 has its own 14)", Interval(above=0, below=1)
    )
    valid_excerpt_s: float = flag(30.0, "seconds scored from the middle of each validation song", Interval(least=1))
    patience: int | None = flag(None, "end after so many validations without a better score", POSITIVE)


@dataclass(frozen=True)
class TrainConfig:
    """The facts that determine the numbers of a run."""

    preset: str
    data: str
    model: ModelSpec
    budget: Budget
    batches: Batches
    optimization: Optimization
    validation: Validation
    seed: int = flag(0, "seed of the weights, the excerpts and the augmentation", Interval(least=0, below=2**63))
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
        """The length of an excerpt after augmentation, at the model's rate."""
        return self.batches.crop_samples(self.model.audio.sample_rate_hz)

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


def leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of every field that is not a section."""
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
    """The MLflow store of the runs in a folder: MLFLOW_TRACKING_URI, else the SQLite file that training made there.

    Raises ConfigError if there is neither.
    """
    uri = known_store_uri(runs, environ)
    if uri is None:
        raise ConfigError(
            f"{runs} holds no mlflow.db: name the folder of your runs by --runs, or set MLFLOW_TRACKING_URI"
        )
    return uri


def known_store_uri(runs: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """As `store_uri`, but None if there is neither."""
    file = runs.resolve() / "mlflow.db"
    return tracking_uri_given(environ) or (f"sqlite:///{file}" if file.exists() else None)


def tracking_uri_given(environ: Mapping[str, str] = os.environ) -> str | None:
    """MLFLOW_TRACKING_URI, None if it is not set."""
    return environ.get("MLFLOW_TRACKING_URI") or None


def public_uri(environ: Mapping[str, str] = os.environ) -> str | None:
    """STEMWRIGHT_MLFLOW_PUBLIC_URL: MLflow's address in a browser, if a container knows it by another name."""
    return environ.get("STEMWRIGHT_MLFLOW_PUBLIC_URL", "").strip() or None


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this one's and `extra`."""
    return {**os.environ, **extra}


def settings_of_runs(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a run on another host needs, too."""
    return {name: value for name, value in environ.items() if name.startswith(("AWS_", "MLFLOW_", "STEMWRIGHT_"))}


def launched(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """Rank, world size and local rank from torchrun; 0, 1, 0 for a process that it did not start."""
    return int(environ.get("RANK", 0)), int(environ.get("WORLD_SIZE", 1)), int(environ.get("LOCAL_RANK", 0))


def allow_deterministic_cublas(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set cuBLAS's workspace, which deterministic GPU work requires, before its first use."""
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def provenance(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The commit of the code, whether the checkout differs from it, and the image if the container names it."""
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


def check_bounds(name: str, value: Any, bounds: Interval | None) -> None:
    """Raises ConfigError, which names the flag, for a number out of bounds."""
    for number in value if isinstance(value, tuple) else (value,):
        if bounds is not None and number is not None:
            check(
                bounds.allow(number), f"--{name.replace('_', '-')} {number:g} is out of bounds: it has to be {bounds}"
            )


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
