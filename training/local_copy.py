"""A data set from object storage or a zip, as a folder on this machine.

The copy lies below the work folder under a hash of what it was copied from: file names, sizes and ETags or checksums.
A second call finds it there; a data set that changed gets a copy of its own.
"""

import hashlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from serving.storage import Progress, fetch_file, fetch_files, is_remote, list_files
from training.errors import DataError

EXPECTED = "expected train|test/<Artist - Title>.stem.mp4 or train|test/<Artist - Title>/{drums,bass,other,vocals}.wav"

# The files of songs, in both layouts, below any folder. The mixture is left out: it is not read.
SONG_FILE = re.compile(
    r"(?P<root>(?:.*/)?)(?P<name>(?:train|test)/(?:[^/.][^/]*\.stem\.mp4|[^/.][^/]*/(?!mixture\.)[^/.][^/]*))"
)


def local_copy(data: str, work_dir: Path, progress: Progress) -> Path:
    """The folder with train/ and test/ of a data set: itself where it is one, else its copy below `work_dir`.

    Raises DataError where there is nothing of the expected layout, StorageError where storage refuses.
    """
    if is_remote(data):
        return fetched_zip(data, work_dir, progress) if data.endswith(".zip") else fetched(data, work_dir, progress)
    path = Path(data)
    if path.suffix == ".zip":
        return unpacked(path, work_dir, progress)
    if not path.is_dir():
        raise DataError(f"there is no data set {data}: name a folder, a zip or s3://bucket/prefix")
    zips = sorted(path.glob("*.zip"))
    if len(zips) == 1 and not (path / "train").is_dir() and not (path / "test").is_dir():
        return unpacked(zips[0], work_dir, progress)
    return path


def fetched(url: str, work_dir: Path, progress: Progress) -> Path:
    stored = {file.name: file for file in list_files(url)}
    zips = [file.url for name, file in stored.items() if name.endswith(".zip")]
    if len(zips) == 1 and not any(SONG_FILE.fullmatch(name) for name in stored):
        return fetched_zip(zips[0], work_dir, progress)
    wanted = song_files(url, stored)
    files = [stored[name] for name in wanted]
    folder = work_dir / key(f"{file.url} {file.size_bytes} {file.etag}" for file in files)
    root = next(iter(wanted)).removesuffix(next(iter(wanted.values())))
    fetch_files(files, folder, progress)
    return folder / root


def fetched_zip(url: str, work_dir: Path, progress: Progress) -> Path:
    folder_url, _, name = url.rpartition("/")
    listed = [file for file in list_files(folder_url) if file.name == name]
    path = work_dir / key(f"{file.url} {file.size_bytes} {file.etag}" for file in listed) / name
    if not path.exists():
        fetch_file(url, path, progress)
    return unpacked(path, work_dir, progress)


def unpacked(path: Path, work_dir: Path, progress: Progress) -> Path:
    """The songs of a zip, each file under its name only when it is complete and its checksum right."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
            wanted = song_files(str(path), members)
            folder = work_dir / key(f"{name} {members[name].file_size} {members[name].CRC}" for name in wanted)
            total, done = sum(members[name].file_size for name in wanted), 0
            for name, target in ((name, folder / inner) for name, inner in wanted.items()):
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    part = target.with_name(f".{target.name}.part")
                    with archive.open(name) as source, part.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
                    part.replace(target)
                done += members[name].file_size
                progress("unpack", done, total)
    except FileNotFoundError as error:
        raise DataError(f"there is no zip {path}: check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: a password, a method
        raise DataError(f"{path} cannot be unpacked ({error}): get it again") from error
    return folder


def song_files(data: str, names: Iterable[str]) -> dict[str, str]:
    """The files that belong to songs, each with its name from train/ or test/ on. They must lie in one data set."""
    found = [match for match in map(SONG_FILE.fullmatch, sorted(names)) if match]
    found = [match for match in found if not match["root"].startswith(("__MACOSX/", "/"))]
    roots = sorted({match["root"] for match in found})
    if not found:
        raise DataError(f"{data} holds no songs: {EXPECTED}")
    if len(roots) > 1:
        raise DataError(
            f"{data} holds several data sets ({', '.join(root or './' for root in roots)}): name one of them"
        )
    return {match.string: match["name"] for match in found}


def key(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
