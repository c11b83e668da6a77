"""Averages of the weights over the steps, which score better than the last weights. Validation picks the best decay.

Ours and not `torch.optim.swa_utils.AveragedModel`: that one copies a counter to the device in every step and waits for it.
"""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A network whose weights and buffers are the exponential moving average of another's.

    The decay rises to its final value as (1 + steps) / (10 + steps), so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after `step` steps to the average. Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = tensors(self.network), tensors(network)
        floats = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name in averaged.keys() - floats:
            averaged[name].copy_(current[name])


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
