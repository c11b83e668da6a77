"""Fixtures around a real S3 server; a test module imports both and names them as `s3_server` and `bucket`."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.local_s3 import S3Server, serve_s3


@pytest.fixture(scope="session", name="s3_server")
def s3_server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3"), sees_changes=True) as server:
        yield server


@pytest.fixture(name="bucket")
def bucket_fixture(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fresh bucket of the server that the environment points to; its name is the bucket's."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    folder = s3_server.folder / f"bucket-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder
