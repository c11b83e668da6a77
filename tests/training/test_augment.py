import pytest
import torch
from torch import Generator, Tensor

from training.augment import GAIN_DB, augment, gain, pan, swap_channels


@pytest.fixture
def stems() -> Tensor:
    return torch.randn(500, 4, 2, 16, generator=Generator().manual_seed(0))


def seeded(seed: int = 1) -> Generator:
    return Generator().manual_seed(seed)


def test_gain_is_one_factor_a_stem_within_its_range(stems: Tensor) -> None:
    factor = gain(stems, seeded()) / stems
    torch.testing.assert_close(factor, factor[..., :1, :1].expand_as(factor))
    decibels = 20 * factor[:, :, 0, 0].log10()
    assert decibels.min() >= -GAIN_DB - 1e-3 and decibels.max() <= GAIN_DB + 1e-3
    assert decibels.min() < -0.95 * GAIN_DB and decibels.max() > 0.95 * GAIN_DB and abs(decibels.mean()) < 0.3


def test_pan_weighs_left_and_right_by_numbers_that_sum_to_one(stems: Tensor) -> None:
    left = pan(torch.cat([torch.ones_like(stems[:, :, :1]), torch.zeros_like(stems[:, :, 1:])], dim=2), seeded())
    right = pan(torch.cat([torch.zeros_like(stems[:, :, :1]), torch.ones_like(stems[:, :, 1:])], dim=2), seeded())
    torch.testing.assert_close(left + right, torch.ones_like(left))
    assert left.shape == (500, 4, 1, 16) and left.min() >= 0 and left.max() <= 1
    shares = [(left[..., 0] == side).float().mean().item() for side in (0.0, 1.0)]
    assert all(abs(share - 0.25) < 0.04 for share in shares)


def test_channels_are_swapped_in_half_of_the_stems(stems: Tensor) -> None:
    swapped = swap_channels(stems, seeded())
    is_swapped = (swapped == stems.flip(2)).all(dim=-1).all(dim=-1)
    is_kept = (swapped == stems).all(dim=-1).all(dim=-1)
    assert (is_swapped ^ is_kept).all()
    assert abs(is_swapped.float().mean().item() - 0.5) < 0.04


@pytest.mark.parametrize("channels", [1, 2])
def test_the_same_generator_gives_the_same_stems_with_the_models_channels(stems: Tensor, channels: int) -> None:
    first, again, other = (augment(stems, channels, seeded(seed)) for seed in (1, 1, 2))
    assert first.shape == (500, 4, channels, 16)
    assert torch.equal(first, again) and not torch.equal(first, other)
