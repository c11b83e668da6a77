"""Files in object storage and in plain folders, by one set of functions; the only file that names boto3.

A URL is `s3://bucket/key` or a plain path. Endpoint, region and credentials come from boto3's own chain:
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `~/.aws`, instance roles. Without any credentials requests are
not signed, as public buckets allow. Two things have no variable, only a place in the `s3 =` section of `~/.aws/config`:
`addressing_style = virtual` or `path`, and `request_payer = requester`, which agrees to pay for reading a bucket whose
owner does not. Every refusal is a `StorageError` that names bucket, key or endpoint. A file appears under its name only
when it is complete.
"""

import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import S3TransferRetriesExceededError, TransferConfig
from botocore import UNSIGNED
from botocore.config import Config
from botocore.configprovider import ConstantProvider
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError
from urllib3.exceptions import HTTPError as ConnectionBroke

from serving.errors import StorageError, StoreUnavailable
from serving.storage.progress import Progress as Progress
from serving.storage.progress import no_progress as no_progress
from serving.storage.refusals import Refusal

CONNECTIONS = 16
# An endpoint that is gone costs three attempts (botocore's own count, AWS_MAX_ATTEMPTS changes it) of 5 s.
CONNECTION = Config(connect_timeout=5, read_timeout=20, max_pool_connections=CONNECTIONS)
TRANSFER = TransferConfig(max_concurrency=CONNECTIONS, preferred_transfer_client="classic")
# botocore lets through what urllib3 raises where a TLS connection is cut inside an object.
UNREACHABLE = (NoConnectionError, HTTPClientError, IncompleteReadError, ConnectionBroke, S3TransferRetriesExceededError)


@dataclass(frozen=True)
class StoredFile:
    """A file below a URL: its name relative to that, with slashes, its own URL, and its ETag, "" for a plain file."""

    name: str
    url: str
    size_bytes: int
    etag: str


def is_remote(url: str) -> bool:
    return url.startswith("s3://")


def exists(url: str) -> bool:
    """Whether there is a file of this URL. Raises StorageError where that cannot be known, as without its bucket."""
    return find_file(url) is not None


def find_file(url: str) -> StoredFile | None:
    """The file of a URL, None where there is none. Raises StorageError where that cannot be known."""
    name = url.rsplit("/", 1)[-1]
    if not is_remote(url):
        path = _plain(url)
        return StoredFile(name, url, path.stat().st_size, "") if path.is_file() else None
    with explained(url):
        head = _head(connect(), *bucket_and_key(url))
    return StoredFile(name, url, head["ContentLength"], head.get("ETag", "").strip('"')) if head else None


def list_files(url: str, client: Any = None) -> list[StoredFile]:
    """Every file below a folder, sorted by name. Empty where a bucket has nothing there. `client` is one of `connect`."""
    if not is_remote(url):
        folder = _plain(url)
        if not folder.is_dir():
            raise StorageError(f"there is no folder {url}: check the path")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        plain = [StoredFile(path.relative_to(folder).as_posix(), str(path), path.stat().st_size, "") for path in paths]
        return sorted(plain, key=_name)
    bucket, key = bucket_and_key(url)
    prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
    with explained(url):
        pages = (client or connect()).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [entry for page in pages for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]
    files = [
        StoredFile(
            entry["Key"][len(prefix) :],
            f"s3://{bucket}/{entry['Key']}",
            entry["Size"],
            entry.get("ETag", "").strip('"'),
        )
        for entry in objects
    ]
    return sorted(files, key=_name)


def fetch_file(url: str, path: Path, progress: Progress = no_progress) -> None:
    """Copy the file of a URL to a path."""
    if not is_remote(url):
        _copy(_plain(url), path)
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        client = connect()
        head = _head(client, bucket, key)
        if head is None:
            raise StorageError(f"there is no {url}: check the key")
        path.parent.mkdir(parents=True, exist_ok=True)
        count = counter("fetch", head["ContentLength"], progress)
        # s3transfer writes to a temporary name beside the path, then renames
        client.download_file(bucket, key, str(path), Config=TRANSFER, Callback=count)


