"""Songs as callers send them: each input gives stems of its own rate, channels and length, or an error that says why not."""

import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import soundfile
from torch import nn

from serving.audio import Audio
from serving.errors import AudioError, AudioTooLong, StemwrightError, UnsupportedAudio
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from serving.songs.request import Limits, Request

pytestmark = pytest.mark.slow

ALL = Request(("vocals", "accompaniment"), "wav", zipped=True)
LIMITS = Limits(duration_s=3600)


@pytest.fixture
def separator(tiny_spec: ModelSpec, tiny_network: nn.Module) -> Separator:
    return Separator(tiny_spec, tiny_network, "cpu")


def noise(samples: int, channels: int, peak: float = 0.5) -> Audio:
    return np.random.default_rng(0).uniform(-peak, peak, (samples, channels)).astype(np.float32)


def encoded(audio: Audio, rate_hz: int, file_format: str = "WAV", subtype: str | None = None) -> bytes:
    file = BytesIO()
    soundfile.write(file, audio, rate_hz, format=file_format, subtype=subtype)
    return file.getvalue()


GOOD: dict[str, Callable[[], bytes]] = {
    "silence": partial(encoded, np.zeros((44_100, 2), np.float32), 44_100),
    "one sample": partial(encoded, noise(1, 1), 44_100),
    "one sample of 384 kHz": partial(encoded, noise(1, 2), 384_000),
    "8 kHz mono": partial(encoded, noise(8_000, 1), 8_000),
    "96 kHz": partial(encoded, noise(96_000, 2), 96_000, subtype="PCM_24"),
    "5.1": partial(encoded, noise(48_000, 6), 48_000),
    "clipped": partial(encoded, np.sign(noise(44_100, 2)), 44_100, subtype="FLOAT"),
    "above full scale": partial(encoded, noise(44_100, 2, peak=3.0), 44_100, subtype="FLOAT"),
    "FLAC": partial(encoded, noise(44_100, 2), 44_100, "FLAC"),
    "Ogg Vorbis": partial(encoded, noise(44_100, 2), 44_100, "OGG", "VORBIS"),
    "MP3": partial(encoded, noise(44_100, 2), 44_100, "MP3"),
}

BAD: dict[str, tuple[Callable[[], bytes], type[StemwrightError]]] = {
    "nothing": (lambda: b"", UnsupportedAudio),
    "a text named .wav": (lambda: b"these are the words of a song\n" * 50, UnsupportedAudio),
    "the head of a WAV alone": (lambda: GOOD["silence"]()[:44], AudioError),
    "no samples": (partial(encoded, noise(0, 2), 44_100), AudioError),
    "NaN": (partial(encoded, np.full((100, 2), np.nan, np.float32), 44_100, subtype="FLOAT"), AudioError),
    "infinity": (partial(encoded, np.full((100, 2), np.inf, np.float32), 44_100, subtype="FLOAT"), AudioError),
    "two hours": (partial(encoded, np.zeros((7_200 * 8_000, 1), np.int16), 8_000, "FLAC"), AudioTooLong),
}


@pytest.mark.parametrize("what", GOOD)
def test_right_stems(separator: Separator, what: str) -> None:
    content = GOOD[what]()
    song, rate_hz = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
    with zipfile.ZipFile(BytesIO(b"".join(ALL.answer(separator, content, LIMITS)))) as answer:
        stems = [soundfile.read(BytesIO(answer.read(f"{s}.wav")), dtype="float32", always_2d=True) for s in ALL.stems]
    assert all(rate == rate_hz and stem.shape == song.shape for stem, rate in stems)
    np.testing.assert_allclose(stems[0][0] + stems[1][0], song, rtol=0, atol=1e-4)


@pytest.mark.parametrize("what", BAD)
def test_a_clear_error(separator: Separator, what: str) -> None:
    content, error = BAD[what]
    with pytest.raises(error) as told:
        next(ALL.answer(separator, content(), LIMITS))
    assert ": " in str(told.value)  # what is wrong: what to do
