"""README's commands, run in the order of the page. Only the budget of training is cut, and ports are free ones."""

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import urllib3

from tests.readme import blocks, commands
from training.demo.local_s3 import free_port, serve_s3

pytestmark = pytest.mark.slow

SHORT = "--steps 4 --batch-size 2 --crop-s 2 --validations 1"
SERVERS = ("python -m serving serve", "mlflow ui", "MLFLOW_TRACKING_URI=")


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user: the virtual environment, a bucket, and nothing of a deployment."""
    buckets = tmp_path_factory.mktemp("buckets")
    (buckets / "stemwright").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "STEMWRIGHT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serve_s3(buckets) as s3:
        yield {**kept, **s3.environment, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}


class Shell:
    """Runs command lines in one folder; the ones that serve stay until the end."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder, self.environ = folder, environ
        self.servers: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> None:
        done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=self.environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def serve(self, line: str, url: str) -> None:
        self.stop()
        log = (self.folder / "server.log").open("wb")
        command = ["bash", "-c", f"exec env {line}"]
        process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=log, stderr=log)
        self.servers.append(process)
        for _ in range(480):
            assert process.poll() is None, f"{line}\n{(self.folder / 'server.log').read_text()[-3000:]}"
            says_ready = "ready: " in (self.folder / "server.log").read_text()
            if says_ready if "serving" in line else answers(url):
                return
            time.sleep(0.25)
        raise AssertionError(f"{line} did not come up\n{(self.folder / 'server.log').read_text()[-3000:]}")

    def stop(self) -> None:
        for process in self.servers:
            process.terminate()
            process.wait(timeout=30)
        self.servers.clear()


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def test_every_command_works_as_written(environ: dict[str, str], tmp_path: Path) -> None:
    endpoint, ui = free_port(), free_port()
    shell = Shell(tmp_path, environ)
    try:
        for line in commands("sh"):
            line = re.sub(r"--minutes \S+", SHORT, line).replace("127.0.0.1:8080", f"127.0.0.1:{endpoint}")
            if "song.wav" in line:
                shutil.copy(next((tmp_path / "songs" / "test").rglob("mixture.wav")), tmp_path / "song.wav")
            if line.startswith(SERVERS):
                option = f"--port {ui}" if line.startswith("mlflow") else f"--port {endpoint}"
                shell.serve(f"{line} {option}", f"http://127.0.0.1:{ui}/health")
            else:
                shell.run(line)
            if "-o stems.zip" in line:
                (python,) = blocks("python")
                shell.run(f"python - <<'END'\n{python.replace('127.0.0.1:8080', f'127.0.0.1:{endpoint}')}\nEND")
    finally:
        shell.stop()

    samples = soundfile.info(tmp_path / "song.wav").frames
    with zipfile.ZipFile(tmp_path / "stems.zip") as stems:
        assert sorted(stems.namelist()) == ["accompaniment.wav", "vocals.wav"]
    assert soundfile.info(tmp_path / "vocals.flac").frames == samples
    assert soundfile.info(tmp_path / "stems" / "song" / "vocals.flac").frames == samples
    assert (tmp_path / "winner.mar").exists()
    assert list((tmp_path / "tour").glob("*.png"))


def test_the_make_targets_it_names_are_there() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)`", readme):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_files_it_names_are_there() -> None:
    root = Path(__file__).parent.parent
    named = re.findall(r"`((?:serving|training|infra|tests)/[\w./]*)`", (root / "README.md").read_text())
    assert named and all((root / name).exists() for name in named)
