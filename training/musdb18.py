"""MUSDB18 and data sets in its layouts: which songs there are, how they are split, and their stems.

    train|test/<Artist - Title>.stem.mp4                               MUSDB18, read by the musdb package and ffmpeg
    train|test/<Artist - Title>/{drums,bass,other,vocals}.wav|flac     MUSDB18-HQ and your own songs, at any sample rate

The mixture of a song is always the sum of its stems, so that stems sum to mixture in training and evaluation alike. The
mixture that comes with a data set is not read: in MUSDB18 it is an AAC stream of its own, 27 dB away from the sum; in
MUSDB18-HQ it is the sum, but for the left channel of `PR - Oh No`.

Axes: s stem, c channel, n sample.
"""

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from serving.storage import Progress, no_progress
from training.errors import DataError
from training.source import Source, find_source

SOURCES = ("drums", "bass", "other", "vocals")
SPLITS = ("train", "valid", "test")
SUMS = {"accompaniment": ("drums", "bass", "other"), "mixture": SOURCES}

# As `validation_tracks` in the musdb package, which cannot be imported where there is no ffmpeg.
VALIDATION_NAMES = frozenset(
    {
        "Actions - One Minute Smile",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Johnny Lokke - Promises & Lies",
        "Patrick Talbot - A Reason To Leave",
        "Triviul - Angelsaint",
        "Alexander Ross - Goodbye Bolero",
        "Fergessen - Nos Palpitants",
        "Leaf - Summerghost",
        "Skelpolu - Human Mistakes",
        "Young Griffo - Pennies",
        "ANiMAL - Rockshow",
        "James May - On The Line",
        "Meaxic - Take A Step",
        "Traffic Experiment - Sirens",
    }
)

BLOCK_SAMPLES = 1 << 18

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """What a file says about one stem."""

    sample_rate_hz: int
    channels: int
    samples: int


