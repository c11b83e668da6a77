"""What leaves piece by piece against what soundfile writes in one go, and as zipfile and soundfile read it again."""

import io
import tracemalloc
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.audio_io import AudioInfo
from serving.chunks import Audio
from serving.delivery import PIECE_BYTES, AudioFormat, Delivery, stream_stems, wav_header
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


def streamed(stems: Audio, names: Sequence[str], delivery: Delivery) -> bytes:
    return b"".join(stream_stems(cut(stems), names, delivery))


def in_one_go(stem: Audio, delivery: Delivery) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, stem.T, delivery.rate_hz, format=delivery.format, subtype=delivery.subtype)
    return file.getvalue()


def samples_in(data: bytes) -> Audio:
    audio: Audio = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]
    return audio.T


@pytest.mark.parametrize(("channels", "samples"), [(1, 1), (1, 30_001), (2, 44_100), (6, 20_001)])
@pytest.mark.parametrize(("audio_format", "subtype"), FORMS)
def test_a_single_stem_is_the_file_soundfile_writes(
    audio_format: AudioFormat, subtype: str, channels: int, samples: int
) -> None:
    delivery = Delivery(audio_format, subtype, 44_100, channels, samples, zipped=False)
    stems = noise(1, channels, samples)
    got, want = streamed(stems, ["vocals"], delivery), in_one_go(stems[0], delivery)
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
    delivery = Delivery(audio_format, subtype, 44_100, 2, 50_001, zipped=True)
    stems = noise(count, 2, 50_001)
    data = streamed(stems, STEMS[:count], delivery)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{stem}.{audio_format}" for stem in STEMS[:count]]
        for name, stem in zip(archive.namelist(), stems, strict=True):
            assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
            assert np.array_equal(samples_in(archive.read(name)), samples_in(in_one_go(stem, delivery)))
    assert data == streamed(stems, STEMS[:count], delivery)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_first_bytes_come_with_the_first_block(zipped: bool) -> None:
    stems, taken = noise(1, 2, 50_001), 0

    def counted() -> Iterator[Audio]:
        nonlocal taken
        for block in cut(stems):
            taken += 1
            yield block

    pieces = stream_stems(counted(), ["vocals"], Delivery("wav", "PCM_16", 44_100, 2, 50_001, zipped))
    assert len(next(pieces)) > BLOCK_SAMPLES * 4
    assert taken == 1


def test_pieces_are_small_however_large_the_blocks() -> None:
    delivery = Delivery("wav", "FLOAT", 44_100, 2, 500_000, zipped=True)
    pieces = list(stream_stems([noise(2, 2, 500_000)], STEMS[:2], delivery))
    assert max(map(len, pieces)) == PIECE_BYTES
    assert min(map(len, pieces)) > 0


def test_memory_does_not_grow_with_the_song() -> None:
    block, count = noise(4, 2, 44_100), 100  # 141 MB of samples

    tracemalloc.start()
    delivery = Delivery("wav", "FLOAT", 44_100, 2, count * 44_100, zipped=True)
    total = sum(map(len, stream_stems((block for _ in range(count)), STEMS, delivery)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total > count * block.nbytes
    assert peak < 8 * block.nbytes


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("promised", "message"), [(49_999, "go on after"), (50_001, "end after 50000")])
def test_never_a_wrong_length(promised: int, message: str, zipped: bool) -> None:
    delivery = Delivery("wav", "PCM_16", 44_100, 2, promised, zipped)
    sent: list[bytes] = []
    with pytest.raises(StemwrightError, match=message):
        sent.extend(stream_stems(cut(noise(1, 2, 50_000)), ["vocals"], delivery))
    # What was sent until then cannot be taken for whole.
    data = b"".join(sent)
    assert data
    assert not zipfile.is_zipfile(io.BytesIO(data))
    assert len(data) < len(wav_header(delivery)) + promised * 4 or zipped


def test_several_stems_need_a_zip() -> None:
    delivery = Delivery("wav", "PCM_16", 44_100, 2, 10, zipped=False)
    with pytest.raises(RequestError, match="ask for a zip"):
        list(stream_stems([noise(2, 2, 10)], STEMS[:2], delivery))


def test_a_wav_beyond_4_gib_is_an_rf64(tmp_path: Path) -> None:
    delivery = Delivery("wav", "PCM_16", 44_100, 2, 2**30 + 5, zipped=False)
    path = tmp_path / "long.wav"
    with path.open("wb") as file:
        header = wav_header(delivery)
        file.write(header)
        file.truncate(len(header) + delivery.samples * 4)  # sparse: takes no space
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.frames) == ("RF64", "PCM_16", delivery.samples)
    just_small_enough = replace(delivery, samples=(2**32 - 1 - 36) // 4)
    assert wav_header(just_small_enough)[:4] == b"RIFF"
    assert wav_header(replace(delivery, samples=just_small_enough.samples + 1))[:4] == b"RF64"


def test_a_zip_of_stems_beyond_2_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        zipfile, "ZIP64_LIMIT", 50_000
    )  # stands for 2 GiB: zipfile refuses larger members without zip64
    delivery = Delivery("wav", "PCM_16", 44_100, 2, 20_000, zipped=True)
    with zipfile.ZipFile(io.BytesIO(streamed(noise(2, 2, 20_000), STEMS[:2], delivery))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 2


@pytest.mark.parametrize(
    ("of_the_song", "wav", "flac"),
    [
        ("PCM_U8", "PCM_16", "PCM_16"),
        ("PCM_16", "PCM_16", "PCM_16"),
        ("PCM_24", "PCM_24", "PCM_24"),
        ("PCM_32", "PCM_32", "PCM_24"),
        ("FLOAT", "FLOAT", "PCM_24"),
        ("DOUBLE", "FLOAT", "PCM_24"),
        ("VORBIS", "PCM_16", "PCM_16"),
        ("MPEG_LAYER_III", "PCM_16", "PCM_16"),
        ("FFMPEG", "PCM_16", "PCM_16"),
    ],
)
def test_stems_keep_the_bit_depth_of_the_song(of_the_song: str, wav: str, flac: str) -> None:
    info = AudioInfo(48_000, 1, 123, "any", of_the_song)
    assert Delivery.like(info, "wav", zipped=False) == Delivery("wav", wav, 48_000, 1, 123, zipped=False)
    assert Delivery.like(info, "flac", zipped=True) == Delivery("flac", flac, 48_000, 1, 123, zipped=True)


@pytest.mark.parametrize(("audio_format", "subtype"), [("mp3", "PCM_16"), ("flac", "FLOAT"), ("wav", "PCM_U8")])
def test_a_form_that_there_is_not(audio_format: AudioFormat, subtype: str) -> None:
    with pytest.raises(RequestError, match=f"there is no {audio_format} of {subtype}"):
        Delivery(audio_format, subtype, 44_100, 2, 10, zipped=False)


def test_content_types() -> None:
    delivery = Delivery("flac", "PCM_16", 44_100, 2, 10, zipped=False)
    assert delivery.content_type == "audio/flac"
    assert replace(delivery, zipped=True).content_type == "application/zip"
