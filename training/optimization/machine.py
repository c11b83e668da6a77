"""The machine of a run: this process's device, and the ranks that share the run."""

from dataclasses import dataclass

import torch

from serving.model.device import device_name
from training.optimization.ranks import Ranks


@dataclass(frozen=True)
class Machine:
    """A device and the ranks; one rank by default."""

    device: torch.device
    ranks: Ranks = Ranks()  # noqa: RUF009 - frozen, too

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """The name of the GPU, or "cpu" and its number of threads."""
        return device_name(self.device)
