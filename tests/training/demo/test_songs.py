from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.errors import DataError
from training.data.song import SOURCES
from training.demo.songs import FIRST_TEST_NUMBER, compose, song_name, write_songs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def song() -> dict[str, np.ndarray]:
    return compose(seed=1, number=2, seconds=6)


def test_files_lie_in_musdb18_hqs_layout_and_the_mixture_is_the_sum(tmp_path: Path) -> None:
    write_songs(tmp_path, train=2, test=1, seconds=1.5, seed=3)
    songs = {split: sorted((tmp_path / split).iterdir()) for split in ("train", "test")}
    assert {path.name for path in songs["train"]} == {song_name(3, 0), song_name(3, 1)}
    assert [path.name for path in songs["test"]] == [song_name(3, FIRST_TEST_NUMBER)]
    for folder in songs["train"] + songs["test"]:
        assert " - " in folder.name
        audio = {}
        for file in folder.iterdir():
            info = soundfile.info(file)
            assert (info.samplerate, info.channels, info.frames, info.subtype) == (44_100, 2, 66_150, "PCM_16")
            audio[file.stem] = soundfile.read(file, dtype="int16")[0].astype(int)
        assert set(audio) == {*SOURCES, "mixture"}
        assert np.array_equal(audio["mixture"], sum(audio[stem] for stem in SOURCES))
        assert 0.8999 < np.abs(audio["mixture"]).max() / 32768 <= 0.9001


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_songs(tmp_path / folder, train=1, test=0, seconds=2, seed=5)
    files = sorted((tmp_path / "a").rglob("*.wav"))
    assert len(files) == 5
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


@pytest.mark.parametrize(("seed", "number"), [(1, 3), (2, 2)])
def test_seed_and_number_make_a_song_of_its_own(song: dict[str, np.ndarray], seed: int, number: int) -> None:
    another = compose(seed, number, seconds=6)
    for stem in SOURCES:
        a, b = song[stem].mean(axis=1), another[stem].mean(axis=1)
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.2, stem


def test_every_stem_sounds_and_the_voice_rests(song: dict[str, np.ndarray]) -> None:
    rms = {stem: np.sqrt(np.mean(audio.astype(float) ** 2)) / 32768 for stem, audio in song.items()}
    assert all(0.02 < level < 0.4 for level in rms.values()), rms
    quiet = np.abs(song["vocals"][: 6 * 44_100]).reshape(60, -1).max(axis=1) < 30
    assert 0 < quiet.sum() < 45


def test_voice_and_accompaniment_share_their_range(song: dict[str, np.ndarray]) -> None:
    """Not one filter tells them apart: a good part of each one's energy lies where the other is strong."""
    voice, other = (np.abs(np.fft.rfft(song[stem].mean(axis=1))) ** 2 for stem in ("vocals", "other"))
    hz = np.fft.rfftfreq(len(song["vocals"]), 1 / 44_100)
    middle = (hz > 200) & (hz < 2_000)
    assert voice[middle].sum() > 0.3 * voice.sum()
    assert other[middle].sum() > 0.3 * other.sum()


def test_what_is_there_is_kept_and_what_is_missing_is_written(tmp_path: Path) -> None:
    write_songs(tmp_path, train=2, test=0, seconds=1, seed=0)
    first, second = sorted((tmp_path / "train").iterdir())
    kept = (first / "drums.wav").stat().st_mtime_ns
    for file in second.iterdir():
        file.unlink()
    second.rmdir()
    seen: list[tuple[int, int]] = []
    write_songs(
        tmp_path, train=2, test=0, seconds=1, seed=0, progress=lambda _, done, total: seen.append((done, total))
    )
    assert (first / "drums.wav").stat().st_mtime_ns == kept
    assert len(list(second.glob("*.wav"))) == 5
    assert seen[-1] == (2, 2)


def test_other_songs_are_not_mixed_in(tmp_path: Path) -> None:
    write_songs(tmp_path / "out", train=1, test=0, seconds=1, seed=0)
    with pytest.raises(DataError, match="out holds something else than these songs: name another folder or delete it"):
        write_songs(tmp_path / "out", train=1, test=0, seconds=1, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="mine holds something else"):
        write_songs(tmp_path / "mine", train=1, test=0, seconds=1, seed=0)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
