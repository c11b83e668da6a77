import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from serving.errors import SpecError
from serving.model.networks import build
from serving.model.networks.banded import FEATURES, Banded, Bands, features
from serving.model.spec import ModelSpec
from training.config import Budget
from training.presets import studio, studio_small

pytestmark = pytest.mark.slow


def mixtures(frames: int, batch: int = 1, bins: int = 513) -> Tensor:
    return torch.randn(batch, 2, bins, frames, dtype=torch.complex64, generator=torch.Generator().manual_seed(frames))


@pytest.fixture
def network(tiny_banded: tuple[ModelSpec, nn.Module]) -> Banded:
    network = tiny_banded[1]
    assert isinstance(network, Banded)
    return network


@pytest.mark.parametrize(("preset", "most"), [(studio, 12e6), (studio_small, 3e6)])
def test_the_number_of_parameters(preset: object, most: float) -> None:
    """Counted by hand: 9·in·out for a 3x3 kernel, 2 for each channel of a norm, 4·units·(inputs + units + 2) for an LSTM."""
    spec = preset("songs", Budget(steps=1)).model  # type: ignore[operator]
    channels, paths, units, inputs, remembered = (
        spec.dimensions[name] for name in ("channels", "paths", "units", "memory_inputs", "memory_units")
    )
    rows, widths, (top, _, bottom) = (256, 128, 64), (2, 8, 20), channels

    def level(before: int, after: int, row: int) -> int:
        return 9 * after * (before + after) + 2 * row * (row // 4) + 4 * 2 * after

    levels = sum(level(a, b, row) for (a, b), row in zip(itertools.pairwise((top, *channels)), rows, strict=True))
    levels += sum(level(2 * c, c, row) for c, row in zip(channels[:2], rows[:2], strict=True))
    doubling = sum(4 * a * b + a for a, b in itertools.pairwise(channels))
    path = 2 * bottom + 2 * 4 * units * (bottom + units + 2) + (2 * units + 1) * bottom
    memory = (bottom * 64 + 1) * inputs + 2 * 4 * remembered * (inputs + remembered + 2)
    memory += (2 * remembered + 1) * bottom * 64 + 2 * bottom
    ends = sum((2 * 3 * w + 1) * top + (top + 1) * 2 * (4 + 3) * w for w in widths)
    expected = 2 * 3 * 2048 + levels + doubling + 2 * paths * path + memory + ends
    assert sum(p.numel() for p in build(spec).parameters()) == expected < most


def test_bands_come_back_bin_by_bin() -> None:
    """Split into rows and merged again, every number is in its bin, and the added topmost one is a copy of the last."""
    bands = Bands((6, 8, 10), (1, 4, 5))
    numbers = torch.randn(3, 4, 7, 24)  # b, k, t, f
    rows = bands.rows_of(numbers.transpose(1, 2))
    assert [part.shape for part in rows] == [(3, 6, 7, 4), (3, 2, 7, 16), (3, 2, 7, 20)]
    merged = bands.bins_of(rows)
    assert torch.equal(merged[..., :-1], numbers) and torch.equal(merged[..., -1], numbers[..., -1])


def test_features_by_hand() -> None:
    """Two bins, one of them silent: the log of the power beside the mean, and the number with its magnitude compressed."""
    channel = torch.zeros(1, 1, 2, dtype=torch.complex64)
    channel[..., 0] = 0.5j
    found = features(channel)[0, 0]
    level = 0.25 / 2
    logs = torch.tensor([0.25, 0]).div(level).add(1e-6).log()
    assert found.shape == (FEATURES, 2)
    torch.testing.assert_close(found[0], logs, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1:, 0], torch.tensor([0, (0.25 / level) ** 0.15]), rtol=0, atol=1e-3)
    assert not found[1:, 1].any()


def test_two_frames_become_one_and_each_has_its_own_gains(network: Banded) -> None:
    """Even the last of an odd number: what a frame is told apart by is that it comes first or second of its two."""
    mixture = mixtures(1).expand(1, 2, 513, 7)[:, 0].transpose(1, 2)  # seven times the same frame
    with torch.inference_mode():
        gains = network.gains(mixture)
    assert gains.shape == (1, 3, 7, 513)
    assert (gains[:, :, 0] - gains[:, :, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 63, 64, 65])
def test_any_number_of_frames_and_the_stems_are_the_mixture(network: Banded, frames: int) -> None:
    mixture = mixtures(frames, batch=2)
    with torch.inference_mode():
        stems = network(mixture)
    assert stems.shape == (2, 4, 2, 513, frames)
    torch.testing.assert_close(stems.sum(dim=1), mixture, rtol=0, atol=1e-5)


