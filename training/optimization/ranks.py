"""The processes of one run: one, or as many as torchrun starts on one or several hosts.

Each rank computes the gradients of its rows of a batch. All ranks step with the mean gradient, so their weights stay equal.
`--batch-size` counts the rows of all ranks together. Tensors on GPUs travel through NCCL, others through gloo.
"""

import datetime
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigError, RankLost

T = TypeVar("T")

PATIENCE = datetime.timedelta(hours=2)
"""The longest wait for a rank that still fetches or validates. Gloo notices a dead rank at once."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `world_size`. Alone it is rank 0 of 1, and exchanges cost nothing."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True for the one rank that writes."""
        return self.rank == 0

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connect the ranks within the block."""
        if self.world_size == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE
        )
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()

    @property
    def share(self) -> slice:
        """The slice of a sequence or a batch that is this rank's: every `world_size`-th item, starting at its rank."""
        return slice(self.rank, None, self.world_size)

    def require_share_of(self, batch_size: int) -> None:
        """Raises ConfigError if the ranks cannot share a batch evenly."""
        if batch_size % self.world_size:
            raise ConfigError(f"--batch-size {batch_size} cannot be shared by {self.world_size} ranks: take a multiple")

    def parallel(self, network: nn.Module) -> nn.Module:
        """Wrap a network so that its gradients are the mean over the ranks. Call `synced` on it before.

        Let go of it within `connected`: freed later, it waits for gloo's thread while that may wait for Python's lock
        (pytorch#56297).
        """
        if self.world_size == 1:
            return network
        with warnings.catch_warnings():  # the successor of `broadcast_buffers` is not in every torch that is allowed
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(network, broadcast_buffers=False)

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of a float tensor over the ranks. Raises RankLost."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        all_reduce(total)
        return total / self.world_size

    def largest(self, *values: float) -> list[float]:
        """The maximum of each value over the ranks, the same on all. Raises RankLost."""
        if self.world_size == 1:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.float64)
        all_reduce(agreed, torch.distributed.ReduceOp.MAX)
        return agreed.tolist()

    def from_first(self, value: T) -> T:
        """The first rank's value, on all ranks. Raises RankLost."""
        if self.world_size == 1:
            return value
        box = [value]
        with reaching_all():
            torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, by rank. Raises RankLost."""
        if self.world_size == 1:
            return [value]
        boxes: list[Any] = [None] * self.world_size
        with reaching_all():
            torch.distributed.all_gather_object(boxes, value)
        return boxes


def all_reduce(tensor: Tensor, operation: Any = torch.distributed.ReduceOp.SUM) -> None:
    with reaching_all():
        torch.distributed.all_reduce(tensor, operation)


@contextmanager
def reaching_all() -> Iterator[None]:
    """Turns the error of an exchange with a lost rank into RankLost."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:  # gloo has no type of its own for a connection that is gone
        raise RankLost(f"another rank is gone ({str(error).splitlines()[0]})") from error


class MeanOverRanks(torch.autograd.Function):
    """The mean of a tensor over the ranks, with the matching gradient."""

    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        all_reduce(total)
        return total / torch.distributed.get_world_size()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return MeanOverRanks.forward(_ctx, gradients[0])


def mean_over_ranks(tensor: Tensor) -> Tensor:
    mean: Tensor = MeanOverRanks.apply(tensor)  # type: ignore[no-untyped-call]
    return mean


class SyncedBatchNorm(nn.BatchNorm1d):
    """Batch normalization over the batch of all ranks, for CPUs: `nn.SyncBatchNorm` needs a GPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any input that a batch norm takes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = input.float()
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        mean = mean_over_ranks(wide.mean(axes))
        centred = wide - mean.view(shape)
        variance = mean_over_ranks(centred.square().mean(axes))
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            count = input.numel() // input.shape[1] * torch.distributed.get_world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape)).to(input.dtype)


def synced(network: nn.Module, device: torch.device) -> None:
    """Let every batch norm of a network normalize over all ranks. In place; the weights stay the same objects."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                wide = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
                for shared, tensor in (*child.named_parameters(), *child.named_buffers()):
                    setattr(wide, shared, tensor)
                setattr(module, name, wide)


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """Within the block, let synced batch norms use running statistics, so no rank waits for another."""
    norms = [module for module in network.modules() if isinstance(module, SyncedBatchNorm | nn.SyncBatchNorm)]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()
