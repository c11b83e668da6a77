import dataclasses

import pytest
import torch
from torch import Tensor, nn

from serving.errors import SpecError
from serving.model.networks import build
from serving.model.networks.classic import Classic
from serving.model.spec import ModelSpec
from training.config import Budget
from training.presets import classic

pytestmark = pytest.mark.slow


def magnitudes(frames: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, 1025, frames, generator=torch.Generator().manual_seed(frames))


@pytest.fixture
def network(tiny_network: nn.Module) -> Classic:
    assert isinstance(tiny_network, Classic)
    return tiny_network


def test_the_preset_has_the_shapes_of_the_plan() -> None:
    network = build(classic("songs", Budget(steps=1)).model).eval()
    assert isinstance(network, Classic)
    with torch.inference_mode():
        assert network.core(magnitudes(646)).shape == (1, 1, 1025, 646)


def test_the_number_of_parameters() -> None:
    """Counted by hand: 9·in·out for a 3x3 kernel, 2 for each channel of a norm, 4·units·(inputs + units + 2) for an LSTM."""

    def level(before: int, after: int, rows: int) -> int:
        return 9 * after * (before + after) + 2 * rows * max(16, rows // 4) + 4 * 2 * after

    levels = level(8, 48, 128) + level(48, 96, 64) + level(96, 128, 32) + level(192, 96, 64) + level(96, 48, 128)
    memory = (128 * 32 + 1) * 384 + 2 * 4 * 256 * (384 + 256 + 2) + (512 + 1) * 128 * 32 + 2 * 128
    up = 4 * 128 * 96 + 96 + 4 * 96 * 48 + 48
    expected = 2 * 1024 + levels + memory + up + 48 * 8 + 8
    network = build(classic("songs", Budget(steps=1)).model)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 63, 64, 65])
def test_any_number_of_frames(network: Classic, frames: int) -> None:
    with torch.inference_mode():
        mask = network.core(magnitudes(frames))
    assert mask.shape == (1, 1, 1025, frames) and mask.min() >= 0 and mask.max() <= 1


@pytest.mark.parametrize("channels", [1, 6])
def test_channels_that_are_not_two_get_one_mask(network: Classic, channels: int) -> None:
    mixture = torch.randn(2, channels, 1025, 20, dtype=torch.complex64)
    with torch.inference_mode():
        vocals = network(mixture)[:, 0]
        mask = network.core(torch.linalg.vector_norm(mixture, dim=1, keepdim=True) / channels**0.5)
    torch.testing.assert_close(vocals, mask * mixture, rtol=0, atol=1e-5)


def test_the_middle_and_the_sides_of_a_stereo_song_get_a_mask_each(network: Classic) -> None:
    middle, sides = torch.randn(2, 3, 1, 1025, 20, dtype=torch.complex64)
    with torch.inference_mode():
        vocals = network(torch.cat([middle + sides, middle - sides], dim=1))[:, 0]
        expected = [network.core(part.abs()) * part for part in (middle, sides)]
    torch.testing.assert_close((vocals[:, :1] + vocals[:, 1:]) / 2, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close((vocals[:, :1] - vocals[:, 1:]) / 2, expected[1], rtol=0, atol=1e-5)


def test_left_and_right_are_alike(network: Classic) -> None:
    mixture = torch.randn(1, 2, 1025, 20, dtype=torch.complex64)
    with torch.inference_mode():
        torch.testing.assert_close(network(mixture.flip(1)), network(mixture).flip(2))
        mono = mixture[:, :1]
        torch.testing.assert_close(network(mono.expand(1, 2, 1025, 20))[:, :, :1], network(mono), rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_vocals_and_accompaniment_are_the_mixture(network: Classic, channels: int) -> None:
    mixture = torch.randn(2, channels, 1025, 20, dtype=torch.complex64)
    with torch.inference_mode():
        stems = network(mixture)
    assert stems.shape == (2, 2, channels, 1025, 20)
    torch.testing.assert_close(stems.sum(dim=1), mixture)


def test_the_level_does_not_matter(network: Classic) -> None:
    with torch.inference_mode():
        soft, loud = (network.core(scale * magnitudes(20)) for scale in (0.1, 1000.0))
    torch.testing.assert_close(soft, loud, rtol=0, atol=1e-3)


def test_silence_has_a_mask(network: Classic) -> None:
    with torch.inference_mode():
        assert torch.isfinite(network.core(torch.zeros(1, 1, 1025, 9))).all()


def test_a_batch_equals_its_rows(network: Classic) -> None:
    batch = magnitudes(30, batch=3)
    with torch.inference_mode():
        together = network.core(batch)
        alone = torch.cat([network.core(row[None]) for row in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)  # sums in another order


def test_every_frame_and_bin_sees_far(network: Classic) -> None:
    """One moment's mask follows from the whole spectrum, and from all of time through the memory."""
    x = magnitudes(64).requires_grad_()
    network.core(x)[0, 0, 100, 32].backward()
    assert x.grad is not None
    seen = x.grad[0, 0].abs() > 0
    assert seen.any(dim=0).all() and seen[:1024].any(dim=1).all()


def test_the_gradient_reaches_every_parameter(network: Classic) -> None:
    network.train()
    network.core(magnitudes(16, batch=2)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stems": ("vocals", "other")}, "vocals and accompaniment"),
        ({"dimensions": {"channels": (4, 4, 8), "fold": 3, "memory_inputs": 8, "memory_units": 4}}, "folded by 3"),
        ({"dimensions": {"channels": (4, 4, 8)}}, "fold"),
        ({"architecture": "classical"}, "classical"),
    ],
)
def test_facts_that_do_not_fit_are_named(tiny_spec: ModelSpec, change: dict[str, object], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        build(dataclasses.replace(tiny_spec, **change))  # type: ignore[arg-type]
