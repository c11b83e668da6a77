"""A data set into a bucket: what is there already is skipped, what was sent is checked, the manifest comes last."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving.errors import StorageError
from serving.storage.storage import CONNECTIONS, Progress, StoredFile, counter, is_remote, list_files
from training.data.data_set import DataSet
from training.data.manifest import NAME, Entry, Manifest
from training.data.source import SONG_FILE, Zip, find_source
from training.errors import DataError
from training.transfer.bucket import Bucket, Part
from training.transfer.parallel import run_parallel

PART_BYTES, MOST_PARTS = 8 << 20, 10_000  # S3 takes no more parts, and none below 5 MiB but the last

# The zips on Zenodo, by their size.
OFFICIAL_MD5 = {
    4_684_228_845: ("MUSDB18", "af06762477334799bfc5abf237648207"),
    22_656_664_047: ("MUSDB18-HQ", "12d4f2ecd55245a4688754dd76363103"),
}


@dataclass(frozen=True)
class Content:
    """What is in a file. `etags` are those that S3 gives to such an object, sent in one piece and in parts."""

    size_bytes: int
    sha256: str
    etags: tuple[str, str]
    part_md5s: tuple[str, ...]

    @property
    def md5(self) -> str:
        return self.etags[0]


@dataclass(frozen=True)
class Pushed:
    """What a push came to."""

    files: int
    sent: int


def push(data: str, url: str, progress: Progress) -> Pushed:
    """Put a folder or a zip of songs below an s3:// URL, with a manifest.

    Raises DataError where there are no songs or an official zip is damaged, StorageError where storage refuses or an object
    is not there as it was sent. What had arrived by then is not sent again.
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

    contents = read_contents(paths, progress)
    for name, content in contents.items():
        check_official(paths[name], content)
    bucket = Bucket(url)
    missing = differing(bucket, there, contents)
    send(bucket, url, {name: paths[name] for name in missing}, contents, progress)
    there = {file.name: file for file in list_files(url)}
    for name in differing(bucket, there, {name: contents[name] for name in missing}):
        raise StorageError(f"{url}/{name} is not what was sent from {paths[name]}: push it again")
    entries = {name: Entry(content.size_bytes, content.sha256) for name, content in contents.items()}
    splits = {split: tuple(song.name for song in songs) for split, songs in data_set.splits.items()}
    bucket.put(f"{url}/{NAME}", Manifest(data_set.layout, entries, splits).to_json().encode())
    return Pushed(len(paths), len(missing))


def read_contents(paths: Mapping[str, Path], progress: Progress) -> dict[str, Content]:
    """The content of each file, by the same names."""
    count = counter("hash", sum(path.stat().st_size for path in paths.values()), progress)
    contents: dict[str, Content] = {}

    def read(name: str) -> None:
        contents[name] = content_of(paths[name], count)

    run_parallel(read, paths, CONNECTIONS, threading.Event())
    return {name: contents[name] for name in paths}


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


def differing(bucket: Bucket, there: Mapping[str, StoredFile], contents: Mapping[str, Content]) -> list[str]:
    """The names under which a bucket does not hold these contents.

    An ETag that is no MD5, as of objects that the store encrypts with a key of its own, has the object read back.
    """
    found: list[str] = []

    def compare(name: str) -> None:
        stored, content = there.get(name), contents[name]
        if stored is None or stored.size_bytes != content.size_bytes:
            found.append(name)
        elif stored.etag not in content.etags:
            sha256 = hashlib.sha256()
            for block in bucket.read(stored, 0, stored.size_bytes):
                sha256.update(block)
            if sha256.hexdigest() != content.sha256:
                found.append(name)

    run_parallel(compare, contents, CONNECTIONS, bucket.stopping)
    return sorted(found)


def send(
    bucket: Bucket, url: str, paths: Mapping[str, Path], contents: Mapping[str, Content], progress: Progress
) -> None:
    """Upload files in parts, side by side; of an upload that was cut only the parts that did not arrive."""
    unfinished = bucket.unfinished_uploads(url) if paths else {}
    uploads = []
    for name, path in paths.items():
        target = f"{url}/{name}"
        uploads.append(Upload(bucket, target, path, contents[name], unfinished.get(target)))
    pieces = [(upload, number) for upload in uploads for number in upload.missing()]
    count = counter("push", sum(upload.size_bytes(number) for upload, number in pieces), progress)

    def send_piece(piece: tuple[Upload, int]) -> None:
        upload, number = piece
        upload.send(number)
        count(upload.size_bytes(number))

    run_parallel(send_piece, pieces, CONNECTIONS, bucket.stopping)


class Upload:
    """One file on its way into a bucket; the last part to be sent completes the object."""

    def __init__(self, bucket: Bucket, url: str, path: Path, content: Content, upload_id: str | None) -> None:
        self.bucket, self.url, self.path, self.content, self.upload_id = bucket, url, path, content, upload_id
        self.lock = threading.Lock()
        self.sent: dict[int, Part] = {}
        if upload_id:
            arrived = [part for part in bucket.parts(url, upload_id) if part.number <= len(content.part_md5s)]
            self.sent = {part.number: part for part in arrived if part.etag == content.part_md5s[part.number - 1]}

    def missing(self) -> list[int]:
        """The numbers of the parts to send, from 1; the last part again where all arrived and nothing completed them."""
        last = max(1, len(self.content.part_md5s))
        return [number for number in range(1, last + 1) if number not in self.sent] or [last]

    def size_bytes(self, number: int) -> int:
        part = part_bytes(self.content.size_bytes)
        return min(part, self.content.size_bytes - part * (number - 1))

    def send(self, number: int) -> None:
        with self.path.open("rb") as file:
            file.seek(part_bytes(self.content.size_bytes) * (number - 1))
            content = file.read(self.size_bytes(number))
        parts = len(self.content.part_md5s)
        if parts <= 1:
            self.bucket.put(self.url, content)
            return
        with self.lock:
            self.upload_id = self.upload_id or self.bucket.begin_upload(self.url)
        part = self.bucket.put_part(self.url, self.upload_id, number, content)
        with self.lock:
            self.sent[number] = part
            complete = len(self.sent) == parts
        if complete:
            self.bucket.complete_upload(self.url, self.upload_id, [self.sent[n + 1] for n in range(parts)])


def part_bytes(size_bytes: int) -> int:
    """The size of the parts that a file is sent in, all but the last."""
    return max(PART_BYTES, -(-size_bytes // MOST_PARTS))
