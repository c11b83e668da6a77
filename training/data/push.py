"""Upload of a data set to a bucket: skips files that are there, verifies those sent, writes the manifest last."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from serving.errors import StorageError
from serving.storage.progress import Progress, counter
from serving.storage.retries import patiently
from serving.storage.s3 import CONNECTIONS
from serving.storage.storage import StoredFile, is_remote, list_files, read_file, store_bytes, store_file
from training.data.data_set import DataSet
from training.data.manifest import MANIFEST_NAME, Entry, Manifest
from training.data.source import SONG_FILE, Zip, find_source
from training.errors import DataError
from training.transfer.multipart import part_bytes, upload
from training.transfer.parallel import run_parallel

FILES_TOGETHER = 4
"""Files that are sent side by side, each in parts side by side."""

# The zips on Zenodo, by their size.
OFFICIAL_MD5 = {
    4_684_228_845: ("MUSDB18", "af06762477334799bfc5abf237648207"),
    22_656_664_047: ("MUSDB18-HQ", "12d4f2ecd55245a4688754dd76363103"),
}


@dataclass(frozen=True)
class Content:
    """Hashes of a file. `etags` are the two that S3 may give the object: sent in one piece, or in parts."""

    size_bytes: int
    sha256: str
    etags: tuple[str, str]
    part_md5s: tuple[str, ...]

    @property
    def md5(self) -> str:
        return self.etags[0]


@dataclass(frozen=True)
class Pushed:
    """The number of files in the data set, and of those that were sent."""

    files: int
    sent: int


def push(data: str, url: str, progress: Progress) -> Pushed:
    """Upload a folder or a zip of songs below an s3:// URL, with a manifest. Pushing again sends only what is missing.

    Raises DataError if there are no songs or an official zip is damaged; StorageError if storage refuses or an object
    differs from what was sent. A large zip resumes at its missing parts.
    """
    source = find_source(data)
    data_set = DataSet.of(source, Path(data), valid_share=0.15)
    if is_remote(data) or not is_remote(url):
        raise StorageError(
            f"{data} cannot be pushed to {url}: name a folder or zip on this machine and s3://bucket/prefix"
        )
    url = url.rstrip("/")
    if isinstance(source, Zip):
        paths = {Path(source.stored.url).name: Path(source.stored.url)}
    else:
        paths = {name: Path(data) / name for name in source.files}
    there = {file.name: file for file in list_files(url)}
    for name in sorted(there.keys() - paths.keys()):
        if SONG_FILE.fullmatch(name) or name.endswith(".zip"):
            raise StorageError(f"{url} holds {name}, which {data} does not: remove it there, or push to another prefix")

    stopping = Event()
    contents = read_contents(paths, progress, stopping)
    for name, content in contents.items():
        check_official(paths[name], content)
    missing = differing(there, contents, stopping)
    if isinstance(source, Zip):
        for name in missing:
            upload(paths[name], f"{url}/{name}", contents[name].part_md5s, progress, stopping)
    else:
        send(url, {name: paths[name] for name in missing}, progress, stopping)
    there = {file.name: file for file in list_files(url)}
    for name in differing(there, {name: contents[name] for name in missing}, stopping):
        raise StorageError(f"{url}/{name} is not what was sent from {paths[name]}: push it again")
    entries = {name: Entry(content.size_bytes, content.sha256) for name, content in contents.items()}
    splits = {split: tuple(song.name for song in songs) for split, songs in data_set.splits.items()}
    store_bytes(Manifest(data_set.layout, entries, splits).to_json().encode(), f"{url}/{MANIFEST_NAME}")
    return Pushed(len(paths), len(missing))


def read_contents(paths: Mapping[str, Path], progress: Progress, stopping: Event) -> dict[str, Content]:
    """The content of each file by its name."""
    count = counter("hash", sum(path.stat().st_size for path in paths.values()), progress)
    found = run_parallel(lambda path: content_of(path, count), paths.values(), CONNECTIONS, stopping)
    return dict(zip(paths, found, strict=True))


def content_of(path: Path, count: Callable[[int], None]) -> Content:
    size_bytes = path.stat().st_size
    sha256, md5, part_md5s = hashlib.sha256(), hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while part := file.read(part_bytes(size_bytes)):
            sha256.update(part)
            md5.update(part)
            part_md5s.append(hashlib.md5(part, usedforsecurity=False))
            count(len(part))
    whole = md5.hexdigest()
    of_parts = hashlib.md5(b"".join(part.digest() for part in part_md5s), usedforsecurity=False).hexdigest()
    etags = (whole, f"{of_parts}-{len(part_md5s)}")
    return Content(size_bytes, sha256.hexdigest(), etags, tuple(part.hexdigest() for part in part_md5s))


def check_official(path: Path, content: Content) -> None:
    name, md5 = OFFICIAL_MD5.get(content.size_bytes, ("", content.md5))
    if content.md5 != md5:
        raise DataError(f"{path} has the size of {name}'s zip and not its MD5 ({md5}): get it again")


def differing(there: Mapping[str, StoredFile], contents: Mapping[str, Content], stopping: Event) -> list[str]:
    """The names of files that the bucket lacks or holds with other content.

    An object whose ETag is no MD5, as one that the store encrypted with its own key, is read back.
    """

    def differs(name: str) -> bool:
        stored, content = there.get(name), contents[name]
        if stored is None or stored.size_bytes != content.size_bytes:
            return True
        if stored.etag in content.etags:
            return False
        sha256 = hashlib.sha256()
        for block in read_file(stored, 0, stored.size_bytes, stopping):
            sha256.update(block)
        return sha256.hexdigest() != content.sha256

    names = sorted(contents)
    return [
        name for name, other in zip(names, run_parallel(differs, names, CONNECTIONS, stopping), strict=True) if other
    ]


def send(url: str, paths: Mapping[str, Path], progress: Progress, stopping: Event) -> None:
    """Upload files below a URL. After a kill, files that were in progress start again."""
    count = counter("push", sum(path.stat().st_size for path in paths.values()), progress)

    def send_one(name: str) -> None:
        patiently(lambda: store_file(paths[name], f"{url}/{name}"), stopping)
        count(paths[name].stat().st_size)

    run_parallel(send_one, paths, FILES_TOGETHER, stopping)
