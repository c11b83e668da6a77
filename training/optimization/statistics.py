"""The running statistics of batch norms, that is a network's buffers, as they were after the last step."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Statistics:
    """A network's buffers as one vector per type, and a copy of each vector to return to."""

    def __init__(self, network: nn.Module) -> None:
        by_type: dict[torch.dtype, dict[str, Tensor]] = {}
        for name, buffer in network.named_buffers():
            by_type.setdefault(buffer.dtype, {})[name] = buffer
        self.buffers = list(by_type.values())
        self.vectors = [parameters_to_vector(buffers.values()) for buffers in self.buffers]
        for vector, buffers in zip(self.vectors, self.buffers, strict=True):
            vector_to_parameters(vector, buffers.values())  # from here on each buffer is a piece of the vector
        self.remember()

    @torch.no_grad()
    def remember(self) -> None:
        """Make the present statistics the ones to return to."""
        self.remembered = [vector.clone() for vector in self.vectors]

    @torch.no_grad()
    def keep_where(self, good: Tensor) -> None:
        """Remember the present statistics if `good` (a boolean on the device), otherwise restore the remembered ones."""
        self.remembered = [
            torch.where(good, vector, before) for vector, before in zip(self.vectors, self.remembered, strict=True)
        ]
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Return to the remembered statistics."""
        for vector, before in zip(self.vectors, self.remembered, strict=True):
            vector.copy_(before)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The remembered statistics by buffer name."""
        for before, buffers in zip(self.remembered, self.buffers, strict=True):
            pieces = before.split([buffer.numel() for buffer in buffers.values()])
            for (name, buffer), piece in zip(buffers.items(), pieces, strict=True):
                yield name, piece.view(buffer.shape)
