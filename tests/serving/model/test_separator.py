import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serving.audio import Audio
from serving.errors import AudioError
from serving.model.chunks import crossfade
from serving.model.networks import build
from serving.model.separator import KEYS, Separator
from serving.model.spec import AudioSpec, ChunkSpec, ModelSpec, StftSpec
from tests.stubs import Share

pytestmark = pytest.mark.slow

RATES_HZ = [8_000, 22_050, 44_100, 48_000, 96_000, 384_000]


@pytest.fixture
def spec(tiny_spec: ModelSpec) -> ModelSpec:
    """Windows short enough for songs of a few seconds to have several."""
    return replace(tiny_spec, chunk=ChunkSpec(length_s=2, overlap_s=1))


def noise(channels: int, samples: int, seed: int = 0) -> Audio:
    audio = np.random.default_rng(seed).standard_normal((channels, samples))
    return (audio / np.abs(audio).max()).astype(np.float32)


def band_limited(channels: int, samples: int, rate_hz: int, below_hz: float) -> Audio:
    """Noise of full scale without anything above a frequency, so that a resampler has nothing to take away."""
    spectrum = np.fft.rfft(noise(channels, samples))
    spectrum[:, np.fft.rfftfreq(samples, 1 / rate_hz) > below_hz] = 0
    audio = np.fft.irfft(spectrum, samples)
    return (audio / np.abs(audio).max()).astype(np.float32)


def test_an_identity_network_gives_the_song_back(spec: ModelSpec) -> None:
    song = noise(2, 5 * 44_100 + 17)
    model = replace(spec, audio=AudioSpec(44_100))
    stems = Separator(model, Share(1, 0), "cpu").separate(song, 44_100)
    np.testing.assert_allclose(stems["vocals"], song, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stems["accompaniment"], 0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_cutting_makes_no_difference_through_the_resampler(spec: ModelSpec, rate_hz: int) -> None:
    song = band_limited(1, 7 * rate_hz + 1234, rate_hz, below_hz=9_000)
    whole = replace(spec, chunk=ChunkSpec(length_s=20, overlap_s=1))
    cut_stems, whole_stems = (Separator(s, Share(1, 0), "cpu").separate(song, rate_hz) for s in (spec, whole))
    np.testing.assert_allclose(cut_stems["vocals"], whole_stems["vocals"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_what_comes_in_goes_out(spec: ModelSpec, rate_hz: int, channels: int) -> None:
    song = noise(channels, rate_hz * 17 // 8 + 1)  # two windows
    stems = Separator(spec, Share(0.3, 0.7), "cpu").separate(song, rate_hz)
    assert list(stems) == ["vocals", "accompaniment"]
    assert {stem.shape for stem in stems.values()} == {song.shape}
    assert {stem.dtype for stem in stems.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], song, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 17, 18, 1_000])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_the_shortest_songs_keep_their_length(
    spec: ModelSpec, tiny_network: nn.Module, rate_hz: int, samples: int
) -> None:
    song = noise(2, samples)
    stems = Separator(spec, tiny_network, "cpu").separate(song, rate_hz)
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], song, rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [1, 2, 3, 4])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_lengths_around_the_edges_of_windows(spec: ModelSpec, seconds: int, extra: int) -> None:
    model = replace(spec, audio=AudioSpec(8_000))
    song = noise(1, seconds * 8_000 + extra)
    stems = Separator(model, Share(0.5, 0.5), "cpu").separate(song, 8_000)
    np.testing.assert_allclose(stems["vocals"], 0.5 * song, rtol=0, atol=1e-6)


def test_silence_gives_silence(spec: ModelSpec, tiny_network: nn.Module) -> None:
    stems = Separator(spec, tiny_network, "cpu").separate(np.zeros((2, 100_000), np.float32), 44_100)
    assert all(np.all(stem == 0) for stem in stems.values())


