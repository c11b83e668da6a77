"""The architectures: one file each, one line in `build`.

A network maps a complex mixture spectrogram (b, c, f, t) to complex stem spectrograms (b, s, c, f, t), stems in the order of
its spec, any number of frames. Transforms stay outside.
"""

from collections.abc import Callable

import torch

from serving.errors import SpecError
from serving.model.networks.banded import Banded
from serving.model.networks.classic import Classic
from serving.model.networks.network import Core, Network, RealCore
from serving.model.networks.spleeter import Spleeter
from serving.model.spec import ModelSpec

BEARS_BFLOAT16 = frozenset({"classic"})
"""Architectures whose stems stay 50 dB and more from those of float32. `banded` came as near as 45 dB: its last stem is what
three others leave, with the errors of them all."""


__all__ = ["BEARS_BFLOAT16", "Core", "Network", "RealCore", "build"]


def build(spec: ModelSpec) -> Network:
    """The network of a spec with fresh weights, in channels-last order. Raises SpecError for one that there is not."""
    architectures: dict[str, Callable[..., Network]] = {"classic": Classic, "banded": Banded, "spleeter": Spleeter}
    if spec.architecture not in architectures:
        raise SpecError(f"unknown architecture {spec.architecture!r}: there are {', '.join(architectures)}")
    try:
        network = architectures[spec.architecture](spec, **spec.dimensions)
    except (
        TypeError,
        ArithmeticError,
        LookupError,
        RuntimeError,
        ValueError,
    ) as error:  # what torch makes of absurd numbers
        raise SpecError(f"{spec.architecture} does not take these dimensions: {error}") from error
    # Convolutions of few channels run about twice as fast in this order of memory. The stubs of `to` do not know it.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
