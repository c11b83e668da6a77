import pytest
import torch
from torch import Generator, Tensor

from training.augment import DRAWS, GAIN_DB, augment, chances, gain, pan, swap_channels


@pytest.fixture
def stems() -> Tensor:
    return torch.randn(500, 4, 2, 16, generator=Generator().manual_seed(0))


@pytest.fixture
def draw() -> Tensor:
    """A number in 0..1 for each stem, (b, s, 1, 1)."""
    return torch.rand(500, 4, 1, 1, generator=Generator().manual_seed(1))


def test_gain_is_one_factor_a_stem_within_its_range(stems: Tensor, draw: Tensor) -> None:
    factor = gain(stems, draw) / stems
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    torch.testing.assert_close(20 * factor[..., :1, :1].log10(), GAIN_DB * (2 * draw - 1), rtol=0, atol=1e-3)


def test_pan_weighs_left_and_right_by_numbers_that_sum_to_one(stems: Tensor, draw: Tensor) -> None:
    side = draw.flip(0)
    left = pan(torch.cat([torch.ones_like(stems[:, :, :1]), torch.zeros_like(stems[:, :, 1:])], dim=2), draw, side)
    right = pan(torch.cat([torch.zeros_like(stems[:, :, :1]), torch.ones_like(stems[:, :, 1:])], dim=2), draw, side)
    torch.testing.assert_close(left + right, torch.ones_like(left))
    assert left.shape == (500, 4, 1, 16) and left.min() >= 0 and left.max() <= 1
    shares = [(left[..., 0] == one).float().mean().item() for one in (0.0, 1.0)]
    assert all(abs(share - 0.25) < 0.04 for share in shares)


def test_channels_are_swapped_in_half_of_the_stems(stems: Tensor, draw: Tensor) -> None:
    swapped = swap_channels(stems, draw)
    for index in ((3, 1), (7, 2)):
        wanted = stems[index].flip(0) if draw[index] < 0.5 else stems[index]
        assert torch.equal(swapped[index], wanted)
    is_swapped = (swapped == stems.flip(2)).all(dim=-1).all(dim=-1)
    assert abs(is_swapped.float().mean().item() - 0.5) < 0.04


def test_chance_follows_from_seed_and_step_and_from_nothing_else() -> None:
    draws = chances(seed=1, step=2, batch_size=4, stems=3)
    torch.manual_seed(9)
    assert torch.equal(draws, chances(1, 2, 4, 3)) and draws.shape == (4, 3, DRAWS)
    assert not torch.equal(draws, chances(1, 3, 4, 3)) and not torch.equal(draws, chances(2, 2, 4, 3))


@pytest.mark.parametrize("channels", [1, 2])
def test_an_example_is_augmented_alike_alone_and_among_others(stems: Tensor, channels: int) -> None:
    draws = chances(0, 0, 500, 4)
    together, alone = augment(stems, channels, draws), augment(stems[3:4], channels, draws[3:4])
    assert together.shape == (500, 4, channels, 16)
    torch.testing.assert_close(together[3:4], alone)
