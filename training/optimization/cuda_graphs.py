"""Forward and backward passes recorded as CUDA graphs, each replayed by one call.

A step launches thousands of small kernels, which takes a processor longer than a fast GPU takes to run them.
"""

import torch
from torch import Tensor, nn


class Recorded(nn.Module):
    """A network in training whose passes are replayed for inputs of one shape, with the network's own weights.

    It keeps the memory of a pass. Gradients are overwritten by the next pass, so they cannot accumulate, and ranks cannot
    share them. Raises RuntimeError if a pass cannot be recorded, torch.OutOfMemoryError if it does not fit.
    """

    def __init__(self, network: nn.Module, example: Tensor, autocast: torch.autocast) -> None:
        super().__init__()
        self.network = network
        # The graph's stream makes the gradients, the default stream adds them up. Torch keeps the order, and warns.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        torch.cuda.empty_cache()  # a recording has memory of its own
        with autocast:  # no warm-up: earlier passes have chosen the kernels
            torch.cuda.make_graphed_callables(self, (example,), num_warmup_iters=0)

    def forward(self, mixture: Tensor) -> Tensor:
        stems: Tensor = self.network(mixture)
        return stems
