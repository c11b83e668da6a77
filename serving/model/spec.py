"""The facts of a model: frozen, validated, stored in its archive, never derived again.

`ModelSpec` suffices to rebuild a network around its weights and to run it: stems, audio, spectrogram, architecture, and how
a long song is cut.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from serving.errors import SpecError

STEMS = ("vocals", "drums", "bass", "other", "accompaniment")
"""Every stem a model may give. `accompaniment` is all but the vocals."""


Quality = Literal["fast", "best"]
"""How much work a song is worth: once over, or in windows that overlap by half, each in three keys."""


@dataclass(frozen=True)
class AudioSpec:
    """The audio a network is trained on; songs of another rate are converted at the edge."""

    sample_rate_hz: int

    def __post_init__(self) -> None:
        require(
            1_000 <= self.sample_rate_hz <= 384_000, f"sample_rate_hz {self.sample_rate_hz} is not in 1,000..384,000"
        )


@dataclass(frozen=True)
class StftSpec:
    """A short-time Fourier transform with a periodic Hann window over `n_fft` samples, centred, zeros beyond the ends."""

    n_fft: int
    hop_samples: int

    def __post_init__(self) -> None:
        require(self.n_fft > 0 and self.n_fft % 2 == 0, f"n_fft {self.n_fft} is not a positive even number")
        require(
            0 < self.hop_samples <= self.n_fft // 4,
            f"hop_samples {self.hop_samples} is not in 1..n_fft/4, where the transform can be inverted to the last sample",
        )

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """The number of frames of `samples`."""
        return samples // self.hop_samples + 1


@dataclass(frozen=True)
class ChunkSpec:
    """How a song is cut: windows of `length_s` that overlap by `overlap_s`.

    Whole seconds, so that windows start on a sample at every sample rate.
    """

    length_s: int
    overlap_s: int

    def __post_init__(self) -> None:
        require(
            0 < self.overlap_s <= self.length_s // 2,
            f"an overlap of {self.overlap_s} s does not fit windows of {self.length_s} s: it may be half a window at most",
        )


@dataclass(frozen=True)
class ModelSpec:
    """A separator without its weights.

    `dimensions` are the keyword arguments of the architecture's network: integers or tuples of integers. The last stem gets
    what the others leave of the mixture, so stems sum to it.
    """

    architecture: str
    dimensions: Mapping[str, int | tuple[int, ...]]
    stems: tuple[str, ...]
    audio: AudioSpec
    stft: StftSpec
    chunk: ChunkSpec

    def __post_init__(self) -> None:
        for name, value in self.dimensions.items():
            numbers = value if isinstance(value, tuple) else (value,)
            require(len(numbers) > 0 and min(numbers) > 0, f"dimension {name} {value} is not above 0")
        unknown = [stem for stem in self.stems if stem not in STEMS]
        require(not unknown, f"unknown stems {unknown}: there are {', '.join(STEMS)}")
        require(
            len(self.stems) >= 2 and len(set(self.stems)) == len(self.stems), f"stems {self.stems} are not two or more"
        )
        require(
            self.stems[-1] in ("other", "accompaniment"),
            f"the last stem takes the remainder and must be other or accompaniment, not {self.stems[-1]}",
        )

    @property
    def offered(self) -> tuple[str, ...]:
        """The stems that can be requested: the model's own, and the accompaniment as the sum of all but the vocals."""
        derived = "vocals" in self.stems and "accompaniment" not in self.stems
        return (*self.stems, "accompaniment") if derived else self.stems

    def rows_of(self, stem: str) -> list[int]:
        """The rows of an offered stem's parts among the model's stems."""
        parts = {stem} if stem in self.stems else set(self.stems) - {"vocals"}
        return [row for row, name in enumerate(self.stems) if name in parts]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The spec that `to_json` wrote. Raises SpecError where a fact is missing, unknown or of the wrong type."""
        spec: Self = read_dataclass(cls, facts)
        return spec


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(message)


def read_dataclass(cls: Any, facts: Any) -> Any:
    """An instance of a (nested) frozen dataclass from its JSON form; every field must be there and no other."""
    require(isinstance(facts, Mapping), f"{cls.__name__} needs an object, not {facts!r}")
    hints = typing.get_type_hints(cls)
    missing, unknown = sorted(hints.keys() - facts.keys()), sorted(facts.keys() - hints.keys())
    require(not missing, f"{cls.__name__} lacks {', '.join(missing)}")
    require(not unknown, f"{cls.__name__} has no {', '.join(unknown)}")
    return cls(**{name: read_value(hint, facts[name], f"{cls.__name__}.{name}") for name, hint in hints.items()})


def read_value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return read_dataclass(hint, value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        require(isinstance(value, list | tuple), f"{name} needs a list, not {value!r}")
        return tuple(read_value(arguments[0], item, name) for item in value)
    if origin is Mapping:
        require(isinstance(value, Mapping), f"{name} needs an object, not {value!r}")
        return {key: read_value(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        wanted = [a for a in arguments if (typing.get_origin(a) is tuple) == isinstance(value, list | tuple)]
        wanted = [a for a in wanted if a is not type(None)]
        require(bool(wanted), f"{name} cannot be {value!r}")
        return read_value(wanted[0], value, name)
    if hint is float and type(value) is int:
        return float(value)
    require(type(value) is hint, f"{name} needs {hint.__name__}, not {value!r}")
    return value