def test_gains_act_on_middle_and_sides_each_by_itself(network: Banded) -> None:
    middle, sides = torch.randn(2, 3, 513, 20, dtype=torch.complex64)
    with torch.inference_mode():
        stems = network(torch.stack([middle + sides, middle - sides], dim=1))[:, :3]
        wanted = [network.gains(part.transpose(1, 2)).transpose(2, 3) * part[:, None] for part in (middle, sides)]
    torch.testing.assert_close((stems[:, :, 0] + stems[:, :, 1]) / 2, wanted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close((stems[:, :, 0] - stems[:, :, 1]) / 2, wanted[1], rtol=0, atol=1e-5)
    assert stems.abs().max() > 0.01


@pytest.mark.parametrize("channels", [1, 6])
def test_channels_that_are_not_two_are_heard_one_by_one(network: Banded, channels: int) -> None:
    mixture = torch.randn(2, channels, 513, 20, dtype=torch.complex64)
    with torch.inference_mode():
        stems = network(mixture)
        alone = [network(mixture[:, nth : nth + 1]) for nth in range(channels)]
    assert stems.shape == (2, 4, channels, 513, 20)
    torch.testing.assert_close(stems, torch.cat(alone, dim=2), rtol=0, atol=1e-5)


def test_one_channel_on_both_sides_is_that_channel(network: Banded) -> None:
    mono = mixtures(20)[:, :1]
    with torch.inference_mode():
        both, one = network(mono.expand(1, 2, 513, 20)), network(mono)
    torch.testing.assert_close(both, one.expand(1, 4, 2, 513, 20), rtol=0, atol=1e-5)


def test_gains_are_masks_that_sum_to_one_and_anything_at_a_right_angle(network: Banded) -> None:
    with torch.no_grad():
        for leave in network.leave:
            leave.weight.mul_(1000)
        gains = network.gains(mixtures(20)[:, 0].transpose(1, 2))
    assert gains.real.min() >= 0 and gains.real.max() > 0.9 and gains.real.sum(dim=1).max() <= 1 + 1e-5
    assert gains.imag.min() < -1 and gains.imag.max() > 1


def test_phases_weigh_little_at_the_start(tiny_banded: tuple[ModelSpec, nn.Module]) -> None:
    network = build(tiny_banded[0])
    assert isinstance(network, Banded)
    magnitudes, *phases = network.normalize.weight.unflatten(0, (FEATURES, 512))
    assert (magnitudes == 1).all()
    assert all((weights == 0.1).all() for weights in phases)


def test_the_level_does_not_matter(network: Banded) -> None:
    mixture = mixtures(20)
    with torch.inference_mode():
        soft, loud = (network(scale * mixture) / scale for scale in (0.1, 1000.0))
    torch.testing.assert_close(soft, loud, rtol=0, atol=1e-3)


def test_silence_stays_silence(network: Banded) -> None:
    with torch.inference_mode():
        assert not network(torch.zeros(1, 2, 513, 9, dtype=torch.complex64)).abs().any()


def test_a_batch_equals_its_rows(network: Banded) -> None:
    batch = mixtures(30, batch=3)
    with torch.inference_mode():
        together, alone = network(batch), torch.cat([network(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # sums in another order


def test_every_frame_and_bin_sees_far(network: Banded) -> None:
    """One moment's gains follow from the whole spectrum and all of time."""
    mixture = mixtures(64)[:, :1].clone().requires_grad_()
    torch.view_as_real(network(mixture)[0, 0, 0, 100, 32]).sum().backward()
    assert mixture.grad is not None
    seen = mixture.grad[0].abs() > 0
    assert seen.any(dim=1).all() and seen[:, :512].any(dim=2).all()


def test_the_gradient_reaches_every_parameter(network: Banded) -> None:
    network.train()
    stems = network(mixtures(16, batch=2))
    torch.view_as_real(stems[:, :-1] - 0.3).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"band_bins": (64, 448)}, "2 bands have 3 widths"),
        ({"band_bins": (64, 128, 300)}, "492 bins, the spectrogram has 512"),
        ({"band_widths": (2, 8, 21)}, "320 by 21"),
        ({"band_widths": (2, 8, 64)}, "53 rows cannot be halved 2 times"),
        ({"fold": 8}, "fold"),
    ],
)
def test_facts_that_do_not_fit_are_named(
    tiny_banded: tuple[ModelSpec, nn.Module], change: dict[str, object], named: str
) -> None:
    spec = tiny_banded[0]
    with pytest.raises(SpecError, match=named):
        build(dataclasses.replace(spec, dimensions={**spec.dimensions, **change}))  # type: ignore[dict-item]
