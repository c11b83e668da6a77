"""A network: complex arithmetic around a real-valued core.

The core has all of the weights and nearly all of the work. It knows no complex numbers, so that an engine other than torch
can run it.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

Core = Callable[[Tensor], Tensor]
"""Real tensor in, real tensor out; the first axis is a batch, and one axis is frames, any number of them.

The result may lie in memory that the next call overwrites.
"""


class Network(nn.Module):
    """Stem spectrograms (b, s, c, f, t) of a mixture spectrogram (b, c, f, t), both complex.

    `trained_channels` is the number of channels that training feeds: 1 for a network that hears one channel at a time,
    2 for one that hears left and right together. Any number may come in.
    """

    trained_channels = 1
    kept_float32: tuple[str, ...] = ()
    """Modules, by name, that an engine computes in float32 where it takes bfloat16 for the others: rounding hurts them most."""

    bins_heard: int
    """Bins of the spectrogram, f."""

    def forward(self, mixture: Tensor, core: Core | None = None) -> Tensor:
        """Stems that sum to the mixture. `core` runs in place of the network's own: it must give the same numbers."""
        return self.stems(mixture, core or self.core)

    @abstractmethod
    def stems(self, mixture: Tensor, core: Core) -> Tensor:
        """Stem spectrograms (b, s, c, f, t) of a mixture (b, c, f, t), by way of `core`."""

    @abstractmethod
    def core(self, x: Tensor) -> Tensor:
        """The real-valued part: weights and nothing complex."""

    @property
    def around_the_core(self) -> Mapping[str, float]:
        """The numbers that `stems` computes with beside the core and the spec, for programs that do it elsewhere."""
        return {}

    @abstractmethod
    def core_example(self, frames: int) -> Tensor:
        """An input of the core, for a conversion that traces it."""


class RealCore(nn.Module):
    """The core of a network as a module, which is what can be converted."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.core(x)