def test_a_song_far_above_full_scale_is_not_clipped(spec: ModelSpec) -> None:
    song = 100 * noise(1, 30_000)
    model = replace(spec, audio=AudioSpec(44_100))
    stems = Separator(model, Share(0.25, 0.75), "cpu").separate(song, 44_100)
    np.testing.assert_allclose(stems["vocals"], 0.25 * song, rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(spec: ModelSpec, value: float) -> None:
    song = noise(1, 50_000)
    song[0, -1] = value
    with pytest.raises(AudioError, match="not finite"):
        Separator(spec, Share(1, 0), "cpu").separate(song, 8_000)


def test_no_samples_are_refused(spec: ModelSpec) -> None:
    separator = Separator(spec, Share(1, 0), "cpu")
    with pytest.raises(AudioError, match="no samples"):
        separator.separate(np.empty((2, 0), np.float32), 44_100)
    with pytest.raises(AudioError, match="no samples"):
        list(separator.stream([], 44_100))


def test_the_remainder_goes_to_the_last_stem(spec: ModelSpec) -> None:
    model = replace(spec, stems=("drums", "vocals", "bass", "other"), audio=AudioSpec(44_100))
    song = noise(2, 30_000)
    stems = Separator(model, Share(0.1, 0.2, 0.3, 0.9), "cpu").separate(song, 44_100)
    for stem, share in (("drums", 0.1), ("vocals", 0.2), ("bass", 0.3), ("other", 0.4)):
        np.testing.assert_allclose(stems[stem], share * song, rtol=0, atol=1e-5)


@pytest.mark.parametrize("block_samples", [1_000, 44_100, 10**9])
def test_blocks_make_no_difference(spec: ModelSpec, tiny_network: nn.Module, block_samples: int) -> None:
    song = noise(2, 150_000)
    separator = Separator(spec, tiny_network, "cpu")
    whole = separator.separate(song, 44_100)
    blocks = (song[:, k : k + block_samples] for k in range(0, song.shape[1], block_samples))
    streamed = np.concatenate(list(separator.stream(blocks, 44_100)), axis=-1)
    np.testing.assert_array_equal(streamed, np.stack(list(whole.values())))


@pytest.mark.parametrize("windows", [2, 3, 8])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_batch_equals_its_windows_one_by_one(
    spec: ModelSpec, tiny_network: nn.Module, windows: int, channels: int
) -> None:
    song = noise(channels, 7 * 44_100 + 1234)
    separator = Separator(spec, tiny_network, "cpu")
    separator.engine.bfloat16 = False  # its rounding depends on the order of sums
    alone = np.stack(list(separator.separate(song, 44_100).values()))
    separator.batch_windows = windows
    together = np.stack(list(separator.separate(song, 44_100).values()))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


class SmallDevice(Share):
    """A network on a device with memory for so many windows."""

    def __init__(self, most_windows: int) -> None:
        super().__init__(0.25, 0.75)
        self.most_windows = most_windows
        self.asked: list[int] = []

    def forward(self, mixture: Tensor) -> Tensor:
        self.asked.append(len(mixture))
        if len(mixture) > self.most_windows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(mixture)


def test_a_full_device_halves_the_batch_for_good(spec: ModelSpec) -> None:
    network, song = SmallDevice(most_windows=2), noise(1, 30 * 8_000)
    separator = Separator(replace(spec, audio=AudioSpec(8_000)), network, "cpu")
    separator.batch_windows = 8
    for _ in range(2):
        np.testing.assert_allclose(separator.separate(song, 8_000)["vocals"], 0.25 * song, rtol=0, atol=1e-5)
    assert network.asked[:7] == [1, 8, 4, 2, 2, 4, 2], "one, then eight in four passes"
    assert max(network.asked[10:]) == separator.batch_windows == 2


def test_a_device_without_memory_for_one_window_says_so(spec: ModelSpec) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Separator(spec, SmallDevice(most_windows=0), "cpu").separate(noise(1, 8_000), 8_000)


def test_a_long_song_costs_no_more_memory_than_a_short_one() -> None:
    model = ModelSpec("classic", {}, ("vocals", "accompaniment"), AudioSpec(8_000), StftSpec(512, 128), ChunkSpec(2, 1))
    separator = Separator(model, Share(1, 0), "cpu")

    def blocks(seconds: int) -> Iterator[Audio]:
        return (np.ones((2, 8_000), np.float32) for _ in range(seconds))

    def peak_bytes(seconds: int) -> int:
        tracemalloc.start()
        samples = sum(stems.shape[-1] for stems in separator.stream(blocks(seconds), 8_000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert samples == seconds * 8_000
        return peak

    peak_bytes(5)  # what is made once
    assert peak_bytes(40) < 1.1 * peak_bytes(10)


def test_the_network_is_left_in_evaluation_and_makes_no_gradients(spec: ModelSpec, tiny_network: nn.Module) -> None:
    separator = Separator(spec, tiny_network.train(), "cpu")
    assert not separator.network.training
    assert not separator.estimate(torch.zeros(1, 1, 5_000)).requires_grad


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_stays_50_db_from_float32(spec: ModelSpec, seed: int) -> None:
    torch.manual_seed(seed)
    network = build(
        replace(spec, dimensions={"channels": (24, 48, 64), "fold": 8, "memory_inputs": 64, "memory_units": 32})
    )
    with torch.no_grad():  # masks from 0 to 1 and not only around a half, as after training
        for name, parameter in network.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
            if name.startswith("mask."):
                parameter.mul_(4)
    song = noise(2, 5 * 22_050, seed)
    exact, quick = Separator(spec, network, "cpu"), Separator(spec, network, "cpu")
    exact.engine.bfloat16, quick.engine.bfloat16 = False, True
    wanted, got = exact.separate(song, 22_050), quick.separate(song, 22_050)
    for stem in spec.stems:
        error = np.square(got[stem] - wanted[stem]).sum()
        assert 0 < error < 1e-5 * np.square(wanted[stem]).sum()
    np.testing.assert_allclose(got["vocals"] + got["accompaniment"], song, rtol=0, atol=1e-4)


def test_the_best_quality_overlaps_by_half_and_hears_three_keys(spec: ModelSpec, tiny_network: nn.Module) -> None:
    """A song taken for one of a rate that is a semitone higher is heard a semitone higher, and as much faster."""
    song, spec = noise(2, 9 * 44_100), replace(spec, chunk=ChunkSpec(length_s=4, overlap_s=1))
    best = Separator(spec, tiny_network, "cpu").separate(song, 44_100, "best")
    np.testing.assert_allclose(sum(best.values()), song, rtol=0, atol=1e-4)

    windows_s = [(0, 4), (2, 6), (4, 8), (6, 9)]
    halves = replace(spec, chunk=ChunkSpec(length_s=40, overlap_s=1))
    one_window = Separator(halves, tiny_network, "cpu")
    keys = []
    for rate_hz in (44_100, 44_100 / 2 ** (1 / 12), 44_100 * 2 ** (1 / 12)):
        pieces = [
            one_window.stems_of(window, one_window.estimate_batch([one_window.heard(window, rate_hz)]), [rate_hz])
            for window in (song[:, a * 44_100 : b * 44_100] for a, b in windows_s)
        ]
        keys.append(np.concatenate(list(crossfade(pieces, 2 * 44_100)), axis=-1)[0])
    np.testing.assert_allclose(best["vocals"], np.mean(keys, axis=0), rtol=0, atol=1e-5)
    assert min(np.abs(keys[0] - keys[1]).max(), np.abs(keys[0] - keys[2]).max()) > 1e-3


@pytest.mark.parametrize("samples", [1, 2, 17, 1_000])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_the_best_quality_keeps_the_length_of_the_shortest_songs(
    spec: ModelSpec, tiny_network: nn.Module, rate_hz: int, samples: int
) -> None:
    song = noise(2, samples)
    stems = Separator(spec, tiny_network, "cpu").separate(song, rate_hz, "best")
    np.testing.assert_allclose(stems["vocals"] + stems["accompaniment"], song, rtol=0, atol=1e-4)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_undone_to_the_sample(spec: ModelSpec, key: int) -> None:
    """Nothing moves: an identity network gives a song back, whatever the key it was heard in."""
    song = band_limited(2, 2 * 44_100, 44_100, below_hz=9_000)
    separator = Separator(spec, Share(1, 0), "cpu")
    (stems,) = separator.separate_windows([song], 44_100, [key])
    inside = slice(100, -100)  # a resampler takes what is beyond an end for silence
    np.testing.assert_allclose(stems[0][:, inside], song[:, inside], rtol=0, atol=1e-3)


def test_only_architectures_that_bear_bfloat16_run_in_it(
    spec: ModelSpec, tiny_network: nn.Module, tiny_banded: tuple[ModelSpec, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.model.engines.eager.multiplies_bfloat16", lambda: True)
    assert Separator(spec, tiny_network, "cpu").engine.bfloat16
    assert not Separator(*tiny_banded, "cpu").engine.bfloat16
