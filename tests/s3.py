"""A real S3 server for a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from training.demo.local_s3 import serve_s3


@pytest.fixture(name="bucket")
def bucket_fixture(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an empty bucket on a server of its own, which the environment points to; its name is the bucket's.

    The folder is made before the server starts: rclone does not look at folders again for an hour.
    """
    folder = tmp_path_factory.mktemp("buckets") / "a-bucket"
    folder.mkdir()
    with serve_s3(folder.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield folder
