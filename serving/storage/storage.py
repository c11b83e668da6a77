"""Files in object storage and in plain folders, by one set of functions.

A URL is `s3://bucket/key` or a plain path. Every failure is a `StorageError` that names bucket, key or endpoint. A file
gets its name only when it is complete.
"""

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from serving.errors import StorageError, StoreUnavailable
from serving.storage.progress import Progress, counter, no_progress
from serving.storage.retries import Patience
from serving.storage.s3 import TRANSFER, bucket_and_key, connect, explained, head

BLOCK_BYTES = 1 << 18  # malloc returns larger blocks to the system at once, so each would cost page faults


@dataclass(frozen=True)
class StoredFile:
    """A file below a URL: its name relative to that URL, with slashes; its own URL; its ETag, "" for a plain file."""

    name: str
    url: str
    size_bytes: int
    etag: str


def is_remote(url: str) -> bool:
    return url.startswith("s3://")


def exists(url: str) -> bool:
    """True if a URL has a file. Raises StorageError if that cannot be known, for example without its bucket."""
    return find_file(url) is not None


def find_file(url: str) -> StoredFile | None:
    """The file of a URL; None if there is none. Raises StorageError if that cannot be known."""
    name = url.rsplit("/", 1)[-1]
    if not is_remote(url):
        path = _plain(url)
        return StoredFile(name, url, path.stat().st_size, "") if path.is_file() else None
    with explained(url):
        facts = head(*bucket_and_key(url))
    return StoredFile(name, url, facts["ContentLength"], etag_of(facts)) if facts else None


def list_files(url: str) -> list[StoredFile]:
    """Every file below a folder, sorted by name. Empty if the bucket holds nothing there."""
    return sorted(walk_files(url), key=lambda file: file.name)


def walk_files(url: str) -> Iterator[StoredFile]:
    """Yield the files below a folder in the store's order, with one page of the listing in memory."""
    if not is_remote(url):
        folder = _plain(url)
        if not folder.is_dir():
            raise StorageError(f"there is no folder {url}: check the path")
        for path in folder.rglob("*"):
            if path.is_file():
                yield StoredFile(path.relative_to(folder).as_posix(), str(path), path.stat().st_size, "")
        return
    bucket, key = bucket_and_key(url)
    prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
    with explained(url):
        for page in connect().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                name = entry["Key"][len(prefix) :]
                if not name.endswith("/"):
                    yield StoredFile(name, f"s3://{bucket}/{entry['Key']}", entry["Size"], etag_of(entry))


def read_file(file: StoredFile, start: int, stop: int, stopping: Event | None = None) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file in a bucket, in blocks.

    After a cut connection, a time-out, a 500, a 503 SlowDown or a restart of the server it requests the rest again, with
    growing pauses, until `retries.PATIENCE_S` pass without a byte. Raises StorageError then, if the object has changed
    since it was listed, or if `stopping` is set.
    """
    stopping = stopping or Event()
    patience = Patience(stopping)
    while start < stop:
        try:
            for block in _read_once(file, start, stop):
                if stopping.is_set():
                    raise StorageError(f"{file.url} was stopped on its way")
                start += len(block)
                yield block
                patience = Patience(stopping)
        except StoreUnavailable as error:
            patience.wait(error)


def fetch_file(url: str, path: Path, progress: Progress = no_progress) -> None:
    """Copy the file of a URL to a path. Raises StorageError."""
    if not is_remote(url):
        with _replacing(path) as part:
            shutil.copyfile(_existing(_plain(url)), part)
        return
    stored = find_file(url)
    if stored is None:
        raise StorageError(f"there is no {url}: check the key")
    count = counter("fetch", stored.size_bytes, progress)
    with _replacing(path) as part, part.open("wb") as file:
        for block in read_file(stored, 0, stored.size_bytes):
            count(file.write(block))


def store_file(path: Path, url: str) -> None:
    """Copy a file to a URL. Raises StorageError."""
    if not is_remote(url):
        with _replacing(_plain(url)) as part:
            shutil.copyfile(_existing(path), part)
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        connect().upload_file(str(path), bucket, key, Config=TRANSFER)


def store_bytes(content: bytes, url: str) -> None:
    """Write bytes to a URL. Raises StorageError."""
    if not is_remote(url):
        with _replacing(_plain(url)) as part:
            part.write_bytes(content)
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        connect().put_object(Bucket=bucket, Key=key, Body=content)


def delete(url: str) -> None:
    """Remove the file of a URL, if it exists."""
    if not is_remote(url):
        _plain(url).unlink(missing_ok=True)
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        connect().delete_object(Bucket=bucket, Key=key)


def _plain(url: str) -> Path:
    if "://" in url:
        raise StorageError(
            f"{url} is neither s3:// nor a path: reach other stores through their S3 API and AWS_ENDPOINT_URL"
        )
    return Path(url)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise StorageError(f"there is no file {path}: check the path")
    return path


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that replaces `path` at the end of the block unless the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_once(file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
    bucket, key = bucket_and_key(file.url)
    condition = {"IfMatch": f'"{file.etag}"'} if file.etag else {}
    with explained(file.url):
        answer = connect().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition)
        with closing(answer["Body"]) as body:
            # Some stores ignore the condition.
            if file.etag and etag_of(answer) != file.etag:
                raise StorageError(f"{file.url} changed while it was fetched: run this again")
            if answer["ContentLength"] != stop - start:
                raise StorageError(f"{file.url} is shorter than the {file.size_bytes} bytes listed: run this again")
            while block := body.read(BLOCK_BYTES):
                yield block


def etag_of(facts: Mapping[str, Any]) -> str:
    return str(facts.get("ETag", "")).strip('"')
