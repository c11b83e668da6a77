"""Two ways to the same stems: in one batch or row by row, live or from an archive, cut or whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from serving.audio import Audio
from serving.model.archive import write_archive
from serving.model.separator import Separator
from serving.model.spec import ChunkSpec, ModelSpec
from serving.model.spectrogram import Stft

pytestmark = pytest.mark.slow


@pytest.fixture
def song() -> Audio:
    """Seven seconds of unequal stereo noise that comes and goes."""
    rng = np.random.default_rng(0)
    envelope = np.sin(np.linspace(0, 20, 7 * 44_100)) ** 2
    return (envelope * [[0.2], [0.05]] * rng.standard_normal((2, envelope.size))).astype(np.float32)


@pytest.fixture
def network(tiny_network: nn.Module) -> nn.Module:
    """The tiny network with statistics as training leaves them, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tiny_network.named_buffers():
        if tensor.is_floating_point() and "running" in name:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return tiny_network


def test_a_batch_equals_its_rows(tiny_spec: ModelSpec, network: nn.Module) -> None:
    batch = Stft(tiny_spec.stft)(torch.randn(3, 1, 40_000, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        together, alone = network(batch), torch.cat([network(row[None]) for row in batch])
    # Convolutions may add in another order for another batch size: float32 rounding of values up to about 100.
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


def test_a_song_is_separated_alike_as_mono_as_stereo_and_with_its_channels_exchanged(
    tiny_spec: ModelSpec, network: nn.Module, song: Audio
) -> None:
    separator = Separator(tiny_spec, network, "cpu")
    mono, exchanged = song[:1], song[::-1].copy()
    alone, twice = (separator.separate(np.repeat(mono, copies, axis=0), 44_100) for copies in (1, 2))
    both, other_way = separator.separate(song, 44_100), separator.separate(exchanged, 44_100)
    for stem in tiny_spec.stems:
        for channel in range(2):
            np.testing.assert_allclose(twice[stem][channel], alone[stem][0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(other_way[stem][::-1], both[stem], rtol=0, atol=1e-6)


def test_a_reloaded_archive_equals_the_live_model_bit_for_bit(
    tiny_spec: ModelSpec, network: nn.Module, song: Audio, tmp_path: Path
) -> None:
    write_archive(tmp_path / "tiny.mar", tiny_spec, network, {})
    live = Separator(tiny_spec, network, "cpu").separate(song, 44_100)
    reloaded = Separator.open(tmp_path / "tiny.mar", "cpu").separate(song, 44_100)
    for stem in tiny_spec.stems:
        np.testing.assert_array_equal(live[stem], reloaded[stem])


def test_cutting_costs_next_to_nothing(tiny_spec: ModelSpec, network: nn.Module, song: Audio) -> None:
    cut, whole = (
        Separator(replace(tiny_spec, chunk=chunk), network, "cpu").separate(song, 44_100)["vocals"]
        for chunk in (ChunkSpec(length_s=3, overlap_s=1), ChunkSpec(length_s=20, overlap_s=1))
    )
    # A difference 40 dB below an estimate of 10 dB SDR takes 0.004 dB from it.
    difference_db = 10 * np.log10(np.square(cut - whole).sum() / np.square(whole).sum())
    assert -200 < difference_db < -40
