"""A real MLflow server over a SQLite file, which a test can kill and start again."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.stores import new_store
from training.demo.local_s3 import free_port


class MlflowServer:
    """Its store and artifacts lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        self.command += ["--backend-store-uri", new_store(folder / "server.db")]
        self.command += ["--artifacts-destination", str(folder / "served")]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet, alone = subprocess.DEVNULL, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(self.command, stdout=quiet, stderr=quiet, start_new_session=True, env=alone)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "the MLflow server does not start"
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
