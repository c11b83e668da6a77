"""What leaves piece by piece against what soundfile writes in one go, and as zipfile and soundfile read it again."""

import io
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import soundfile

from serving.audio import Audio
from serving.audio.delivery import PIECE_BYTES, stream_stems
from serving.audio.encoding import AudioFormat, Encoding, wav_header
from serving.errors import RequestError, StemwrightError

FORMS: list[tuple[AudioFormat, str]] = [
    ("wav", "PCM_16"),
    ("wav", "PCM_24"),
    ("wav", "PCM_32"),
    ("wav", "FLOAT"),
    ("flac", "PCM_16"),
    ("flac", "PCM_24"),
]
STEMS = ("vocals", "drums", "bass", "other")
BLOCK_SAMPLES = 10_007


def noise(stems: int, channels: int, samples: int) -> Audio:
    """Stems (s, c, n), beyond full scale in places."""
    return (0.5 * np.random.default_rng(0).standard_normal((stems, channels, samples))).astype(np.float32)


def cut(stems: Audio) -> Iterator[Audio]:
    for start in range(0, stems.shape[-1], BLOCK_SAMPLES):
        yield stems[..., start : start + BLOCK_SAMPLES]


def streamed(stems: Audio, names: Sequence[str], encoding: Encoding, zipped: bool = True) -> bytes:
    return b"".join(stream_stems(cut(stems), names, encoding, zipped))


def in_one_go(stem: Audio, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, stem.T, encoding.rate_hz, format=encoding.format, subtype=encoding.subtype)
    return file.getvalue()


def samples_in(data: bytes) -> Audio:
    audio: Audio = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    return audio.T


@pytest.mark.parametrize(("channels", "samples"), [(1, 1), (1, 30_001), (2, 44_100)])
@pytest.mark.parametrize(("audio_format", "subtype"), FORMS)
def test_a_single_stem_is_the_file_soundfile_writes(
    audio_format: AudioFormat, subtype: str, channels: int, samples: int
) -> None:
    encoding = Encoding(audio_format, subtype, 44_100, channels, samples)
    stems = noise(1, channels, samples)
    got, want = streamed(stems, ["vocals"], encoding, zipped=False), in_one_go(stems[0], encoding)
    assert np.array_equal(samples_in(got), samples_in(want))
    if audio_format == "flac":
        # Frame sizes and MD5 of the whole are known at the end only; zeros mean unknown.
        want = want[:12] + bytes(6) + want[18:26] + bytes(16) + want[42:]
    if subtype == "FLOAT":
        # soundfile adds a PEAK chunk, known at the end only.
        start = want.index(b"PEAK")
        want = want[:start] + want[start + 16 + 8 * channels :]
        want = want[:4] + (len(want) - 8).to_bytes(4, "little") + want[8:]
    assert got == want


@pytest.mark.parametrize(("audio_format", "subtype"), FORMS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_zip_holds_every_stem(audio_format: AudioFormat, subtype: str, count: int) -> None:
    encoding = Encoding(audio_format, subtype, 44_100, 2, 50_001)
    stems = noise(count, 2, 50_001)
    data = streamed(stems, STEMS[:count], encoding)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{stem}.{audio_format}" for stem in STEMS[:count]]
        for name, stem in zip(archive.namelist(), stems, strict=True):
            assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
            assert np.array_equal(samples_in(archive.read(name)), samples_in(in_one_go(stem, encoding)))
    assert data == streamed(stems, STEMS[:count], encoding)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_first_bytes_come_with_the_first_block(zipped: bool) -> None:
    stems, taken = noise(1, 2, 50_001), 0

    def counted() -> Iterator[Audio]:
        nonlocal taken
        for block in cut(stems):
            taken += 1
            yield block

    pieces = stream_stems(counted(), ["vocals"], Encoding("wav", "PCM_16", 44_100, 2, 50_001), zipped)
    assert len(next(pieces)) > BLOCK_SAMPLES * 4
    assert taken == 1


def test_pieces_are_small_however_large_the_blocks() -> None:
    encoding = Encoding("wav", "FLOAT", 44_100, 2, 500_000)
    pieces = list(stream_stems([noise(2, 2, 500_000)], STEMS[:2], encoding, True))
    assert max(map(len, pieces)) == PIECE_BYTES
    assert min(map(len, pieces)) > 0


def test_memory_does_not_grow_with_the_song() -> None:
    block, count = noise(4, 2, 44_100), 100  # 141 MB of samples

    tracemalloc.start()
    encoding = Encoding("wav", "FLOAT", 44_100, 2, count * 44_100)
    total = sum(map(len, stream_stems((block for _ in range(count)), STEMS, encoding, True)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > count * block.nbytes
    assert peak < 8 * block.nbytes


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("promised", "message"), [(49_999, "go on after"), (50_001, "end after 50000")])
def test_never_a_wrong_length(promised: int, message: str, zipped: bool) -> None:
    encoding = Encoding("wav", "PCM_16", 44_100, 2, promised)
    sent: list[bytes] = []
    with pytest.raises(StemwrightError, match=message):
        sent.extend(stream_stems(cut(noise(1, 2, 50_000)), ["vocals"], encoding, zipped))
    # What was sent until then cannot be taken for whole.
    data = b"".join(sent)
    assert data
    assert not zipfile.is_zipfile(io.BytesIO(data))
    assert len(data) < len(wav_header(encoding)) + promised * 4 or zipped


def test_several_stems_need_a_zip() -> None:
    encoding = Encoding("wav", "PCM_16", 44_100, 2, 10)
    with pytest.raises(RequestError, match="ask for a zip"):
        list(stream_stems([noise(2, 2, 10)], STEMS[:2], encoding, zipped=False))


def test_a_zip_of_stems_beyond_2_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        zipfile, "ZIP64_LIMIT", 50_000
    )  # stands for 2 GiB: zipfile refuses larger members without zip64
    encoding = Encoding("wav", "PCM_16", 44_100, 2, 20_000)
    with zipfile.ZipFile(io.BytesIO(streamed(noise(2, 2, 20_000), STEMS[:2], encoding))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 2
