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
    root, names = song_files(url, stored)
    files = [stored[root + name] for name in names]
    folder = work_dir / key(f"{file.url} {file.size_bytes} {file.etag}" for file in files)
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
            root, names = song_files(str(path), members)
            wanted = {name: members[root + name] for name in names}
            folder = work_dir / key(f"{name} {member.file_size} {member.CRC}" for name, member in wanted.items())
            total, done = sum(member.file_size for member in wanted.values()), 0
            for name, member in wanted.items():
                if not (folder / name).exists():
                    unpack(archive, member, folder / name)
                done += member.file_size
                progress("unpack", done, total)
    except FileNotFoundError as error:
        raise DataError(f"there is no zip {path}: check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: a password, a method
        raise DataError(f"{path} cannot be unpacked ({error}): get it again") from error
    return folder


def unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with archive.open(member) as source, part.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    part.replace(path)


def song_files(data: str, names: Iterable[str]) -> tuple[str, list[str]]:
    """The folder that holds train/ and test/, "" or with a slash at its end, and the names of the songs' files in it."""
    found = [match for match in map(SONG_FILE.fullmatch, sorted(names)) if match]
    found = [match for match in found if not match["root"].startswith(("__MACOSX/", "/"))]
    roots = sorted({match["root"] for match in found})
    if not roots:
        raise DataError(f"{data} holds no songs: {EXPECTED}")
    if len(roots) > 1:
        raise DataError(
            f"{data} holds several data sets ({', '.join(root or './' for root in roots)}): name one of them"
        )
    return roots[0], [match["name"] for match in found]


def key(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
