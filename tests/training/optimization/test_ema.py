"""The averages of the weights, in closed form."""

import pytest
import torch
from torch import nn

from training.optimization.ema import Average


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def set_all(network: nn.Module, value: float) -> None:
    """Set every weight and every statistic."""
    for tensor in network.state_dict().values():
        tensor.fill_(value)


def values(network: nn.Module, name: str) -> list[float]:
    return network.state_dict()[name].unique().tolist()


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [(0.99, 0, 0.1), (0.99, 1, 2 / 11), (0.99, 90, 0.91), (0.99, 890, 0.99), (0.99, 10**6, 0.99), (0.5, 90, 0.5)],
)
def test_the_decay_rises_to_its_final_value(network: nn.Module, decay: float, step: int, expected: float) -> None:
    set_all(network, 1)
    average = Average(network, decay)
    set_all(network, 0)

    average.update(network, step)

    assert average.network.state_dict()["0.weight"].flatten().tolist() == pytest.approx([expected] * 6, rel=1e-6)


def test_several_updates_are_the_sum_of_what_each_leaves(network: nn.Module) -> None:
    set_all(network, 8)
    average = Average(network, decay=0.25)
    for step, value in enumerate((16.0, 4.0), start=10):
        set_all(network, value)
        average.update(network, step)

    assert values(average.network, "0.bias") == [0.25 * (0.25 * 8 + 0.75 * 16) + 0.75 * 4]


def test_statistics_are_averaged_like_weights_and_counts_are_copied(network: nn.Module) -> None:
    set_all(network, 0)
    average = Average(network, decay=0.25)
    set_all(network, 8)

    average.update(network, step=10)

    assert [values(average.network, f"1.running_{name}") for name in ("mean", "var")] == [[6], [6]]
    assert values(average.network, "1.num_batches_tracked") == [8]


def test_it_is_for_scoring_and_never_trained(network: nn.Module) -> None:
    average = Average(network, decay=0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_the_network_that_is_trained_is_left_alone(network: nn.Module) -> None:
    average = Average(network, decay=0.9)
    set_all(network, 8)

    average.update(network, step=0)

    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert {tuple(tensor.unique().tolist()) for tensor in network.state_dict().values()} == {(8,)}
