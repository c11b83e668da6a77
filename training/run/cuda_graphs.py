"""A network's two passes recorded as CUDA graphs, each started by one call.

A step launches thousands of small kernels, which takes a processor longer than a fast GPU takes to compute them.
"""

import torch
from torch import Tensor, nn


class Recorded(nn.Module):
    """A network in training whose passes are replayed for inputs of one shape; the weights are those of the network.

    What a pass needs in memory it keeps. Gradients are good until the next pass: they cannot add up over several.
    Raises RuntimeError where a pass cannot be recorded, torch.OutOfMemoryError where it does not fit beside what is there.
    """

    def __init__(self, network: nn.Module, example: Tensor, autocast: torch.autocast) -> None:
        super().__init__()
        self.network = network
        # Gradients come from another stream than they are added up on, the default one; torch sees to the order, and warns.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        torch.cuda.empty_cache()  # a recording has memory of its own
        with autocast:  # the passes before have chosen the kernels: none to warm up with
            torch.cuda.make_graphed_callables(self, (example,), num_warmup_iters=0)

    def forward(self, mixture: Tensor) -> Tensor:
        stems: Tensor = self.network(mixture)
        return stems
