"""Data sets: songs, their splits, and how they get to this machine.

train|test/<Artist - Title>.stem.mp4     MUSDB18
train|test/<Artist - Title>/<stem>.*     MUSDB18-HQ and songs of your own, as `StemFolder` reads them
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Self

from serving.storage.progress import Progress, counter, no_progress
from training.data.errata import ERRATA, reports
from training.data.musdb18 import StemMp4, validation_tracks
from training.data.song import PAIR, SOURCES, Song
from training.data.source import Source, find_source
from training.data.stem_folder import LAYOUTS, STEM_SUFFIXES, StemFolder, needed
from training.errors import DataError
from training.transfer.parallel import run_parallel

SPLITS = ("train", "valid", "test")
CHECKS = 8
"""The number of songs whose headers are read at the same time."""

MUSDB18, MUSDB18_HQ, OWN_SONGS = "MUSDB18", "MUSDB18-HQ", "own songs"
MUSDB18_LICENCE = "academic, non-commercial"
UNKNOWN_LICENCE = "unknown"


@dataclass(frozen=True)
class DataSet:
    """Songs to train on, to validate with and to test on. Asking for an empty split raises DataError.

    `layout` is MUSDB18, MUSDB18_HQ (recognised by song names) or OWN_SONGS. `digest` is the SHA-256 of a sorted line
    `<split folder>/<file>\\t<size in bytes>` for each file that is read. The list of files is enough for all of this;
    `bring` fetches a song before it can be read.
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
        """Make a data set from the file names of a source. Its songs will lie in `folder`."""
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
        known = not (validation_tracks() | ERRATA.keys()).isdisjoint(song.name for song in files)
        layout = MUSDB18 if StemMp4 in layouts else MUSDB18_HQ if known else OWN_SONGS
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

    def licence(self, said: str | None) -> str:
        """The licence of the songs: MUSDB18's own; for other songs what the user `said`, else UNKNOWN_LICENCE."""
        return (said or UNKNOWN_LICENCE) if self.layout == OWN_SONGS else MUSDB18_LICENCE

    def decoded_stems(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The stems to decode for a model of `wanted` stems: SOURCES, or PAIR if a song to train on has no others.

        Raises DataError if the model wants stems that such a song lacks.
        """
        paired = [song for song in (*self.splits["train"], *self.splits["valid"]) if song.sources == PAIR]
        if not paired:
            return SOURCES
        if not set(wanted) <= set(PAIR):
            raise DataError(
                f"{self.data}: {paired[0].name} has no stems but {' and '.join(PAIR)}, from which {', '.join(wanted)} cannot "
                "be learned: take a preset of two stems, or add the four stems"
            )
        return PAIR

    def reports(self) -> list[str]:
        """Warnings about the songs of train and valid, a sentence each."""
        names = [song.name for song in (*self.splits["train"], *self.splits["valid"])]
        mp3s = sorted({name.split("/")[1] for files in self.files.values() for name in files if name.endswith(".mp3")})
        said = reports(names)
        if mp3s:
            said.append(
                f"{len(mp3s)} songs come as MP3, such as {mp3s[0]}: an encoder puts silence before the start, so all stems "
                "of a song have to come from the same one"
            )
        return said

    def split(self, name: str) -> tuple[Song, ...]:
        if name == "train" and not self.splits["train"] and len(self.splits["valid"]) == 1:
            raise DataError(
                f"{self.data} has one song in its folder train/, and two are needed: one to train on and one to choose the "
                "best weights by"
            )
        if not self.splits[name]:
            raise DataError(f"{self.data} has no songs for the {name} split: add some to its folder {name}/")
        return self.splits[name]

    def bring(self, songs: Sequence[Song], progress: Progress = no_progress, stopping: Event | None = None) -> None:
        """Fetch and verify those of the songs that are missing here, and check the headers of all.

        Any number of threads and processes may call it at once. Raises StorageError; DataError if a stem is damaged, stems
        differ in length, or the disk is full; Stopped soon after `stopping` is set.
        """
        stopping = stopping or Event()
        names = [name for song in songs for name in self.files[song]]
        self.source.bring(names, self.folder, progress, stopping)
        count = counter("check songs", len(songs), progress)

        def check(song: Song) -> None:
            song.check()
            count(1)

        run_parallel(check, songs, CHECKS, stopping)


def list_dataset(data: str, work_dir: Path, valid_share: float = 0.15) -> DataSet:
    """List a data set: a folder, a zip, or either below an s3:// URL. Nothing is fetched; `bring` fetches into `work_dir`.

    MUSDB18's 14 official validation songs are recognised by name. Of other songs, `valid_share` of those in train/ are for
    validation, at least one, chosen by a hash of the name. Raises DataError if neither layout fits, a stem is missing, or a
    song is in train/ and test/; StorageError if storage refuses.
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
    """List a data set and fetch the songs of some splits. Raises as `list_dataset` and `DataSet.bring` do."""
    data_set = list_dataset(data, work_dir, valid_share)
    data_set.bring([song for split in splits for song in data_set.splits[split]], progress)
    return data_set


def copy_dataset(data: str, folder: Path, splits: Sequence[str], progress: Progress = no_progress) -> DataSet:
    """Fetch the files of some splits into a folder, which is a data set from then on. Does not check their headers.

    Raises StorageError; DataError, also if the folder holds songs of another data set.
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
    source.bring([name for song in songs for name in data_set.files[song]], folder, progress, Event())
    return data_set


def songs_in(split: str, source: Source, folder: Path) -> Iterator[tuple[Song, tuple[str, ...]]]:
    """The songs below train/ or test/, each with the names of the files that are read."""
    names = [name for name in source.files if name.startswith(f"{split}/")]
    for path in {name.rsplit("/", 1)[0] for name in names} - {split}:
        files = stem_files(source, path)
        yield StemFolder(path.removeprefix(f"{split}/"), folder / path, tuple(files)), tuple(files.values())
    for name in names:
        if name.count("/") == 1:
            yield StemMp4(name.removeprefix(f"{split}/").removesuffix(".stem.mp4"), folder / name), (name,)


def stem_files(source: Source, path: str) -> dict[str, str]:
    """The file of each stem of a folder, for the first of LAYOUTS that is complete. Raises DataError if none is."""
    found = {
        stem: name
        for stem in (*SOURCES, "accompaniment", "mixture")
        for suffix in reversed(STEM_SUFFIXES)
        if (name := f"{path}/{stem}{suffix}") in source.files
    }
    four = bool(found.keys() & set(SOURCES[1:]))
    for stems in LAYOUTS[:1] if four else LAYOUTS:
        if set(stems) <= found.keys():
            return {stem: found[stem] for stem in stems}
    missing = next(stem for stem in SOURCES if stem not in found)
    raise DataError(f"{source.data}/{path} lacks {missing}.wav: every song needs {needed()}")


def validation_names(names: Sequence[str], share: float) -> set[str]:
    official = validation_tracks().intersection(names)
    if official and len(official) < len(names):
        return set(official)
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return set(by_hash[: max(1, round(share * len(names)))])
