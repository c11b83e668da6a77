"""Connections to object storage; the only file that names boto3.

Endpoint, region and credentials come from boto3's own chain: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_PROFILE`,
`~/.aws`, instance roles. Without credentials requests are not signed, as public buckets allow. Two settings have no
variable, only a place in the `s3 =` section of `~/.aws/config`: `addressing_style = virtual` or `path`, and
`request_payer = requester`, which agrees to pay for reading a bucket whose owner does not.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
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
from serving.settings import storage_environment
from serving.storage.refusals import Refusal

CONNECTIONS = 16
# An endpoint that is gone costs three attempts (botocore's own count, AWS_MAX_ATTEMPTS changes it) of 5 s.
CONNECTION = Config(connect_timeout=5, read_timeout=20, max_pool_connections=CONNECTIONS)
PART_BYTES = 8 << 20
TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES,
    multipart_chunksize=PART_BYTES,
    max_concurrency=CONNECTIONS,
    preferred_transfer_client="classic",
)
# botocore lets urllib3's own errors through when a TLS connection is cut inside an object.
UNREACHABLE = (NoConnectionError, HTTPClientError, IncompleteReadError, ConnectionBroke, S3TransferRetriesExceededError)

_making = threading.Lock()


def connect() -> Any:
    """The S3 client of this process and its AWS_ settings. Making one takes 0.5 s; threads may share it."""
    with _making:
        return _client_of(os.getpid(), storage_environment())


@lru_cache(maxsize=8)
def _client_of(_process: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """Make a client. Stores other than Amazon's get path-style addresses, botocore's default, and only checksums that S3
    requires, unless the user asked for more: many stores refuse others."""
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
    """Turns boto3's errors about a URL into StorageError; StoreUnavailable if waiting may help."""
    try:
        yield
    except ClientError as error:
        raise refusal_of(url, error).error() from error
    except Boto3Error as error:  # an upload wraps the answer in another error
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise refusal_of(url, cause).error() from error
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


def refusal_of(url: str, error: ClientError) -> Refusal:
    refused = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 401, 403)
    signed = not refused or botocore.session.Session().get_credentials() is not None
    return Refusal.of(url, error.operation_name, error.response, signed)


def head(bucket: str, key: str) -> dict[str, Any] | None:
    """The facts of an object; None if the bucket does not hold it."""
    client = connect()
    try:
        facts: dict[str, Any] = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if not refusal_of(key, error).no_file:
            raise
        client.head_bucket(Bucket=bucket)  # a bucket that does not exist gives the same 404
        return None
    return facts
