from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.model.spec import AudioSpec
from tests.data_sets import STEMS, stem_audio, write_data_set, write_folder
from training.data.data_set import DataSet, open_dataset
from training.data.decoded import decode
from training.data.song import BLOCK_SAMPLES, Header
from training.data.stem_folder import LOSSY_TOLERANCE_SAMPLES, StemFolder
from training.errors import DataError

pytestmark = pytest.mark.slow


def open_folder(folder: Path, valid_share: float = 0.15) -> DataSet:
    return open_dataset(str(folder), folder / "unused", valid_share)


def test_accompaniment_and_mixture_are_sums_of_stems(tmp_path: Path) -> None:
    audio, _ = open_folder(write_data_set(tmp_path / "hq")).test[0].read([*STEMS, "accompaniment", "mixture"])
    assert np.allclose(audio[4], audio[:3].sum(axis=0), atol=1e-7)
    assert np.allclose(audio[5], audio[:4].sum(axis=0), atol=1e-7)


def test_own_songs_keep_their_rate_channels_and_format(tmp_path: Path) -> None:
    for number in range(3):
        write_folder(tmp_path / "train" / f"Me - {number}", samples=800, channels=1, rate=8_000, suffix=".flac")
    song = open_folder(tmp_path).train[0]
    audio, rate_hz = song.read(["vocals"])
    assert (audio.shape, rate_hz) == ((1, 1, 800), 8_000)
    assert np.abs(audio[0].T - stem_audio(song.name, "vocals", 800, 1)).max() <= 1 / 32768


@pytest.mark.parametrize("samples", [4_410, BLOCK_SAMPLES, BLOCK_SAMPLES + 1])
def test_a_stream_is_the_song_in_blocks(tmp_path: Path, samples: int) -> None:
    song = StemFolder("A - 0", write_folder(tmp_path / "A - 0", samples=samples, channels=1))
    header, streams = song.stream(["vocals", "bass"])
    assert header == Header(44_100, 1, samples)
    streamed = [list(blocks) for blocks in streams]
    assert max(block.shape[-1] for blocks in streamed for block in blocks) <= BLOCK_SAMPLES
    audio, _ = song.read(["vocals", "bass"])
    assert np.array_equal(np.stack([np.concatenate(blocks, axis=1) for blocks in streamed]), audio)


SAMPLES = 2 * BLOCK_SAMPLES + 1_000  # at 8 kHz, 66 s: several blocks of unlike decoders
VOCALS, MUSIC = (stem_audio("A - 0", stem, SAMPLES) for stem in ("vocals", "drums"))


def write_files(folder: Path, files: Mapping[str, np.ndarray], suffix: str = ".wav") -> StemFolder:
    """A folder of files by the names of their stems."""
    folder.mkdir(parents=True)
    for stem, audio in files.items():
        soundfile.write(folder / f"{stem}{suffix}", audio, 8_000)
    return StemFolder(folder.name, folder, tuple(files))


@pytest.mark.parametrize("other", ["accompaniment", "mixture"])
def test_vocals_with_accompaniment_or_mixture_are_a_song_of_two_stems(other: str, tmp_path: Path) -> None:
    files = {"vocals": VOCALS, other: MUSIC if other == "accompaniment" else VOCALS + MUSIC}
    song = write_files(tmp_path / "train" / "A - 0", files)
    assert song.sources == ("vocals", "accompaniment")
    audio, rate_hz = song.read(["accompaniment", "vocals", "mixture"])
    assert rate_hz == 8_000
    for found, expected in zip(audio, (MUSIC, VOCALS, VOCALS + MUSIC), strict=True):
        assert np.abs(found.T - expected).max() < 2e-4
    (decoded,) = decode([song], AudioSpec(8_000), ("vocals", "accompaniment"), tmp_path / "cache")
    assert np.abs(decoded.samples / 32768 - audio[[1, 0]]).max() < 1e-4
    with pytest.raises(DataError, match="A - 0 has vocals and accompaniment, no drums: take a preset of two stems"):
        song.read(["drums"])


