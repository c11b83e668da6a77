"""A real TorchServe for tests, on an archive of a tiny model, and how to ask it."""

import dataclasses
import io
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import urllib3

from serving.model.spec import AudioSpec, ChunkSpec, StftSpec
from tests.tiny import CLASSIC

MAX_DURATION_S = 240
SPEC = dataclasses.replace(
    CLASSIC,
    audio=AudioSpec(sample_rate_hz=8_000),
    stft=StftSpec(n_fft=256, hop_samples=64),
    chunk=ChunkSpec(length_s=4, overlap_s=1),
)


def request(method: str, address: str, **options: Any) -> urllib3.BaseHTTPResponse:
    """A request on a connection of its own, which does not stay open."""
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request(method, address, **options)


@dataclass(frozen=True)
class Server:
    """A running `python -m serving serve`, what it printed so far, and how to ask it."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self, pattern: str) -> str:
        match = re.search(pattern, self.log.read_text(), re.MULTILINE)
        assert match, self.log.read_text()
        return match[1]

    @property
    def endpoint(self) -> str:
        return self.said(r"^ready: (\S+)")

    @property
    def port(self) -> str:
        return self.said(r"^ready: http://[^:]+:(\d+)/")

    @property
    def management_port(self) -> str:
        return self.said(r"^ready: .*management port (\d+)")

    def post(self, body: bytes, **headers: str) -> urllib3.BaseHTTPResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request("POST", self.endpoint, body=body, headers=named, timeout=60)

    def worker_pid(self) -> int:
        address = f"http://127.0.0.1:{self.management_port}/models/stemwright"
        (worker,) = request("GET", address, timeout=10).json()[0]["workers"]
        assert worker["status"] == "READY"
        return int(worker["pid"])


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serving", *arguments]


@contextmanager
def serving(model: Path | str | None, log: Path, environment: dict[str, str], *options: str) -> Iterator[Server]:
    """A server from its start to SIGTERM, without waiting for it to be ready; the environment names the model if None does."""
    named = ["--model", str(model)] if model is not None else []
    inherited = psutil.Process().environ()
    own = {"STEMWRIGHT_ENGINE": os.environ["STEMWRIGHT_ENGINE"], "XDG_CACHE_HOME": str(log.parent / "cache")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("serve", *named, "--port", "0", *options),
            stdout=output,
            stderr=output,
            env=inherited | own | environment,
        )
        try:
            yield Server(process, log)
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_ready(server: Server) -> None:
    for _ in range(600):
        if "\nready: " in server.log.read_text():
            return
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())


def encoded(audio: np.ndarray, rate_hz: int = 22_050, audio_format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, rate_hz, format=audio_format, subtype=subtype)
    return file.getvalue()


def stems_in(answer: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(answer)) as members:
        return {
            Path(name).stem: soundfile.read(io.BytesIO(members.read(name)), dtype="float32")[0]
            for name in members.namelist()
            if name != "stems.json"
        }


def wait_for(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def metrics(server: Server) -> dict[str, float]:
    """Values by name and labels, without the name of the host."""
    port = server.said(r"^ready: .*metrics port (\d+)")
    text = request("GET", f"http://127.0.0.1:{port}/metrics", timeout=10).data.decode()
    lines = [re.sub(r'[Hh]ostname="[^"]*",', "", line).rpartition(" ") for line in text.splitlines() if line[0] != "#"]
    return {name.replace("{}", ""): float(value) for name, _, value in lines}
