"""Stems delivered piece by piece, against soundfile's own files, and as zipfile and soundfile read them again."""

import io
import tracemalloc
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.audio import Audio
from serving.audio.delivery import FACT_SHEET, PIECE_BYTES, arriving, folder_of_files, one_file, zip_file
from serving.audio.encoding import AudioFormat, Encoding, Written, wav_header
from serving.errors import StemwrightError

pytestmark = pytest.mark.slow

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


def facts(written: Mapping[str, Written]) -> bytes:
    return repr(sorted(written)).encode()


def stream(blocks: Iterable[Audio], names: Sequence[str], encoding: Encoding, zipped: bool) -> Iterator[bytes]:
    return zip_file(blocks, names, encoding, facts) if zipped else one_file(blocks, encoding)


def streamed(stems: Audio, names: Sequence[str], encoding: Encoding, zipped: bool = True) -> bytes:
    return b"".join(stream(cut(stems), names, encoding, zipped))


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
        *names, last = archive.namelist()
        assert (names, last) == ([f"{stem}.{audio_format}" for stem in STEMS[:count]], FACT_SHEET)
        assert archive.read(FACT_SHEET) == repr(sorted(STEMS[:count])).encode()
        for name, stem in zip(names, stems, strict=True):
            assert archive.getinfo(name).compress_type == zipfile.ZIP_STORED
            assert np.array_equal(samples_in(archive.read(name)), samples_in(in_one_go(stem, encoding)))
    assert data == streamed(stems, STEMS[:count], encoding)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("audio_format", "subtype"), [("wav", "PCM_16"), ("mp3", "MPEG_LAYER_III")])
def test_the_first_bytes_come_with_the_first_block(audio_format: AudioFormat, subtype: str, zipped: bool) -> None:
    """An answer that is silent until the song is done would be taken for hung."""
    stems, taken = noise(1, 2, 50_001), 0

    def counted() -> Iterator[Audio]:
        nonlocal taken
        for block in cut(stems):
            taken += 1
            yield block

    pieces = stream(counted(), ["vocals"], Encoding(audio_format, subtype, 44_100, 2, 50_001), zipped)
    assert len(next(pieces)) > 1_000
    assert taken == 1


def test_pieces_are_small_however_large_the_blocks() -> None:
    encoding = Encoding("wav", "FLOAT", 44_100, 2, 500_000)
    pieces = list(stream([noise(2, 2, 500_000)], STEMS[:2], encoding, True))
    assert max(map(len, pieces)) == PIECE_BYTES
    assert min(map(len, pieces)) > 0


def test_memory_does_not_grow_with_the_song() -> None:
    block, count = noise(4, 2, 44_100), 100  # 141 MB of samples

    tracemalloc.start()
    encoding = Encoding("wav", "FLOAT", 44_100, 2, count * 44_100)
    total = sum(map(len, stream((block for _ in range(count)), STEMS, encoding, True)))
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
        sent.extend(stream(cut(noise(1, 2, 50_000)), ["vocals"], encoding, zipped))
    # What was sent until then cannot be taken for whole.
    data = b"".join(sent)
    assert data
    assert not zipfile.is_zipfile(io.BytesIO(data))
    assert len(data) < len(wav_header(encoding)) + promised * 4 or zipped


def test_a_zip_of_stems_beyond_2_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        zipfile, "ZIP64_LIMIT", 50_000
    )  # stands for 2 GiB: zipfile refuses larger members without zip64
    encoding = Encoding("wav", "PCM_16", 44_100, 2, 20_000)
    with zipfile.ZipFile(io.BytesIO(streamed(noise(2, 2, 20_000), STEMS[:2], encoding))) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 3


def test_files_in_a_folder_are_those_of_the_zip(tmp_path: Path) -> None:
    encoding = Encoding("flac", "PCM_16", 44_100, 2, 50_001)
    stems, out = noise(2, 2, 50_001), tmp_path / "new" / "song"
    steps = list(folder_of_files(cut(stems), STEMS[:2], encoding, out, facts))
    assert steps == [*range(BLOCK_SAMPLES, 50_001, BLOCK_SAMPLES), 50_001]
    with zipfile.ZipFile(io.BytesIO(streamed(stems, STEMS[:2], encoding))) as archive:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            name: archive.read(name) for name in archive.namelist()
        }


def test_a_song_that_fails_leaves_neither_files_nor_folders(tmp_path: Path) -> None:
    encoding = Encoding("wav", "PCM_16", 44_100, 2, 50_001)
    with pytest.raises(StemwrightError, match="end after"):
        list(folder_of_files(cut(noise(1, 2, 40_000)), STEMS[:1], encoding, tmp_path / "new" / "song", facts))
    assert list(tmp_path.iterdir()) == []
    old = tmp_path / "old"
    old.mkdir()
    with pytest.raises(StemwrightError, match="end after"):
        list(folder_of_files(cut(noise(1, 2, 40_000)), STEMS[:1], encoding, old, facts))
    assert list(tmp_path.rglob("*")) == [old]


def test_the_fact_sheet_arrives_last_and_the_old_one_goes_first(tmp_path: Path) -> None:
    """A kill between the two leaves stems without a sheet, which count as not done."""
    for name in (FACT_SHEET, "zebra.wav"):
        (tmp_path / name).write_text("old")
    (tmp_path / "vocals.wav").mkdir()
    with pytest.raises(OSError), arriving(tmp_path) as scratch:
        for name in (FACT_SHEET, "vocals.wav", "zebra.wav"):
            (scratch / name).write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vocals.wav", "zebra.wav"]


@pytest.mark.parametrize(
    ("audio_format", "subtype", "clipped"),
    [
        ("wav", "PCM_16", 3),
        ("flac", "PCM_24", 3),
        ("mp3", "MPEG_LAYER_III", 3),
        ("ogg", "VORBIS", 3),
        ("wav", "FLOAT", 0),
    ],
)
def test_what_full_scale_clips_is_told(audio_format: AudioFormat, subtype: str, clipped: int, tmp_path: Path) -> None:
    stems = np.zeros((2, 2, 30_000), np.float32)
    stems[0, 0, [10, 20_000]], stems[0, 1, 5], stems[1, 0, 7] = (-1.5, 1.0625), 1.25, -1
    told: dict[str, Written] = {}

    def keep(written: Mapping[str, Written]) -> bytes:
        told.update(written)
        return b""

    encoding = Encoding(audio_format, subtype, 44_100, 2, 30_000)
    list(folder_of_files(cut(stems), STEMS[:2], encoding, tmp_path, keep))
    for stem, peak, count in (("vocals", 1.5, clipped), ("drums", 1, 0)):
        path = tmp_path / f"{stem}.{audio_format}"
        assert told[stem] == Written(path.name, path.stat().st_size, peak, count)