@dataclass(frozen=True)
class Song(ABC):
    """One song with its stems; `path` is a file or a folder."""

    name: str
    path: Path

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that are read. Raises DataError where one is missing."""

    @abstractmethod
    def headers(self) -> dict[str, Header]:
        """The header of each source. Raises DataError where one cannot be read."""

    @abstractmethod
    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        """Samples (c, n) of some of SOURCES, and their rate in Hz."""

    @property
    def tolerance_samples(self) -> int:
        """By how much the lengths of stems may differ."""
        return 0

    def check(self) -> None:
        """Raises DataError unless the headers tell of four stems of one length, rate and channel count."""
        headers = self.headers()
        (reference, expected), *others = headers.items()
        for stem, header in others:
            for what, unit in (("sample_rate_hz", "Hz"), ("channels", "channels"), ("samples", "samples")):
                found, wanted = getattr(header, what), getattr(expected, what)
                if abs(found - wanted) > (self.tolerance_samples if what == "samples" else 0):
                    raise DataError(
                        f"{self.path}: {stem} has {found} {unit}, but {reference} has {wanted}: export all stems alike"
                    )
        if expected.samples == 0:
            raise DataError(f"{self.path}: the stems have no samples: remove the song or export it again")
        if expected.channels > 2:
            raise DataError(f"{self.path}: the stems have {expected.channels} channels: mix them down to stereo")

    def read(self, stems: Sequence[str]) -> tuple[Audio, int]:
        """Float32 samples (s, c, n) of stems among SOURCES, "accompaniment" and "mixture", and their rate in Hz.

        Full scale is ±1, which sums may exceed.
        """
        parts = [SUMS.get(stem, (stem,)) for stem in stems]
        names = [name for name in SOURCES if any(name in part for part in parts)]
        sources, rate_hz = self.load(names)
        samples = min(audio.shape[-1] for audio in sources)
        if max(audio.shape[-1] for audio in sources) > samples + self.tolerance_samples:
            raise DataError(f"{self.path} is damaged, its stems differ in length: get the song again")
        audio = np.stack([source[:, :samples] for source in sources])
        return np.stack([audio[[names.index(name) for name in part]].sum(axis=0) for part in parts]), rate_hz

    def stream(self, sources: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        """What some of SOURCES have in common, and the samples (c, n) of each in blocks, to be read one after the other.

        Raises DataError like `read`, some of it only from the blocks.
        """
        audio, rate_hz = self.read(sources)
        return Header(rate_hz, *audio.shape[1:]), [iter([source]) for source in audio]


@dataclass(frozen=True)
class StemFolder(Song):
    """A folder with a WAV or FLAC file for each stem."""

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(self.file(stem) for stem in SOURCES)

    def file(self, stem: str) -> Path:
        for path in (self.path / f"{stem}.wav", self.path / f"{stem}.flac"):
            if path.is_file():
                return path
        raise DataError(f"{self.path} lacks {stem}.wav: every song needs {', '.join(SOURCES)} as .wav or .flac")

    def headers(self) -> dict[str, Header]:
        headers = {}
        for stem in SOURCES:
            with readable(self.file(stem)) as file:
                headers[stem] = Header(file.samplerate, file.channels, file.frames)
        return headers

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        rate_hz = self.headers()[sources[0]].sample_rate_hz
        return [np.concatenate(list(self.blocks(source)), axis=1) for source in sources], rate_hz

    def stream(self, sources: Sequence[str]) -> tuple[Header, list[Iterator[Audio]]]:
        self.check()
        return self.headers()[sources[0]], [self.blocks(source) for source in sources]

    def blocks(self, source: str) -> Iterator[Audio]:
        path = self.file(source)
        with readable(path) as file:
            left = file.frames
            while left > 0:
                try:
                    block = file.read(min(BLOCK_SAMPLES, left), dtype="float32", always_2d=True).T
                except soundfile.LibsndfileError as error:
                    raise DataError(f"{path} is damaged ({error.error_string}): get the song again") from error
                if block.size == 0:
                    raise DataError(f"{path} is damaged, it ends before its header says: get the song again")
                if not np.isfinite(block).all():
                    raise DataError(f"{path} holds samples that are not numbers: export it again")
                left -= block.shape[-1]
                yield block


@dataclass(frozen=True)
class StemFile(Song):
    """A `.stem.mp4` file: five AAC streams, the mixture and the four stems."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def tolerance_samples(self) -> int:
        return 2048  # two AAC frames: headers and streams do not agree on the padding

    def track(self) -> Any:
        import ffmpeg  # type: ignore[import-untyped]  # both on demand: they need ffmpeg, only this layout does
        import musdb

        try:
            track = musdb.MultiTrack(name=self.name, path=str(self.path), stem_id=0)
        except (ffmpeg.Error, IndexError, KeyError) as error:
            raise DataError(f"{self.path} is no readable .stem.mp4 file: get it again") from error
        if len(track.info.audio_streams) != 5:
            raise DataError(f"{self.path} has {len(track.info.audio_streams)} audio streams, not five: get it again")
        return track

    def headers(self) -> dict[str, Header]:
        streams = self.track().info.audio_streams[1:]
        return {
            stem: Header(int(stream["sample_rate"]), int(stream["channels"]), int(stream["duration_ts"]))
            for stem, stream in zip(SOURCES, streams, strict=True)
        }

    def load(self, sources: Sequence[str]) -> tuple[list[Audio], int]:
        track = self.track()
        audio = []
        for stem in sources:
            try:
                samples = track.load_audio(str(self.path), 1 + SOURCES.index(stem))
            except (Warning, ValueError) as error:  # ffprobe failed, or ffmpeg broke off within a sample
                raise DataError(f"{self.path} is damaged, ffmpeg cannot read {stem}: get the song again") from error
            if len(samples) < track.samples - self.tolerance_samples:
                raise DataError(f"{self.path} is damaged, {stem} ends before its header says: get the song again")
            if not np.isfinite(samples).all():
                raise DataError(
                    f"{self.path} is damaged, {stem} holds samples that are not numbers: get the song again"
                )
            audio.append(samples.reshape(len(samples), -1).T.astype(np.float32))
        return audio, track.rate


@dataclass(frozen=True)
class DataSet:
    """Songs to train on, to choose weights by and to report on. An empty split raises DataError when it is asked for.

    `digest` is the SHA-256 of a line `<split folder>/<file>\\t<size in bytes>` for each file that is read, sorted. All of it
    is known before any file is here; a song can be read once `bring` was called with it.
    """

    data: str
    layout: str
    digest: str
    splits: Mapping[str, tuple[Song, ...]]
    files: Mapping[Song, tuple[str, ...]]
    source: Source
    folder: Path

    @classmethod
    def of(cls, source: Source, folder: Path, valid_share: float) -> Self:
        """The songs that the names of a source's files tell of, as they will lie in a folder."""
        songs: dict[str, dict[Song, tuple[str, ...]]] = {
            split: dict(sorted(songs_in(split, source, folder), key=lambda found: found[0].name))
            for split in ("train", "test")
        }
        files = {**songs["train"], **songs["test"]}
        layouts = {type(song) for song in files}
        if len(layouts) == 2:
            raise DataError(f"{source.data} mixes .stem.mp4 files with folders of stems: keep one of the two")
        for name in sorted({song.name for song in songs["train"]} & {song.name for song in songs["test"]}):
            raise DataError(f"{source.data}: {name} is in train/ and in test/: remove it from one of them")
        chosen = validation_names([song.name for song in songs["train"]], valid_share)
        splits = {
            "train": tuple(song for song in songs["train"] if song.name not in chosen),
            "valid": tuple(song for song in songs["train"] if song.name in chosen),
            "test": tuple(songs["test"]),
        }
        lines = sorted(f"{name}\t{source.files[name]}\n" for names in files.values() for name in names)
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        layout = "MUSDB18" if StemFile in layouts else "MUSDB18-HQ"
        return cls(source.data, layout, digest, splits, files, source, folder)

    @property
    def train(self) -> tuple[Song, ...]:
        return self.split("train")

    @property
    def valid(self) -> tuple[Song, ...]:
        return self.split("valid")

    @property
    def test(self) -> tuple[Song, ...]:
        return self.split("test")

    def split(self, name: str) -> tuple[Song, ...]:
        if not self.splits[name]:
            raise DataError(f"{self.data} has no songs for the {name} split: add some to its folder {name}/")
        return self.splits[name]

    def bring(self, songs: Sequence[Song], progress: Progress = no_progress) -> None:
        """Have these songs here, whole: copied unless they are here, verified, their headers checked.

        Any thread or process may, beside others. Raises StorageError, or DataError: a stem that is damaged or of another
        length than its neighbours, a full disk.
        """
        self.source.bring([name for song in songs for name in self.files[song]], self.folder, progress)
        if any(isinstance(song, StemFile) for song in songs):
            require_ffmpeg(self.data)
        with ThreadPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(lambda song: song.check(), songs), start=1):
                progress("check songs", done, len(songs))


