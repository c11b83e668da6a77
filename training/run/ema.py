"""Averages of the weights over the steps: better than the last weights, and which decay is best only validation tells."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A network whose weights are the exponential moving average of another's, with buffers such as a batch norm's.

    The decay rises to its final value as (1 + steps) / (10 + steps), so that the weights of the start are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after `step` steps. Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged, current = tensors(self.network), tensors(network)
        floats = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[name] for name in floats], [current[name] for name in floats], 1 - decay)
        for name in averaged.keys() - floats:
            averaged[name].copy_(current[name])


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
