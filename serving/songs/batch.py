"""Many songs, one after the other: those of files and folders, each into a folder of its own, those done before left out."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.audio.encoding import AudioFormat
from serving.errors import RequestError, StemwrightError

SUFFIXES = {
    *(".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"),
    *(".au", ".caf", ".aac", ".m4a", ".mp4", ".mka", ".wma", ".ac3"),
}


@dataclass(frozen=True)
class Job:
    """A song, and the folder of its stems."""

    song: Path
    out: Path

    def is_done(self, stems: Sequence[str], audio_format: AudioFormat) -> bool:
        """Whether these stems are there, younger than the song."""
        if not self.song.is_file():
            return False
        changed = self.song.stat().st_mtime
        paths = [self.out / f"{stem}.{audio_format}" for stem in stems]
        return all(path.is_file() and path.stat().st_mtime >= changed for path in paths)


def jobs(paths: Sequence[Path], out: Path) -> list[Job]:
    """The songs of files and folders, with folders below `out` like those they lie in.

    A folder's songs are the files below it whose suffix says audio, without those in `out`. The folder of a song is named
    after it, with its suffix only where songs differ in nothing else. Raises RequestError where two share a folder, and
    where there is none.
    """
    found = [(song, out / song.parent.relative_to(top)) for top, song in songs(paths, out)]
    names = Counter(folder / song.stem for song, folder in found)
    todo = [Job(song, folder / (song.stem if names[folder / song.stem] == 1 else song.name)) for song, folder in found]
    shared = [folder for folder, count in Counter(job.out for job in todo).items() if count > 1]
    if shared:
        raise RequestError(f"two of the songs would share the folder {shared[0]}: separate them into different ones")
    if not todo:
        raise RequestError(
            f"there are no songs in {', '.join(map(str, paths))}: name files, or folders with audio files"
        )
    return todo


def songs(paths: Sequence[Path], out: Path) -> Iterator[tuple[Path, Path]]:
    """Each song after the folder that its place is counted from."""
    for path in paths:
        if not path.is_dir():
            yield path.parent, path
            continue
        for song in sorted(path.rglob("*")):
            of_songs = song.suffix.lower() in SUFFIXES and not song.name.startswith(".") and song.is_file()
            if of_songs and not song.resolve().is_relative_to(out.resolve()):
                yield path, song


def separate_all(
    todo: Sequence[Job],
    separate: Callable[[Job], Sequence[Path]],
    stems: Sequence[str],
    audio_format: AudioFormat,
) -> int:
    """Separate what is not done yet, print the files that come of it, and a line on stderr for each song that fails.

    Returns how many failed.
    """
    failed = passed_over = 0
    for job in todo:
        if job.is_done(stems, audio_format):
            passed_over += 1
            continue
        try:
            print(*separate(job), sep="\n", flush=True)
        except StemwrightError as error:
            failed += 1
            print(f"{job.song}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    if passed_over:
        print(f"{passed_over} of {len(todo)} songs were done before", file=sys.stderr)
    return failed
