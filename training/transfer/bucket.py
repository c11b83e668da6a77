"""Pieces of objects in a bucket, for many transfers side by side; each goes on by itself after what passes.

A connection that is cut, a time-out, a 500, a 503 SlowDown, a server that restarts: the same piece is asked for again from
where it ended, after a pause that grows. `PATIENCE_S` of pauses without a byte in between are given up.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.errors import StorageError, StoreUnavailable
from serving.storage.storage import StoredFile, bucket_and_key, connect, explained

BLOCK_BYTES = 1 << 18  # larger ones cost a page fault for every page: malloc gives them back at once
FIRST_PAUSE_S, LONGEST_PAUSE_S, PATIENCE_S = 0.25, 15.0, 90.0

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A part of an upload that the store holds."""

    number: int
    size_bytes: int
    etag: str


class Bucket:
    """One pool of connections that threads share. While `stopping` is set, every transfer ends within a block."""

    def __init__(self, url: str) -> None:
        self.stopping = threading.Event()
        with explained(url):
            self.client: Any = connect()

    def read(self, file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop) of an object in blocks. Raises StorageError where it is no longer the one listed."""
        patience = Patience(self.stopping)
        while start < stop:
            try:
                for block in self.read_once(file, start, stop):
                    start += len(block)
                    yield block
                    patience = Patience(self.stopping)
            except StoreUnavailable as error:
                patience.pause(error)

    def read_once(self, file: StoredFile, start: int, stop: int) -> Iterator[bytes]:
        bucket, key = bucket_and_key(file.url)
        condition = {"IfMatch": f'"{file.etag}"'} if file.etag else {}
        with explained(file.url):
            answer = self.client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **condition)
            with closing(answer["Body"]) as body:
                # Not every store heeds the condition.
                if file.etag and answer.get("ETag", "").strip('"') != file.etag:
                    raise StorageError(f"{file.url} changed while it was fetched: run this again")
                if answer["ContentLength"] != stop - start:
                    raise StorageError(f"{file.url} is shorter than the {file.size_bytes} bytes listed: run this again")
                while block := body.read(BLOCK_BYTES):
                    if self.stopping.is_set():
                        raise StorageError(f"fetching {file.url} was stopped")
                    yield block

    def put(self, url: str, content: bytes) -> None:
        """Make `content` the object of a URL, in one request."""
        bucket, key = bucket_and_key(url)
        self.patiently(url, lambda: self.client.put_object(Bucket=bucket, Key=key, Body=content))

    def unfinished_uploads(self, url: str) -> dict[str, str]:
        """The last upload in parts that was begun and never completed, by the URL of each object below a URL.

        Empty also where the store does not tell: not every one knows this request, not every user may make it.
        """
        bucket, prefix = bucket_and_key(url)
        try:
            with explained(url):
                pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{prefix}/")
                begun = [upload for page in pages for upload in page.get("Uploads", [])]
        except StoreUnavailable:
            raise
        except StorageError:
            return {}
        begun.sort(key=lambda upload: upload["Initiated"])
        return {f"s3://{bucket}/{upload['Key']}": upload["UploadId"] for upload in begun}

    def parts(self, url: str, upload_id: str) -> list[Part]:
        """What arrived of an upload."""
        bucket, key = bucket_and_key(url)
        with explained(url):
            pages = self.client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
            found = [part for page in pages for part in page.get("Parts", [])]
        return [Part(part["PartNumber"], part["Size"], part["ETag"].strip('"')) for part in found]

    def begin_upload(self, url: str) -> str:
        """The id of a new upload in parts."""
        bucket, key = bucket_and_key(url)
        answer = self.patiently(url, lambda: self.client.create_multipart_upload(Bucket=bucket, Key=key))
        return str(answer["UploadId"])

    def put_part(self, url: str, upload_id: str, number: int, content: bytes) -> Part:
        bucket, key = bucket_and_key(url)
        place = {"Bucket": bucket, "Key": key, "UploadId": upload_id, "PartNumber": number}
        answer = self.patiently(url, lambda: self.client.upload_part(Body=content, **place))
        return Part(number, len(content), answer["ETag"].strip('"'))

    def complete_upload(self, url: str, upload_id: str, parts: Sequence[Part]) -> None:
        bucket, key = bucket_and_key(url)
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        self.patiently(
            url,
            lambda: self.client.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": listed}
            ),
        )

    def patiently(self, url: str, request: Callable[[], T]) -> T:
        patience = Patience(self.stopping)
        while True:
            try:
                with explained(url):
                    return request()
            except StoreUnavailable as error:
                patience.pause(error)


class Patience:
    """Pauses that double, each between half and the whole of its length so that threads do not come back as one."""

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.next_s, self.spent_s = FIRST_PAUSE_S, 0.0

    def pause(self, error: StoreUnavailable) -> None:
        """Wait; raises the error instead where patience is at its end or everything is to stop."""
        pause_s = self.next_s * random.uniform(0.5, 1)
        if self.spent_s + pause_s > PATIENCE_S or self.stopping.wait(pause_s):
            raise error
        self.spent_s += pause_s
        self.next_s = min(2 * self.next_s, LONGEST_PAUSE_S)
