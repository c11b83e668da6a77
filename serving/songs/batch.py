"""Many songs, one after the other. Each gets a folder of its own; songs that are done are skipped."""

import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.audio.delivery import FACT_SHEET
from serving.errors import RequestError, SpecError, StemwrightError
from serving.songs.fact_sheet import FactSheet, printable
from serving.songs.request import Request

AUDIO_NAMES = """
wav wave bwf rf64 w64 flac ogg oga ogv opus spx mp3 mp2 mp1 mpa mpga aif aiff aifc au snd caf aac adts loas latm
m4a m4b m4p m4r mp4 m4v mov qt 3gp 3g2 f4a f4v mka mkv webm weba wma asf wmv wv tta ape ac3 eac3 ec3 dts dtshd thd mlp
mpc tak shn ofr osq qoa amr awb gsm qcp ra rm rmvb avi flv ts m2ts mts mpg mpeg vob dv mxf nut wtv dsf dff oma aa3
voc vqf svx 8svx iff nist sph ircam sf mat aa aax xwma
"""
AUDIO_SUFFIXES = {f".{name}" for name in AUDIO_NAMES.split()}
"""Files of these names are songs, read or refused each by its name; others are counted."""


@dataclass(frozen=True)
class Job:
    """A song and the folder for its stems."""

    song: Path
    out: Path

    def is_done(self, request: Request, weights_sha256: str) -> bool:
        """True if the fact sheet matches song, request and model, and the files are there."""
        path = self.out / FACT_SHEET
        sheet = read_sheet(path)
        if sheet is None or not sheet.answers(request, weights_sha256) or not sheet.is_kept_in(self.out):
            return False
        return sheet.is_of(self.song, path.stat().st_mtime)


@dataclass(frozen=True)
class Selection:
    """The songs to separate, and the suffix of each file that was skipped because it is no audio."""

    jobs: Sequence[Job]
    skipped: Sequence[str] = ()


def select(paths: Sequence[Path], out: Path) -> Selection:
    """Find songs in files and folders. Output folders below `out` mirror the folders of the songs.

    A folder's songs are the files below it with an audio suffix, without hidden files and stems. Each output folder has the
    song's name; the suffix is added if songs would otherwise share a folder. Raises RequestError if two songs share a
    folder or if there are none.
    """
    skipped: list[str] = []
    found = {song: out / song.parent.relative_to(top) for top, song in songs(paths, out, skipped)}.items()
    names = Counter(folder / folder_name(song) for song, folder in found)
    jobs = [
        Job(song, folder / (folder_name(song) if names[folder / folder_name(song)] == 1 else song.name))
        for song, folder in found
    ]
    shared = [folder for folder, count in Counter(job.out for job in jobs).items() if count > 1]
    if shared:
        folder = printable(str(shared[0]))
        raise RequestError(f"two of the songs would share the folder {folder}: separate them into different ones")
    if not jobs:
        where = printable(", ".join(map(str, paths)))
        raise RequestError(f"there are no songs in {where}: name files, or folders with audio files")
    return Selection(jobs, skipped)


def songs(paths: Sequence[Path], out: Path, skipped: list[str]) -> Iterator[tuple[Path, Path]]:
    """Yield (top, song) pairs, where `top` is the folder that paths are relative to; append suffixes of skipped files to
    `skipped`."""
    for path in paths:
        if not path.is_dir():
            yield path.parent, path
            continue
        top, stems = path.resolve(), out.resolve()
        of_old_stems = stems if stems != top and stems.is_relative_to(top) else None
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            is_song = file.is_file() or (file.is_symlink() and not file.exists())  # a link to nothing is told of
            if hidden or not is_song or (of_old_stems and file.resolve().is_relative_to(of_old_stems)):
                continue
            if is_stem(file):
                continue
            if file.suffix.lower() in AUDIO_SUFFIXES:
                yield path, file
            else:
                skipped.append(file.suffix.lower() or file.name)


def folder_name(song: Path) -> str:
    """The song's file name without suffix; with it if only dots would remain."""
    names = (song.stem, song.name, f"song {song.name}")
    return next(name for name in names if name.strip("."))


def is_stem(file: Path) -> bool:
    """True for a fact sheet, and for a file that the fact sheet beside it lists."""
    if file.name == FACT_SHEET:
        return True
    sheet = read_sheet(file.with_name(FACT_SHEET))
    return sheet is not None and any(file.name == stem.name for stem in sheet.files.values())


def read_sheet(path: Path) -> FactSheet | None:
    """Read a fact sheet; None if it is missing or unreadable."""
    try:
        return FactSheet.from_json(path.read_bytes())
    except (OSError, SpecError):
        return None


def separate_all(planned: Selection, separate: Callable[[Job], Sequence[Path]], is_done: Callable[[Job], bool]) -> int:
    """Separate the songs that are not done. Returns the number that failed.

    Prints files on stdout. On stderr it prints a line for each song that fails, for clipped stems, for a song whose end is
    not proven, and for skipped files.
    """
    failed = passed_over = 0
    for job in planned.jobs:
        try:
            if is_done(job):
                passed_over += 1
                continue
            for path in separate(job):
                print(printable(str(path)), flush=True)
        except StemwrightError as error:
            failed += 1
            tell(job, f"{type(error).__name__}: {error}")
        except OSError as error:
            failed += 1
            tell(job, refused(error, job))
        else:
            for remark in remarks(job):
                tell(job, remark)
    if passed_over:
        print(f"{passed_over} of {len(planned.jobs)} songs were done before", file=sys.stderr)
    if planned.skipped:
        kinds = printable(", ".join(sorted(set(planned.skipped))[:8]))
        print(f"{len(planned.skipped)} files were skipped, no audio by their names: {kinds}", file=sys.stderr)
    return failed


def remarks(job: Job) -> list[str]:
    """Remarks on stems that were written: clipping, and a song whose end is not proven."""
    sheet = read_sheet(job.out / FACT_SHEET)
    return [] if sheet is None else [remark for remark in (sheet.clipping(), sheet.song.note) if remark]


def tell(job: Job, message: str) -> None:
    print(printable(f"{job.song}: {message}"), file=sys.stderr, flush=True)


def refused(error: OSError, job: Job) -> str:
    """One sentence on what the system refused, with the remedy."""
    where = error.filename or job.out
    not_folders = [part for part in (job.out, *job.out.parents) if part.exists() and not part.is_dir()]
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"no space is left for the stems in {job.out}: free some, or name another folder with --out"
        case errno.EEXIST | errno.ENOTDIR | errno.EISDIR:
            where = not_folders[0] if not_folders else where
            return f"{where} is in the way of the folder {job.out}: move it, or name another folder with --out"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return (
                f"{where} may not be used ({error.strerror}): change its permissions, or name another folder with --out"
            )
        case errno.ENAMETOOLONG:
            return f"the name of {where} is too long for this disk: rename the song"
    return f"{where} cannot be used ({error.strerror or error}): check the disk, or name another folder with --out"
