"""Files in object storage and in plain folders, by one set of functions; the only file that names boto3.

A URL is `s3://bucket/key` or a plain path. Endpoint, region and credentials come from boto3's own chain:
`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `~/.aws`, instance roles. Every refusal is a `StorageError` that
names bucket, key or endpoint. A file appears under its name only when it is complete.
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
from boto3.s3.transfer import (
    ProgressCallbackInvoker,
    S3TransferRetriesExceededError,
    TransferConfig,
    create_transfer_manager,
)
from botocore.config import Config
from botocore.configprovider import ConstantProvider
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NoConnectionError

from serving.errors import StorageError

# An endpoint that is gone costs three attempts (botocore's own count, AWS_MAX_ATTEMPTS changes it) of 5 s.
CONNECTION = Config(connect_timeout=5, read_timeout=20, max_pool_connections=16)
TRANSFER = TransferConfig(max_concurrency=16, preferred_transfer_client="classic")
NO_FILE = ("404", "NoSuchKey", "NotFound")
WRONG_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
REFUSED = ("403", "AccessDenied", "Forbidden", "AllAccessDisabled")

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("fetch"), how much of it is done and how much there is; never two calls at a time."""


@dataclass(frozen=True)
class StoredFile:
    """A file below a URL: its name relative to that, with slashes, its own URL, and its ETag, "" for a plain file."""

    name: str
    url: str
    size_bytes: int
    etag: str


def no_progress(_what: str, _done: int, _total: int) -> None:
    """The `Progress` of a caller who does not look."""


def is_remote(url: str) -> bool:
    return url.startswith("s3://")


def exists(url: str) -> bool:
    """Whether there is a file of this URL. Raises StorageError where that cannot be known, as without its bucket."""
    if not is_remote(url):
        return _plain(url).is_file()
    with _explained(url):
        return _head(_connect(), *_bucket_and_key(url)) is not None


def list_files(url: str) -> list[StoredFile]:
    """Every file below a folder, sorted by name. Empty where a bucket has nothing there."""
    if not is_remote(url):
        folder = _plain(url)
        if not folder.is_dir():
            raise StorageError(f"there is no folder {url}: check the path")
        paths = [path for path in folder.rglob("*") if path.is_file()]
        plain = [StoredFile(path.relative_to(folder).as_posix(), str(path), path.stat().st_size, "") for path in paths]
        return sorted(plain, key=_name)
    bucket, key = _bucket_and_key(url)
    prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
    with _explained(url):
        pages = _connect().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        objects = [entry for page in pages for entry in page.get("Contents", []) if not entry["Key"].endswith("/")]
    files = [
        StoredFile(
            entry["Key"][len(prefix) :], f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"')
        )
        for entry in objects
    ]
    return sorted(files, key=_name)


def fetch_file(url: str, path: Path, progress: Progress = no_progress) -> None:
    """Copy the file of a URL to a path."""
    if not is_remote(url):
        _copy(_plain(url), path)
        return
    bucket, key = _bucket_and_key(url)
    with _explained(url):
        client = _connect()
        head = _head(client, bucket, key)
        if head is None:
            raise StorageError(f"there is no {url}: check the key")
        path.parent.mkdir(parents=True, exist_ok=True)
        counter = _counter("fetch", head["ContentLength"], progress)
        # s3transfer writes to a temporary name beside the path, then renames
        client.download_file(bucket, key, str(path), Config=TRANSFER, Callback=counter)


def store_file(path: Path, url: str) -> None:
    """Copy a file to a URL."""
    if not is_remote(url):
        _copy(path, _plain(url))
        return
    bucket, key = _bucket_and_key(url)
    with _explained(url):
        _connect().upload_file(str(path), bucket, key, Config=TRANSFER)


def fetch_files(files: list[StoredFile], folder: Path, progress: Progress = no_progress) -> None:
    """Copy files that `list_files` found in a bucket to a folder, several at a time.

    They get their names below the URL that was listed; what lies there in full size already is skipped.
    """
    for file in files:
        if not (folder / file.name).resolve().is_relative_to(folder.resolve()):
            raise StorageError(f"{file.url} would be written outside {folder}: rename it in the bucket")
    missing = [file for file in files if not _has_size(folder / file.name, file.size_bytes)]
    if not missing:
        return
    counter = _counter("fetch", sum(file.size_bytes for file in missing), progress)
    with _explained(missing[0].url):
        client = _connect()
    with create_transfer_manager(client, TRANSFER) as manager:
        subscribers = [ProgressCallbackInvoker(counter)]
        downloads = []
        for file in missing:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            download = manager.download(*_bucket_and_key(file.url), str(folder / file.name), subscribers=subscribers)
            downloads.append((file.url, download))
        for url, download in downloads:
            with _explained(url):
                download.result()


