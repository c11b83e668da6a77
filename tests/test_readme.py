"""The commands of README.md and of the READMEs of folders, run in the order of the pages, in one folder.

Songs, networks, the budget of training and the noise of measured costs are cut, runs draw no spectrograms, and ports are free.
"""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import urllib3

import training.evaluation.cost
from tests.pictures import draw_no_spectrograms
from tests.processes import forked
from tests.readme import ROOT, blocks, commands
from tests.tiny import CLASSIC
from training.__main__ import process as run_command
from training.config import Budget, TrainConfig
from training.demo.local_s3 import free_port, serve_s3
from training.presets import PRESETS, classic

pytestmark = pytest.mark.slow

SHORT = "--steps 2 --batch-size 2 --crop-s 1 --validations 1 --valid-excerpt-s 2"
HAS_CURL = shutil.which("curl") is not None  # a bare machine has none
SERVERS = {"stemwright serve": "", "mlflow ui": "--workers 1"}
"""Commands that stay, and what spares them processes."""
ENDPOINT = "127.0.0.1:8080"


class Shell:
    """Runs command lines in one folder; the ones that serve stay until the end."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.folder, self.environ = folder, environ
        self.ports = {server: free_port() for server in SERVERS}
        self._processes: list[subprocess.Popen[bytes]] = []

    def page(self, name: str) -> None:
        """Run all commands of a page; its Python once a server is there and has answered."""
        python = blocks("python", name)
        for line in commands("sh", name):
            line = re.sub(r"--minutes \S+", SHORT, line).replace("--seconds 10", "--seconds 4")
            self.line(line.replace("--steps 5", "--steps 5 --batch-size 2 --crop-s 1"))
            if python and "-o stems.zip" in line:
                self.run(f"python - <<'END'\n{self.here(python.pop())}\nEND")

    def line(self, line: str) -> None:
        if "song.wav" in line and not (self.folder / "song.wav").exists():
            noise = 0.1 * np.random.default_rng(0).standard_normal((4 * 44_100, 2))
            soundfile.write(self.folder / "song.wav", noise, 44_100)
        if line.startswith("curl") and not HAS_CURL:
            return
        for server, port in self.ports.items():
            if line.startswith(server):
                self.serve(
                    f"{line} --port {port} {SERVERS[server]}",
                    f"http://127.0.0.1:{port}/{'health' if 'mlflow' in server else 'ping'}",
                )
                return
        self.run(line)

    def here(self, text: str) -> str:
        """The text with the port of this server."""
        return text.replace(ENDPOINT, f"127.0.0.1:{self.ports['stemwright serve']}")

    def run(self, line: str) -> None:
        output = self.folder / "output.log"
        words, environ = shlex.split(self.here(line)), dict(self.environ)
        while "=" in words[0]:
            environ.update([words.pop(0).split("=", 1)])
        if words[0] == "stemwright" and len(words) > 2:  # the shortest ones show that the installed script starts
            child = forked(stemwright, words[1:], self.folder, environ, output)
            child.join()
            code = child.exitcode
        else:
            with output.open("w") as file:
                command = ["bash", "-c", self.here(line)]
                code = subprocess.run(command, cwd=self.folder, env=self.environ, stdout=file, stderr=file).returncode
        assert code == 0, f"{line}\n{output.read_text()[-6000:]}"

    def serve(self, line: str, url: str) -> None:
        log = self.folder / f"server-{len(self._processes)}.log"
        command = ["bash", "-c", f"exec {line}"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environ, stdout=output, stderr=output)
        self._processes.append(process)
        for _ in range(480):
            assert process.poll() is None, f"{line}\n{log.read_text()[-3000:]}"
            if "ready: " in log.read_text() if "stemwright" in line else answers(url):
                return
            time.sleep(0.25)
        raise AssertionError(f"{line} did not come up\n{log.read_text()[-3000:]}")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(timeout=30)


def stemwright(arguments: list[str], folder: Path, environ: dict[str, str], output: Path) -> None:
    """The command in a process that has imported its libraries already, which is half of its time."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    draw_no_spectrograms()
    PRESETS["classic"] = small
    training.evaluation.cost.EXCERPT_S, training.evaluation.cost.TIMES = 2, 1
    sys.argv = ["stemwright", *arguments]
    run_command()


def small(data: str, budget: Budget) -> TrainConfig:
    return dataclasses.replace(classic(data, budget), model=CLASSIC)


def answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, timeout=2, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The shell of a user who has run README.md: the virtual environment, a bucket, and nothing of a deployment."""
    buckets = tmp_path_factory.mktemp("buckets")
    (buckets / "stemwright").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "STEMWRIGHT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with serve_s3(buckets) as s3:
        environ = {**kept, **s3.environment, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true"}
        environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # of no use here, and seven processes
        shell = Shell(tmp_path_factory.mktemp("user"), environ)
        try:
            shell.page("README.md")
            yield shell
        finally:
            shell.stop()


def test_every_command_works_as_written(shell: Shell) -> None:
    samples = soundfile.info(shell.folder / "song.wav").frames
    if HAS_CURL:
        with zipfile.ZipFile(shell.folder / "stems.zip") as stems:
            assert {"accompaniment.wav", "vocals.wav"} <= set(stems.namelist())
        assert soundfile.info(shell.folder / "vocals.flac").frames == samples
    assert soundfile.info(shell.folder / "stems" / "song" / "vocals.wav").frames == samples
    assert soundfile.info(shell.folder / "stems-of-server" / "song" / "vocals.flac").frames == samples
    assert (shell.folder / "winner.mar").exists() and (shell.folder / "compare.png").exists()
    assert list((shell.folder / "tour").glob("*.png"))


@pytest.mark.long  # torchrun's two processes import everything anew
@pytest.mark.parametrize("page", ["training/README.md"])
def test_every_command_of_a_folder_works_as_written(shell: Shell, page: str) -> None:
    assert commands("sh", page)
    shell.page(page)


def test_the_make_targets_it_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([\w-]+)`", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "training/README.md"])
def test_the_files_it_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = [ROOT / name for name in re.findall(r"`((?:serving|training|infra|tests)/[\w./]*)`", text)]
    linked = [(ROOT / page).parent / name for name in re.findall(r"\]\((?!http)([^)#]+)\)", text)]
    assert named + linked and not [path for path in named + linked if not path.exists()]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200
