"""Torch, operation by operation. It runs on every device.

torch.compile is not used: it needs a C++ compiler, and a minute or more at every start.
"""

import torch
from torch import Tensor, nn

from serving.model.networks import BEARS_BFLOAT16
from serving.model.processor import multiplies_bfloat16


class EagerEngine:
    """A network in float32; in bfloat16 on a CPU that has matrix units for it, if the architecture bears it."""

    def __init__(self, architecture: str, network: nn.Module, device: torch.device) -> None:
        self.network, self.device = network, device
        self.bfloat16 = device.type == "cpu" and architecture in BEARS_BFLOAT16 and multiplies_bfloat16()

    @property
    def description(self) -> str:
        return f"torch, {'bfloat16' if self.bfloat16 else 'float32'}"

    def __call__(self, mixture: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            stems: Tensor = self.network(mixture)
        return stems
