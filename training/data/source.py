"""Sources of data sets: a folder, a zip, or either in a bucket. The file list comes first; `bring` fetches files."""

import hashlib
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import IO

from serving.storage.progress import Progress
from serving.storage.storage import StoredFile, find_file, is_remote, list_files, read_file
from training.data.manifest import MANIFEST_NAME, Manifest
from training.errors import DataError
from training.transfer.arrivals import arrivals
from training.transfer.fetch import Wanted, fetch_objects
from training.transfer.remote_zip import bring_members, opener, zip_errors

EXPECTED = "expected train|test/<Artist - Title>.stem.mp4 or train|test/<Artist - Title>/{vocals,drums,bass,other}.wav"

# Files of songs in both layouts, below any folder.
SONG_FILE = re.compile(
    r"(?P<root>(?:.*/)?)(?P<name>(?:train|test)/(?:[^/.][^/]*\.stem\.mp4|[^/.][^/]*/[^/.][^/]*))",
)


class Source(ABC):
    """A list of song files, as `train|test/…`, with their sizes. `version` changes whenever a file does."""

    def __init__(self, data: str, files: Mapping[str, int], version: str) -> None:
        self.data = data
        self.files = files
        self.version = version

    def place(self, work_dir: Path) -> Path:
        """The folder that holds the files after `bring`. A changed data set gets another folder."""
        return work_dir / self.version

    @abstractmethod
    def bring(self, names: Sequence[str], folder: Path, progress: Progress, stopping: Event) -> None:
        """Fetch and verify those of the files that the folder lacks. Any thread or process may call it.

        Raises StorageError; DataError if a zip is damaged or the disk is full; Stopped soon after `stopping` is set. Files
        that are complete by then stay.
        """


class Folder(Source):
    """Songs in a folder on this machine."""

    def __init__(self, data: str) -> None:
        self.folder = Path(data)
        paths = [path for split in ("train", "test") for path in self.folder.glob(f"{split}/*")]
        paths = [file for path in paths for file in (path.iterdir() if path.is_dir() else (path,))]
        sizes = {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
        super().__init__(data, {name: sizes[name] for name in song_files(data, sizes).values()}, version="")

    def place(self, work_dir: Path) -> Path:  # noqa: ARG002
        return self.folder

    def bring(self, names: Sequence[str], folder: Path, progress: Progress, stopping: Event) -> None:
        """Do nothing: the files are local."""


class Objects(Source):
    """Songs below a prefix of a bucket."""

    def __init__(self, data: str, listed: Mapping[str, StoredFile]) -> None:
        paths = song_files(data, listed)
        self.objects = {name: listed[path] for path, name in paths.items()}
        sizes = {name: file.size_bytes for name, file in self.objects.items()}
        path, name = next(iter(paths.items()))
        self.manifest = self.read_manifest(listed.get(path.removesuffix(name) + MANIFEST_NAME))
        if self.manifest:
            self.manifest.check(data, sizes)
        facts = (f"{file.url} {file.size_bytes} {file.etag}" for file in self.objects.values())
        super().__init__(data, sizes, version_of(facts))

    def read_manifest(self, stored: StoredFile | None) -> Manifest | None:
        if stored is None:
            return None
        content = b"".join(read_file(stored, 0, stored.size_bytes))
        return Manifest.from_json(content.decode(errors="replace"), stored.url)

    def bring(self, names: Sequence[str], folder: Path, progress: Progress, stopping: Event) -> None:
        entries = self.manifest.objects if self.manifest else {}
        wanted = [Wanted(name, self.objects[name], entries[name].sha256 if entries else None) for name in names]
        with arrivals(folder, stopping) as here:
            fetch_objects(wanted, here, progress, stopping)


class Zip(Source):
    """Songs in a zip, local or in a bucket."""

    def __init__(self, data: str, stored: StoredFile) -> None:
        self.stored = stored
        with zip_errors(stored.url):
            self.open_zip = self.opener()
            with zipfile.ZipFile(self.open_zip(Event())) as archive:
                members = {member.filename: member for member in archive.infolist() if not member.is_dir()}
        self.members = {name: members[path] for path, name in song_files(data, members).items()}
        facts = (f"{name} {member.file_size} {member.CRC}" for name, member in self.members.items())
        super().__init__(data, {name: member.file_size for name, member in self.members.items()}, version_of(facts))

    def opener(self) -> Callable[[Event], IO[bytes]]:
        if is_remote(self.stored.url):
            return opener(self.stored)
        return lambda _stopping: Path(self.stored.url).open("rb")

    def bring(self, names: Sequence[str], folder: Path, progress: Progress, stopping: Event) -> None:
        with arrivals(folder, stopping) as here, zip_errors(self.stored.url):
            bring_members(self.open_zip, {name: self.members[name] for name in names}, here, progress, stopping)


def find_source(data: str) -> Source:
    """The source that a path or URL names: a folder, a zip, a prefix, or a folder or prefix with one zip and nothing else.

    Raises DataError if no songs in an expected layout are found, StorageError if storage refuses.
    """
    if data.endswith(".zip"):
        stored = find_file(data)
        if stored is None:
            raise DataError(f"there is no zip {data}: check the path")
        return Zip(data, stored)
    if not is_remote(data):
        path = Path(data)
        if not path.is_dir():
            raise DataError(f"there is no data set {data}: name a folder, a zip or s3://bucket/prefix")
        zips = sorted(path.glob("*.zip"))
        if len(zips) == 1 and not (path / "train").is_dir() and not (path / "test").is_dir():
            return find_source(str(zips[0]))
        return Folder(data)
    listed = {file.name: file for file in list_files(data)}
    zips_there = [file for name, file in listed.items() if name.endswith(".zip")]
    if len(zips_there) == 1 and not any(SONG_FILE.fullmatch(name) for name in listed):
        return Zip(data, zips_there[0])
    return Objects(data, listed)


def song_files(data: str, paths: Iterable[str]) -> dict[str, str]:
    """The song files among `paths`; gives the name of each from train/ or test/ on."""
    found = [match for match in map(SONG_FILE.fullmatch, sorted(paths)) if match]
    found = [match for match in found if not match["root"].startswith(("__MACOSX/", "/"))]
    roots = sorted({match["root"] for match in found})
    if not roots:
        raise DataError(f"{data} holds no songs: {EXPECTED}")
    if len(roots) > 1:
        raise DataError(
            f"{data} holds several data sets ({', '.join(root or './' for root in roots)}): name one of them"
        )
    return {match[0]: match["name"] for match in found}


def version_of(facts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
