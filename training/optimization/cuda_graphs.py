"""A network's two passes recorded as CUDA graphs, each started by one call.

A step launches thousands of small kernels. A processor takes longer to launch them than a fast GPU to compute them.
"""

import torch
from torch import Tensor, nn


class Recorded(nn.Module):
    """A network in training whose passes are replayed for inputs of one shape, with the network's own weights.

    It keeps the memory of a pass. Its gradients last until the next pass, so they cannot accumulate, and no other rank can
    have a part in them. Raises RuntimeError if a pass cannot be recorded, torch.OutOfMemoryError if it does not fit.
    """

    def __init__(self, network: nn.Module, example: Tensor, autocast: torch.autocast) -> None:
        super().__init__()
        self.network = network
        # Gradients come from another stream than the default one, which adds them up. Torch keeps the order, and warns.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        torch.cuda.empty_cache()  # a recording has memory of its own
        with autocast:  # the passes before have chosen the kernels: none to warm up with
            torch.cuda.make_graphed_callables(self, (example,), num_warmup_iters=0)

    def forward(self, mixture: Tensor) -> Tensor:
        stems: Tensor = self.network(mixture)
        return stems
