import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.data_sets import STEMS, stem_audio, write_data_set, write_folder, write_stem_file
from training.data.data_set import DataSet, open_dataset
from training.errors import DataError

pytestmark = pytest.mark.slow


def open_folder(folder: Path, valid_share: float = 0.15) -> DataSet:
    return open_dataset(str(folder), folder / "unused", valid_share)


def names(songs: tuple[object, ...]) -> list[str]:
    return [song.name for song in songs]  # type: ignore[attr-defined]


def test_a_folder_of_folders_is_split_and_read(tmp_path: Path) -> None:
    data = open_folder(write_data_set(tmp_path / "hq"))
    assert data.layout == "own songs"
    assert sorted(names(data.train) + names(data.valid)) == ["A - 0", "A - 1", "A - 2", "A - 3"]
    assert len(data.valid) == 1 and names(data.test) == ["B - 0"]

    audio, rate_hz = data.test[0].read(["vocals", "drums"])
    assert (audio.shape, audio.dtype, rate_hz) == ((2, 2, 4_410), np.float32, 44_100)
    assert np.abs(audio[0].T - stem_audio("B - 0", "vocals")).max() <= 1 / 32768
    assert np.abs(audio[1].T - stem_audio("B - 0", "drums")).max() <= 1 / 32768


def test_official_names_are_the_validation_split(tmp_path: Path) -> None:
    for name in ("Meaxic - Take A Step", "Leaf - Summerghost", "Leaf - Wicked", "PR - Oh No", "Titanium - Haunted Age"):
        write_folder(tmp_path / "train" / name)
    data = open_folder(tmp_path)
    assert names(data.valid) == ["Leaf - Summerghost", "Meaxic - Take A Step"]
    assert names(data.train) == ["Leaf - Wicked", "PR - Oh No", "Titanium - Haunted Age"]
    assert data.layout == "MUSDB18-HQ"


def test_other_songs_are_split_by_their_names_alone(tmp_path: Path) -> None:
    for number in range(10):
        write_folder(tmp_path / "train" / f"A - {number}", samples=10)
    data = open_folder(tmp_path, valid_share=0.3)
    assert len(data.valid) == 3 and len(data.train) == 7 and not set(names(data.valid)) & set(names(data.train))
    by_hash = sorted(names(data.train + data.valid), key=lambda name: hashlib.sha256(name.encode()).digest())
    assert set(names(data.valid)) == set(by_hash[:3])
    unused = data.train[0].path
    shutil.rmtree(unused)
    assert set(names(open_folder(tmp_path, valid_share=0.3).valid)) == set(names(data.valid))


def test_the_digest_tells_data_sets_apart_and_not_their_places(tmp_path: Path) -> None:
    first = open_folder(write_data_set(tmp_path / "here"))
    again = open_folder(write_data_set(tmp_path / "there" / "deep"))
    assert first.digest == again.digest and len(first.digest) == 64
    (tmp_path / "here/test/B - 0").rename(tmp_path / "here/test/B - 1")
    assert open_folder(tmp_path / "here").digest != first.digest


def test_a_split_without_songs_is_missed_when_it_is_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / f"without {split}"
        write_data_set(folder)
        shutil.rmtree(folder / split)
        data = open_folder(folder)
        with pytest.raises(DataError, match=f"without {split} has no songs for the {split} split: add some"):
            getattr(data, split)
    assert names(data.valid) == names(open_folder(tmp_path / "without test").valid)


def test_the_licence_is_that_of_musdb18_or_what_the_owner_says(tmp_path: Path) -> None:
    own = open_folder(write_data_set(tmp_path / "own"))
    assert (own.licence(None), own.licence("CC BY 4.0")) == ("unknown", "CC BY 4.0")
    write_folder(tmp_path / "own" / "train" / "PR - Oh No")
    with_one = open_folder(tmp_path / "own")
    assert (with_one.licence(None), with_one.licence("CC0")) == ("academic, non-commercial",) * 2