def store_file(path: Path, url: str) -> None:
    """Copy a file to a URL."""
    if not is_remote(url):
        _copy(path, _plain(url))
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        connect().upload_file(str(path), bucket, key, Config=TRANSFER)


def delete(url: str) -> None:
    """Remove the file of a URL. What is not there is gone already."""
    if not is_remote(url):
        _plain(url).unlink(missing_ok=True)
        return
    bucket, key = bucket_and_key(url)
    with explained(url):
        connect().delete_object(Bucket=bucket, Key=key)


def connect() -> Any:
    """An S3 client from boto3's own configuration. Stores other than Amazon's get path-style addresses, which is
    botocore's choice, and no checksums that S3 does not demand unless the user asked for them: many refuse those."""
    client = _client(checksums="when_required")
    return _client(checksums="when_supported") if "amazonaws.com" in client.meta.endpoint_url else client


def _client(checksums: str) -> Any:
    core = botocore.session.Session()
    settings = core.get_component("config_store")
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        provider = settings.get_config_provider(name)
        provider.set_default_provider(ConstantProvider(checksums))
        settings.set_config_provider(name, provider)
    config = CONNECTION if core.get_credentials() else CONNECTION.merge(Config(signature_version=UNSIGNED))
    try:
        client = boto3.Session(botocore_session=core).client("s3", config=config)
    except ValueError as error:
        raise StorageError(f"the object store's address is malformed ({error}): check AWS_ENDPOINT_URL") from error
    payer = core.get_scoped_config().get("s3", {}).get("request_payer")
    if payer:
        client.meta.events.register(
            "before-sign.s3", lambda request, **_: request.headers.add_header("x-amz-request-payer", payer)
        )
    return client


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns what boto3 raises while it works on a URL into a StorageError, StoreUnavailable where waiting may help."""
    try:
        yield
    except ClientError as error:
        raise _refusal(url, error).error() from error
    except Boto3Error as error:  # an upload wraps the refusal
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise _refusal(url, cause).error() from error
        raise StorageError(f"{url}: {error}") from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise StorageError(f"there are no credentials for {url} ({error}): {remedy}") from error
    except UNREACHABLE as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error) or "doesn't match" in str(error):
            remedy = "name its certificate authority's file in AWS_CA_BUNDLE, or check the host in AWS_ENDPOINT_URL"
            raise StorageError(f"the certificate of the store of {url} is not trusted ({error}): {remedy}") from error
        raise StoreUnavailable(f"{url} cannot be reached ({error}): check AWS_ENDPOINT_URL and the network") from error
    except BotoCoreError as error:
        raise StorageError(f"{url} cannot be used ({error}): check it and the AWS_ settings") from error


def bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url} names no bucket: write s3://bucket/key")
    return bucket, key


def counter(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """Adds up the bytes that threads report."""
    done = 0
    lock = threading.Lock()

    def count(size_bytes: int) -> None:
        nonlocal done
        with lock:
            done += size_bytes
            progress(what, done, total)

    return count


def _head(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    """The facts of an object, None where its bucket does not hold it."""
    try:
        facts: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if not _refusal(key, error).no_file:
            raise
        client.head_bucket(Bucket=bucket)  # the answer is the same 404 where there is no bucket at all
        return None
    return facts


def _refusal(url: str, error: ClientError) -> Refusal:
    refused = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 401, 403)
    signed = not refused or botocore.session.Session().get_credentials() is not None
    return Refusal.of(url, error.operation_name, error.response, signed)


def _plain(url: str) -> Path:
    if "://" in url:
        raise StorageError(
            f"{url} is neither s3:// nor a path: reach other stores through their S3 API and AWS_ENDPOINT_URL"
        )
    return Path(url)


def _copy(source: Path, target: Path) -> None:
    if not source.is_file():
        raise StorageError(f"there is no file {source}: check the path")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _name(file: StoredFile) -> str:
    return file.name
