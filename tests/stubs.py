"""Networks whose stems are known beforehand."""

import torch
from torch import Tensor, nn


class Share(nn.Module):
    """Gives each stem its share of the mixture, exactly."""

    def __init__(self, *shares: float) -> None:
        super().__init__()
        self.shares = shares

    def forward(self, mixture: Tensor) -> Tensor:
        return torch.stack([share * mixture for share in self.shares], dim=1)