class TestFaults:
    """Each is a sentence that names the culprit and the remedy."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return write_data_set(tmp_path / "data")

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"there is no data set .*/nowhere: name a folder, a zip or s3://"):
            open_folder(tmp_path / "nowhere")

    @pytest.mark.parametrize("inside", ["", "train", "musdb18hq/train/A - 0"])
    def test_no_songs(self, tmp_path: Path, inside: str) -> None:
        (tmp_path / "empty" / inside).mkdir(parents=True)
        with pytest.raises(
            DataError, match=r"empty holds no songs: expected train\|test/<Artist - Title>\.stem\.mp4 or"
        ):
            open_folder(tmp_path / "empty")

    def test_a_missing_stem(self, root: Path) -> None:
        (root / "train/A - 2/bass.wav").unlink()
        with pytest.raises(
            DataError, match=r"train/A - 2 lacks bass\.wav: every song needs vocals, drums, bass, other"
        ):
            open_folder(root)

    def test_unequal_lengths(self, root: Path) -> None:
        soundfile.write(root / "train/A - 2/other.wav", np.zeros((4_409, 2)), 44_100)
        with pytest.raises(
            DataError, match="A - 2: other has 4409 samples, but vocals has 4410: export all stems alike"
        ):
            open_folder(root)

    def test_unequal_rates(self, root: Path) -> None:
        soundfile.write(root / "test/B - 0/vocals.wav", np.zeros((4_410, 2)), 48_000)
        with pytest.raises(DataError, match="B - 0: drums has 44100 Hz, but vocals has 48000: export"):
            open_folder(root)

    def test_unequal_channels(self, root: Path) -> None:
        soundfile.write(root / "test/B - 0/vocals.wav", np.zeros((4_410, 1)), 44_100)
        with pytest.raises(DataError, match="B - 0: drums has 2 channels, but vocals has 1: export"):
            open_folder(root)

    def test_more_than_stereo(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train" / "A - 0", channels=6)
        with pytest.raises(DataError, match="A - 0: the stems have 6 channels: mix them down to stereo"):
            open_folder(tmp_path)

    def test_no_samples(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train" / "A - 0", samples=0)
        with pytest.raises(DataError, match="A - 0: the stems have no samples: remove the song"):
            open_folder(tmp_path)

    def test_no_audio(self, root: Path) -> None:
        (root / "train/A - 1/vocals.wav").write_text("la la la")
        with pytest.raises(
            DataError, match=r"A - 1/vocals\.wav is not a readable audio file .*: export or get it again"
        ):
            open_folder(root)

    def test_samples_that_are_not_numbers(self, root: Path) -> None:
        soundfile.write(root / "test/B - 0/bass.wav", np.full((4_410, 2), np.nan), 44_100, subtype="FLOAT")
        song = open_folder(root).test[0]
        with pytest.raises(DataError, match=r"B - 0/bass\.wav holds samples that are not numbers"):
            song.read(["mixture"])

    def test_a_file_that_breaks_off(self, root: Path) -> None:
        path = root / "test" / "B - 0" / "bass.flac"
        soundfile.write(path, stem_audio("B - 0", "bass", 4_410), 44_100)
        path.write_bytes(path.read_bytes()[:9_000])
        (root / "test" / "B - 0" / "bass.wav").unlink()
        song = open_folder(root).test[0]
        with pytest.raises(DataError, match=r"B - 0/bass\.flac is damaged .*: get the song again"):
            song.read(["mixture"])

    def test_a_test_song_to_train_on(self, root: Path) -> None:
        write_folder(root / "train" / "B - 0")
        with pytest.raises(DataError, match="B - 0 is in train/ and in test/: remove it from one of them"):
            open_folder(root)

    def test_two_layouts(self, root: Path) -> None:
        (root / "train" / "A - 9.stem.mp4").touch()
        with pytest.raises(DataError, match=r"data mixes \.stem\.mp4 files with folders of stems: keep one"):
            open_folder(root)

    def test_one_song_to_train_on(self, tmp_path: Path) -> None:
        data = open_folder(write_data_set(tmp_path / "one", train=1))
        with pytest.raises(
            DataError, match="one has one song in its folder train/, and two are needed: one to train on"
        ):
            _ = data.train

    @pytest.mark.parametrize(
        ("content", "what"), [(b"no film", "no readable .stem.mp4 file"), (None, "3 audio streams")]
    )
    def test_a_stem_file_that_is_none(self, tmp_path: Path, content: bytes | None, what: str) -> None:
        path = write_stem_file(tmp_path / "train" / "A - 0.stem.mp4", stems=("drums", "vocals"))
        if content:
            path.write_bytes(content)
        with pytest.raises(DataError, match=rf"A - 0\.stem\.mp4 (is|has) {what}.*: get it again"):
            open_folder(tmp_path)


def test_stem_files_are_read(tmp_path: Path) -> None:
    for name in ("A - 0", "Leaf - Summerghost"):
        write_stem_file(tmp_path / "train" / f"{name}.stem.mp4")
    data = open_folder(tmp_path)
    assert (data.layout, names(data.train), names(data.valid)) == ("MUSDB18", ["A - 0"], ["Leaf - Summerghost"])
    audio, rate_hz = data.train[0].read([*STEMS, "mixture"])
    assert rate_hz == 44_100 and audio.shape[:2] == (5, 2) and audio.shape[2] >= 44_100
    spectrum = np.abs(np.fft.rfft(audio[:, 0, :44_100], axis=1))
    assert spectrum[:4].argmax(axis=1).tolist() == [200, 400, 600, 800]  # bins of 1 Hz
    assert np.allclose(audio[4], audio[:4].sum(axis=0), atol=1e-6)  # the mixture stream is silent
