import dataclasses
import itertools

import pytest
import torch
from torch import Tensor, nn

from serving.errors import SpecError
from serving.networks import build
from serving.networks.banded import FEATURES, Banded, Bands, features
from serving.spec import ModelSpec
from training.config import Budget, studio, studio_small


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
    channels, paths, units = (spec.dimensions[name] for name in ("channels", "paths", "units"))
    rows, widths = (256, 128, 64), (2, 8, 20)

    def level(c: int, row: int) -> int:
        return 2 * 9 * c * c + 2 * row * (row // 4) + 4 * 2 * c

    levels = sum(level(c, row) for c, row in zip(channels, rows, strict=True))
    levels += sum(level(c, row) for c, row in zip(channels[:2], rows[:2], strict=True))
    halving = sum(4 * a * b + b + 4 * a * b + a for a, b in itertools.pairwise(channels))
    path = 2 * channels[2] + 2 * 4 * units * (channels[2] + units + 2) + (2 * units + 1) * channels[2]
    top = channels[0]
    ends = sum((8 * w + 1) * top + (top + 1) * 3 * 2 * w * 2 for w in widths)
    expected = 2 * 8 * 2048 + levels + halving + 2 * paths * path + ends
    assert sum(p.numel() for p in build(spec).parameters()) == expected < most


def test_bands_come_back_bin_by_bin() -> None:
    """Split into rows and merged again, every number is in its bin, and the added topmost one is a copy of the last."""
    bands = Bands((6, 8, 10), (1, 4, 5))
    numbers = torch.randn(3, 4, 2, 7, 24, 2)
    planes = numbers.flatten(1, 2).permute(4, 0, 2, 1, 3)
    rows = [torch.stack(parts, dim=-1).flatten(-2) for parts in zip(*map(bands.rows_of, planes), strict=True)]
    assert [part.shape for part in rows] == [(3, 6, 7, 16), (3, 2, 7, 64), (3, 2, 7, 80)]
    merged = bands.bins_of(rows)
    assert torch.equal(merged[..., :-1, :], numbers) and torch.equal(merged[..., -1, :], numbers[..., -1, :])


def test_features_by_hand() -> None:
    """One bin that is all on the left: middle and sides have half its magnitude each, the right nothing."""
    middle_sides = torch.zeros(1, 2, 1, 2, dtype=torch.complex64)
    middle_sides[..., 0] = 0.5j
    found = features(middle_sides)[0, 0, :, 0]
    level = 2 * 0.25 / 4  # the mean power of middle and sides over two bins
    logs = torch.tensor([0.25, 0.25, 1.0, 0.0]).div(level).add(1e-6).log()
    compressed = (0.25 / level) ** 0.15
    expected = torch.cat([logs, torch.tensor([0, 0, compressed, compressed])])
    assert len(found) == FEATURES
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 63, 64, 65])
def test_any_number_of_frames_and_the_stems_are_the_mixture(network: Banded, frames: int) -> None:
    mixture = mixtures(frames, batch=2)
    with torch.inference_mode():
        stems = network(mixture)
    assert stems.shape == (2, 4, 2, 513, frames)
    torch.testing.assert_close(stems.sum(dim=1), mixture, rtol=0, atol=1e-5)


def test_gains_act_on_middle_and_sides(network: Banded) -> None:
    """Of a song without sides no stem has any, whatever the gains are."""
    mixture = mixtures(20)[:, :1].expand(1, 2, 513, 20)
    with torch.inference_mode():
        stems = network(mixture)
    torch.testing.assert_close(stems[:, :, 0], stems[:, :, 1], rtol=0, atol=1e-6)
    assert stems[:, :3].abs().max() > 0.01


def test_gains_are_masks_and_anything_at_a_right_angle(network: Banded) -> None:
    with torch.no_grad():
        for leave in network.leave:
            leave.weight.mul_(100)
        gains = network.gains(mixtures(20).transpose(2, 3))
    assert gains.real.min() >= 0 and gains.real.max() <= 1
    assert gains.imag.min() < -1 and gains.imag.max() > 1


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
    """One moment's gains follow from the whole spectrum, both channels and all of time."""
    mixture = mixtures(64).requires_grad_()
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
