import pytest
import torch
from torch import Generator, Tensor

from training.data.augment import (
    DRAWS,
    GAIN_DB,
    SEMITONES,
    augment,
    chances,
    gain,
    one_channel,
    samples_left,
    samples_to_cut,
    transpose,
)

SAME_KEY = 0.5


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


def test_what_is_heard_is_the_middle_the_sides_or_stems_from_places_of_their_own(stems: Tensor) -> None:
    place = torch.rand(500, 4, 1, 1, generator=Generator().manual_seed(2))
    kind = torch.linspace(0, 0.999, 500)[:, None, None, None]
    heard = one_channel(stems, place, kind)
    left, right = stems[:, :, :1], stems[:, :, 1:]
    assert heard.shape == (500, 4, 1, 16)
    torch.testing.assert_close(heard[:250], ((left + right) / 2)[:250])
    torch.testing.assert_close(heard[251:375], ((left - right) / 2)[251:375])
    torch.testing.assert_close(heard[376:], (place * left + (1 - place) * right)[376:])


def test_stems_get_gains_and_are_heard_from_one_side(stems: Tensor) -> None:
    draws = chances(0, 0, 500, 4)
    draws[..., -1] = SAME_KEY
    level, place, kind, _ = draws[..., None, None].unbind(2)
    wanted = one_channel(gain(stems, level), place, kind[:, :1])
    torch.testing.assert_close(augment(stems, draws), wanted[..., :14])


def test_chance_follows_from_seed_and_step_and_from_nothing_else() -> None:
    draws = chances(seed=1, step=2, batch_size=4, stems=3)
    torch.manual_seed(9)
    assert torch.equal(draws, chances(1, 2, 4, 3)) and draws.shape == (4, 3, DRAWS)
    assert not torch.equal(draws, chances(1, 3, 4, 3)) and not torch.equal(draws, chances(2, 2, 4, 3))


def test_an_example_is_augmented_alike_alone_and_among_others(stems: Tensor) -> None:
    draws = chances(0, 0, 500, 4)
    together, alone = augment(stems, draws), augment(stems[3:4], draws[3:4])
    assert together.shape == (500, 4, 1, 14)
    torch.testing.assert_close(together[3:4], alone)


@pytest.mark.parametrize("samples", [1, 14, 66_150, 441_000])
def test_an_excerpt_is_cut_as_much_longer_as_the_fastest_uses_up(samples: int) -> None:
    assert samples_left(samples_to_cut(samples)) == samples
    assert samples * 2 ** (2 / 12) <= samples_to_cut(samples) < samples * 2 ** (2 / 12) + 1


def test_every_stem_of_an_example_is_played_at_one_of_five_speeds_at_its_own_level() -> None:
    """A tone of 1 kHz of amplitude 0.5 in each stem: what it sounds like, a few cents off."""
    samples, rate_hz = 66_150, 22_050
    n = torch.arange(samples_to_cut(samples))
    tones = 0.5 * torch.sin(2 * torch.pi * 1000 / rate_hz * n).expand(5, 4, 2, -1)
    played = transpose(tones, torch.tensor([0.1, 0.3, SAME_KEY, 0.7, 0.9]))
    assert played.shape == (5, 4, 2, samples)
    torch.testing.assert_close(played[2], tones[2, ..., :samples])
    middle = torch.hann_window(samples, dtype=torch.float64) * played
    loudest_hz = torch.fft.rfft(middle).abs().argmax(dim=-1) * rate_hz / samples
    wanted_hz = 1000 * 2 ** (torch.tensor(SEMITONES) / 12)[:, None, None]
    assert ((1200 * (loudest_hz / wanted_hz).log2()).abs() < 6).all()
    levels = middle.square().sum(dim=-1).sqrt()
    torch.testing.assert_close(levels, levels[2:3, :1, :1].expand(5, 4, 2), rtol=0.001, atol=0)


def test_keys_are_drawn_alike_often(stems: Tensor) -> None:
    keys = chances(0, 0, 5000, 4)[:, 0, -1]
    found = transpose(stems[:1, :1, :1].expand(5000, 1, 1, 16), keys)
    same = torch.isclose(found, stems[:1, :1, :1, :14], atol=1e-5).all(dim=-1)
    assert abs(same.float().mean().item() - 1 / len(SEMITONES)) < 0.02