@pytest.mark.parametrize(
    ("mixture", "problem"),
    [
        (np.roll(VOCALS + MUSIC, 50, axis=0), "the vocals are not in the mixture: export both from one session"),
        (MUSIC, "the vocals are not in the mixture"),
        (MUSIC - VOCALS, "the vocals are not in the mixture"),
        (VOCALS, "the mixture without the vocals is silent: export the mixture with all stems"),
        ((VOCALS + MUSIC)[:-1], f"mixture has {SAMPLES - 1} samples, but vocals has {SAMPLES}: export all stems alike"),
    ],
    ids=["late", "another song", "upside down", "vocals alone", "shorter"],
)
def test_a_mixture_that_is_not_that_of_its_vocals_is_named(mixture: np.ndarray, problem: str, tmp_path: Path) -> None:
    song = write_files(tmp_path / "A - 0", {"vocals": VOCALS, "mixture": mixture})
    with pytest.raises(DataError, match=rf"A - 0: {problem}"):
        decode([song], AudioSpec(8_000), ("vocals", "accompaniment"), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_an_instrumental_is_a_song(tmp_path: Path) -> None:
    song = write_files(tmp_path / "A - 0", {"vocals": 0 * VOCALS, "mixture": MUSIC})
    audio, _ = song.read(["vocals", "accompaniment"])
    assert not audio[0].any() and np.abs(audio[1].T - MUSIC).max() < 1e-4


@pytest.mark.parametrize("suffix", [".flac", ".aiff", ".mp3", ".ogg"])
def test_songs_come_in_the_formats_that_are_read_elsewhere(suffix: str, tmp_path: Path) -> None:
    for number in range(3):
        time_s = np.arange(40_000) / 8_000
        tones = {
            stem: 0.2 * np.sin(2 * np.pi * hz * time_s) for stem, hz in zip(STEMS, (200, 400, 600, 800), strict=True)
        }
        write_files(tmp_path / "train" / f"A - {number}", tones, suffix)
    data = open_folder(tmp_path)
    (decoded,) = decode(data.train[:1], AudioSpec(8_000), STEMS, tmp_path / "cache")
    assert abs(decoded.samples.shape[-1] - 40_000) <= LOSSY_TOLERANCE_SAMPLES
    spectrum = np.abs(np.fft.rfft(decoded.samples[:, 0, :32_000], axis=1))
    assert (spectrum.argmax(axis=1) / 4).tolist() == [200, 400, 600, 800]
    warned = [line for line in data.reports() if "3 songs come as MP3, such as A - 0" in line]
    assert len(warned) == (suffix == ".mp3")


def test_m4a_files_are_stems(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    for number in range(2):
        folder = tmp_path / "train" / f"A - {number}"
        folder.mkdir(parents=True)
        for stem, audio in (("vocals", VOCALS), ("mixture", VOCALS + MUSIC)):
            with av.open(str(folder / f"{stem}.m4a"), "w") as container:
                stream = container.add_stream("aac", rate=44_100, layout="stereo", bit_rate=256_000)
                samples = np.ascontiguousarray(audio[:88_200].T)
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
                frame.sample_rate = 44_100
                container.mux([*stream.encode(frame), *stream.encode(None)])
    (song,) = open_folder(tmp_path).train
    audio, rate_hz = song.read(["vocals", "accompaniment"])
    assert rate_hz == 44_100 and abs(audio.shape[-1] - 88_200) <= LOSSY_TOLERANCE_SAMPLES
    for found, expected in zip(audio, (VOCALS, MUSIC), strict=True):  # both as late as the encoder made them
        there, here = np.fft.rfft(expected[:88_200, 0]), np.fft.rfft(found[0], 88_200)
        shared = np.fft.irfft(here * there.conj())
        assert shared.argmax() <= LOSSY_TOLERANCE_SAMPLES and shared.max() > 0.7 * (expected[:88_200, 0] ** 2).sum()


def test_of_several_files_of_a_stem_the_lossless_one_is_read(tmp_path: Path) -> None:
    song = write_folder(tmp_path / "train" / "A - 0")
    (song / "vocals.mp3").write_bytes(b"never opened")
    write_folder(tmp_path / "train" / "A - 1")
    songs = open_folder(tmp_path)
    assert {name for names in songs.files.values() for name in names if "mp3" in name} == set()


def test_a_preset_gets_the_stems_that_all_songs_have(tmp_path: Path) -> None:
    data = open_folder(write_data_set(tmp_path / "own"))
    assert (
        data.decoded_stems(("vocals", "accompaniment"))
        == data.decoded_stems(STEMS)
        == ("vocals", "drums", "bass", "other")
    )
    write_files(tmp_path / "own" / "train" / "C - 0", {"vocals": VOCALS, "mixture": VOCALS + MUSIC})
    data = open_folder(tmp_path / "own")
    assert data.decoded_stems(("vocals", "accompaniment")) == ("vocals", "accompaniment")
    refused = (
        r"own: C - 0 has no stems but vocals and accompaniment, from which drums, bass, other, vocals cannot be learned"
    )
    with pytest.raises(DataError, match=refused):
        data.decoded_stems(STEMS)
    four, *_ = (song for song in data.train if song.name != "C - 0")
    (decoded,) = decode([four], AudioSpec(44_100), ("vocals", "accompaniment"), tmp_path / "cache")
    audio, _ = four.read(["vocals", "accompaniment"])
    assert np.array_equal(decoded.samples, np.round(audio * 32768).clip(-32768, 32767).astype(np.int16))


def test_a_song_that_lacks_one_of_four_stems_is_not_taken_for_one_of_two(tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "own")
    (root / "train" / "A - 1" / "bass.wav").unlink()  # the mixture is there
    with pytest.raises(
        DataError, match=r"A - 1 lacks bass\.wav: every song needs vocals, drums, bass, other, or vocals with"
    ):
        open_folder(root)
