"""An S3 server on this machine, for demo and tests: rclone serving a folder, each sub-folder a bucket."""

import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import TrainingError


@dataclass(frozen=True)
class S3Server:
    """The server's address, its key pair, and the folder of its buckets."""

    endpoint: str
    access_key: str
    secret_key: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that point boto3 at it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def serve_s3(folder: Path) -> Iterator[S3Server]:
    """Serve a folder by rclone's S3 server on a free port until the end of the block.

    It does not notice changes that others make in the folder: with a shorter `--dir-cache-time` it deadlocks under parallel
    uploads.
    """
    port = free_port()
    server = S3Server(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20), folder)
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{server.access_key},{server.secret_key}", "--vfs-cache-mode", "off"]
    command += ["--dir-cache-time", "1h", "--config", "", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(port, process)
        yield server
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise TrainingError(f"the S3 server stopped at once: {process.communicate()[1]}")
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TrainingError(f"the S3 server did not answer on port {port} within 10 s: is the port taken?")