def store_folder(folder: Path, url: str, progress: Progress = no_progress) -> None:
    """Copy every file of a folder below a URL, several at a time."""
    files = [(file, f"{url.rstrip('/')}/{file.name}") for file in list_files(str(folder))]
    counter = _counter("store", sum(file.size_bytes for file, _ in files), progress)
    if not is_remote(url):
        for file, target in files:
            _copy(Path(file.url), _plain(target))
            counter(file.size_bytes)
        return
    with _explained(url):
        client = _connect()
    with create_transfer_manager(client, TRANSFER) as manager:
        subscribers = [ProgressCallbackInvoker(counter)]
        uploads = [
            (target, manager.upload(file.url, *_bucket_and_key(target), subscribers=subscribers))
            for file, target in files
        ]
        for target, upload in uploads:
            with _explained(target):
                upload.result()


def _connect() -> Any:
    """An S3 client from boto3's own configuration. Stores other than Amazon's get path-style addresses, which is
    botocore's choice, and no checksums that S3 does not demand unless the user asked for them: many refuse those."""
    core = botocore.session.Session()
    try:
        session = boto3.Session(botocore_session=core)
        client = session.client("s3", config=CONNECTION)
    except ValueError as error:
        raise StorageError(f"the object store's address is malformed ({error}): check AWS_ENDPOINT_URL") from error
    if "amazonaws.com" in client.meta.endpoint_url:
        return client
    settings = core.get_component("config_store")
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        provider = settings.get_config_provider(name)
        provider.set_default_provider(ConstantProvider("when_required"))
        settings.set_config_provider(name, provider)
    return session.client("s3", config=CONNECTION)


def _head(client: Any, bucket: str, key: str) -> dict[str, Any] | None:
    """The facts of an object, None where its bucket does not hold it."""
    try:
        facts: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _code(error) not in NO_FILE:
            raise
        client.head_bucket(Bucket=bucket)  # the answer is the same 404 where there is no bucket at all
        return None
    return facts


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns what boto3 raises while it works on a URL into a StorageError."""
    try:
        yield
    except ClientError as error:
        raise StorageError(_refusal(url, error)) from error
    except Boto3Error as error:  # an upload wraps the refusal
        cause = error.__context__
        raise StorageError(_refusal(url, cause) if isinstance(cause, ClientError) else f"{url}: {error}") from error
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise StorageError(f"there are no credentials for {url} ({error}): {remedy}") from error
    except (NoConnectionError, HTTPClientError, S3TransferRetriesExceededError) as error:
        raise StorageError(f"{url} cannot be reached ({error}): check AWS_ENDPOINT_URL and the network") from error
    except BotoCoreError as error:
        raise StorageError(f"{url} cannot be used ({error}): check it and the AWS_ settings") from error


def _refusal(url: str, error: ClientError) -> str:
    bucket, _ = _bucket_and_key(url)
    code = _code(error)
    if code == "NoSuchBucket" or (code in NO_FILE and error.operation_name == "HeadBucket"):
        return f"there is no bucket {bucket}: check the name in {url} and AWS_ENDPOINT_URL"
    if code in NO_FILE:
        return f"there is no {url}: check bucket, key and AWS_ENDPOINT_URL"
    if code in WRONG_CREDENTIALS:
        return f"the credentials for {url} are wrong ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code in REFUSED:
        return f"access to {url} is refused ({code}): check the credentials and what they may do with bucket {bucket}"
    return f"{url}: {error}"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _bucket_and_key(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{url} names no bucket: write s3://bucket/key")
    return bucket, key


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


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _counter(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """Adds up the bytes that threads report."""
    done = 0
    lock = threading.Lock()

    def count(size_bytes: int) -> None:
        nonlocal done
        with lock:
            done += size_bytes
            progress(what, done, total)

    return count


def _name(file: StoredFile) -> str:
    return file.name


def delete(url: str) -> None:
    """Remove the file of a URL. What is not there is gone already."""
    if not is_remote(url):
        _plain(url).unlink(missing_ok=True)
        return
    bucket, key = _bucket_and_key(url)
    with _explained(url):
        _connect().delete_object(Bucket=bucket, Key=key)
