"""A real S3 server for tests: rclone, serving a folder whose sub-folders are buckets."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class S3Server:
    """Where the server answers, its one pair of keys, and the folder that holds its buckets."""

    endpoint: str
    access_key: str
    secret_key: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which boto3 finds it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """rclone's S3 server over a folder, on a free port of this machine, stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = S3Server(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20), folder)
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{server.access_key},{server.secret_key}", "--vfs-cache-mode", "off"]
    # Buckets that a test makes as plain folders must be seen at once.
    command += ["--dir-cache-time", "0s", "--config", "", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(port, process)
        yield server
    finally:
        process.terminate()
        process.communicate(timeout=10)


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"rclone stopped at once: {process.communicate()[1]}")
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("rclone did not answer within 10 s")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fresh bucket of the server that the environment points to; its name is the bucket's."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    folder = s3_server.folder / f"bucket-{secrets.token_hex(4)}"
    folder.mkdir()
    return folder