def list_dataset(data: str, work_dir: Path, valid_share: float = 0.15) -> DataSet:
    """The data set in a folder, a zip, or below an s3:// URL, with no song brought; those come to a folder in `work_dir`.

    The 14 official songs are for validation where the songs carry their names, else `valid_share` of the songs to train
    on, at least one, chosen by a hash of the name. Raises DataError or StorageError: a layout that is neither of the two,
    a stem that is missing, a song to train on that is also a test song.
    """
    source = find_source(data)
    return DataSet.of(source, source.place(work_dir), valid_share)


def open_dataset(
    data: str,
    work_dir: Path,
    valid_share: float = 0.15,
    progress: Progress = no_progress,
    splits: Sequence[str] = SPLITS,
) -> DataSet:
    """As `list_dataset`, with the songs of some splits brought. Raises what `DataSet.bring` raises, too."""
    data_set = list_dataset(data, work_dir, valid_share)
    data_set.bring([song for split in splits for song in data_set.splits[split]], progress)
    return data_set


def copy_dataset(data: str, folder: Path, splits: Sequence[str], progress: Progress = no_progress) -> DataSet:
    """Bring the files of some splits to a folder, which is a data set then; without a look into them.

    Raises StorageError or DataError, also for a folder with songs that are not in the data set.
    """
    source = find_source(data)
    if source.place(folder) == Path(data):
        raise DataError(f"{data} is a folder on this machine: use it where it is")
    data_set = DataSet.of(source, folder, valid_share=0.15)
    here = [path.relative_to(folder).as_posix() for split in ("train", "test") for path in folder.glob(f"{split}/*/*")]
    for name in sorted(set(here) - source.files.keys()):
        raise DataError(f"{folder} holds {name}, which {data} does not: name a folder of its own for each data set")
    songs = [song for split in splits for song in data_set.splits[split]]
    if not songs:
        raise DataError(f"{data} has no songs for the {' or '.join(splits)} split: ask for another one")
    source.bring([name for song in songs for name in data_set.files[song]], folder, progress)
    return data_set


def songs_in(split: str, source: Source, folder: Path) -> Iterator[tuple[Song, tuple[str, ...]]]:
    """The songs below train/ or test/, each with the names of the files that are read."""
    names = [name for name in source.files if name.startswith(f"{split}/")]
    for path in {name.rsplit("/", 1)[0] for name in names} - {split}:
        song = path.removeprefix(f"{split}/")
        yield StemFolder(song, folder / path), tuple(stem_file(source, path, stem) for stem in SOURCES)
    for name in names:
        if name.count("/") == 1:
            yield StemFile(name.removeprefix(f"{split}/").removesuffix(".stem.mp4"), folder / name), (name,)


def stem_file(source: Source, path: str, stem: str) -> str:
    for name in (f"{path}/{stem}.wav", f"{path}/{stem}.flac"):
        if name in source.files:
            return name
    raise DataError(f"{source.data}/{path} lacks {stem}.wav: every song needs {', '.join(SOURCES)} as .wav or .flac")


def validation_names(names: Sequence[str], share: float) -> set[str]:
    official = VALIDATION_NAMES.intersection(names)
    if official and len(official) < len(names):
        return set(official)
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(by_hash[: max(1, round(share * len(names)))])


def require_ffmpeg(data: str) -> None:
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        raise DataError(
            f"{data} holds .stem.mp4 files, which need ffmpeg: install it (apt-get install ffmpeg, brew install ffmpeg) "
            "or use MUSDB18-HQ"
        )


def readable(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"{path} is not a readable audio file ({error.error_string}): export or get it again"
        ) from error
