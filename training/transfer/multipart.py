"""Upload of one large file in parts. An interrupted upload resumes with the missing parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from serving.errors import StorageError, StoreUnavailable
from serving.storage.progress import Progress, counter
from serving.storage.retries import patiently
from serving.storage.s3 import CONNECTIONS, PART_BYTES, bucket_and_key, connect, explained
from serving.storage.storage import etag_of
from training.transfer.parallel import run_parallel

MOST_PARTS = 10_000  # S3 takes no more, and none below 5 MiB but the last


def part_bytes(size_bytes: int) -> int:
    """The size of all parts of a file but the last."""
    return max(PART_BYTES, -(-size_bytes // MOST_PARTS))


def upload(path: Path, url: str, part_md5s: Sequence[str], progress: Progress, stopping: Event) -> None:
    """Upload a file; `part_md5s` are the MD5s of its parts. Raises StorageError or Stopped."""
    bucket, key = bucket_and_key(url)
    place = {"Bucket": bucket, "Key": key}
    place["UploadId"] = unfinished(url) or ask(url, "create_multipart_upload", stopping, **place)["UploadId"]
    arrived = [part for part in arrived_parts(url, place) if part["PartNumber"] <= len(part_md5s)]
    etags = {part["PartNumber"]: etag_of(part) for part in arrived}
    numbers = range(1, len(part_md5s) + 1)
    missing = [number for number in numbers if etags.get(number) != part_md5s[number - 1]]
    size_bytes = path.stat().st_size
    step = part_bytes(size_bytes)
    count = counter("push", sum(min(step, size_bytes - step * (number - 1)) for number in missing), progress)

    def send(number: int) -> None:
        with path.open("rb") as file:
            file.seek(step * (number - 1))
            content = file.read(step)
        etags[number] = etag_of(ask(url, "upload_part", stopping, Body=content, PartNumber=number, **place))
        count(len(content))

    run_parallel(send, missing, CONNECTIONS, stopping)
    listed = [{"PartNumber": number, "ETag": f'"{etags[number]}"'} for number in numbers]
    ask(url, "complete_multipart_upload", stopping, MultipartUpload={"Parts": listed}, **place)


def ask(url: str, operation: str, stopping: Event, **facts: object) -> Mapping[str, Any]:
    """The answer to one request about an object. Asks again while the store is unavailable."""

    def request() -> Mapping[str, Any]:
        with explained(url):
            answer: Mapping[str, Any] = getattr(connect(), operation)(**facts)
        return answer

    return patiently(request, stopping)


def unfinished(url: str) -> str | None:
    """The id of the last unfinished upload of this object; None if there is none, or if the store or its rights do not
    tell."""
    bucket, key = bucket_and_key(url)
    try:
        with explained(url):
            pages = connect().get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=key)
            begun = [upload for page in pages for upload in page.get("Uploads", []) if upload["Key"] == key]
    except StoreUnavailable:
        raise
    except StorageError:
        return None
    return max(begun, key=lambda upload: upload["Initiated"])["UploadId"] if begun else None


def arrived_parts(url: str, place: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The parts of an upload that the store holds."""
    with explained(url):
        return [
            part for page in connect().get_paginator("list_parts").paginate(**place) for part in page.get("Parts", [])
        ]
