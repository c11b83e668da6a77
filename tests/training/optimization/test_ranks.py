"""Several processes as one run, through gloo."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.processes import forked
from training.config import launched
from training.demo.local_s3 import free_port
from training.errors import ConfigError
from training.optimization.ranks import Ranks, alone, synced

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def work(rank: int, port: int, out: Path) -> None:
    """One rank, told what torchrun tells its workers."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ranks(*launched())
    with ranks.connected(CPU):
        assert ranks.mean(torch.tensor([4.0 * ranks.rank])).tolist() == [2.0]
        assert ranks.largest(ranks.rank, -ranks.rank, 1 / 3) == [1.0, 0.0, 1 / 3]
        assert ranks.from_first({"rank": ranks.rank}) == {"rank": 0}
        assert ranks.gathered(ranks.rank) == [0, 1]
        torch.save(normalized(ranks), out / f"{rank}.pt")


def normalized(ranks: Ranks) -> dict[str, torch.Tensor]:
    """The output of a synced batch norm for a rank's share of a batch, its gradients and its statistics."""
    torch.manual_seed(0)
    batch, weights = torch.randn(6, 3, 5, 4), torch.randn(6, 3, 5, 4)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(norm[0].weight)
    parameters = list(norm.parameters())
    synced(norm, CPU)
    assert [id(p) for p in norm.parameters()] == [id(p) for p in parameters]
    mine = batch[ranks.share].clone().requires_grad_()
    parallel = ranks.parallel(norm)
    output = parallel(mine)
    (output * weights[ranks.share]).mean().backward()
    facts = {"output": output, "input": mine.grad, **dict(norm.named_buffers())}
    facts |= {name: parameter.grad for name, parameter in norm.named_parameters()}
    return {name: tensor.detach() for name, tensor in facts.items()}


def test_one_process_is_alone_and_first() -> None:
    ranks = Ranks()
    with ranks.connected(CPU):
        assert ranks.mean(torch.tensor(3.0)) == 3.0
    assert ranks.first and ranks.largest(1, 2.5) == [1, 2.5]
    assert ranks.from_first("x") == "x" and ranks.gathered("x") == ["x"] and [1, 2, 3][ranks.share] == [1, 2, 3]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    Ranks(1, 2).require_share_of(4)
    with pytest.raises(ConfigError, match="--batch-size 5 cannot be shared by 2 ranks"):
        Ranks(1, 2).require_share_of(5)


def test_two_ranks_agree_and_their_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    port = free_port()
    for process in [forked(work, rank, port, tmp_path) for rank in range(2)]:
        process.join(120)
        assert process.exitcode == 0

    torch.manual_seed(0)
    batch, weights = torch.randn(6, 3, 5, 4).requires_grad_(), torch.randn(6, 3, 5, 4)
    norm = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(norm[0].weight)
    output = norm(batch)
    (output * weights).mean().backward()
    assert batch.grad is not None
    for rank in range(2):
        facts = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        mine = Ranks(rank, 2).share
        torch.testing.assert_close(facts["output"], output[mine], rtol=1e-5, atol=1e-5)
        # Each rank's loss is a mean over its own half, so that its gradients are twice those of the whole batch's mean.
        torch.testing.assert_close(facts["input"], 2 * batch.grad[mine], rtol=1e-4, atol=1e-6)
        for name, parameter in norm.named_parameters():
            torch.testing.assert_close(facts[name], parameter.grad, rtol=1e-4, atol=1e-6)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(facts[name], buffer, rtol=1e-5, atol=1e-6)


def test_alone_a_synced_network_waits_for_nobody_and_leaves_its_statistics() -> None:
    torch.manual_seed(0)
    plain, shared = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    synced(shared, CPU)
    batch = torch.randn(6, 3, 5, 4)
    with alone(shared):
        assert torch.equal(plain.eval()(batch), shared(batch))
    assert shared[0].training and shared[0].num_batches_tracked == 0
    assert torch.equal(plain.eval()(batch), shared.eval()(batch))
