"""The store of the tests of containers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from training.demo.local_s3 import S3Server, serve_s3


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    (tmp_path / "buckets" / "stemwright").mkdir(parents=True)
    with serve_s3(tmp_path / "buckets") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
