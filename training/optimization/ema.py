"""Exponential moving averages of the weights, which score better than the last weights. Validation picks the best decay.

The arithmetic is torch's. `torch.optim.swa_utils.AveragedModel` around it waits for the device in every update: on an H200
a step of `classic` takes 1.33 times as long with it (tests/benchmarks/bench_ema.py).
"""

import copy

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """A network whose weights and buffers are the exponential moving average of another's.

    The decay rises to its final value as (1 + steps) / (10 + steps), so that the first weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    def update(self, network: nn.Module, step: int) -> None:
        """Add the weights after `step` steps to the average. Nothing waits for the device."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        averaged, current = tensors(self.network), tensors(network)
        floats = [name for name, tensor in averaged.items() if tensor.is_floating_point()]
        average([averaged[name] for name in floats], [current[name] for name in floats], step)
        for name in averaged.keys() - floats:
            averaged[name].copy_(current[name])


def tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}
