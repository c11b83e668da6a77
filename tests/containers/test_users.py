"""Both images as a user that they do not know, on folders of their own and of others: they work, or say what to do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.model.archive import write_archive
from serving.model.networks import build as build_network
from tests.containers.engine import HARDENED, build, docker, needs_docker, state_of, wait_for_line
from tests.torchserve import SPEC
from training.demo.local_s3 import free_port
from training.demo.songs import write_songs

pytestmark = needs_docker
STRANGER = "12345:12345"
SIZE = "--steps 1 --batch-size 1 --crop-s 1 --validations 1 --valid-excerpt-s 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs that anybody may read, and a folder that only root may write to."""
    folder = tmp_path_factory.mktemp("users")
    write_songs(folder / "songs", train=2, test=1, seconds=2, seed=0)
    (folder / "roots").mkdir(mode=0o755)
    return folder


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[str]:
    name = f"stemwright-{tmp_path.name.replace('_', '-')}"
    yield name
    docker("volume", "rm", "-f", name)


def train(folder: Path, runs: str, *, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """A short run by the stranger; `runs` is mounted: a volume or a folder, and where."""
    places = ["-v", f"{folder}/songs:/songs:ro", "-v", runs]
    command = ["train", "--data", "/songs", "--run-dir", "/runs/first", *SIZE.split()]
    return docker("run", "--rm", *HARDENED, "--user", STRANGER, *places, build("train"), *command, check=check)


def test_an_empty_volume_takes_any_user(folder: Path, volume: str) -> None:
    done = train(folder, f"{volume}:/runs")
    assert done.stdout.startswith("1 steps") and "getpwuid" not in done.stderr


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("/runs", f"error: user {STRANGER} may not write to /runs/first: `chown -R {STRANGER} /runs`"),
        ("/runs:ro", "error: /runs/first cannot be written to (Read-only file system): name another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_named(folder: Path, where: str, sentence: str) -> None:
    done = train(folder, f"{folder}/roots:{where}", check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(sentence)
    assert not list((folder / "roots").iterdir())


def test_a_server_serves_as_any_user(tmp_path: Path) -> None:
    write_archive(tmp_path / "tiny.mar", SPEC, build_network(SPEC), {})
    name = f"serve-{tmp_path.name.replace('_', '-')}"
    settings = [f"STEMWRIGHT_{port}_PORT={free_port()}" for port in ("HTTP", "MANAGEMENT", "METRICS")]
    flags = [word for setting in (*settings, "STEMWRIGHT_MODEL=/tiny.mar") for word in ("-e", setting)]
    flags += ["--user", STRANGER, "-v", f"{tmp_path}/tiny.mar:/tiny.mar:ro"]
    docker("run", "-d", "--name", name, *HARDENED, *flags, build("serve"))
    try:
        wait_for_line(name, "ready: ")
        docker("stop", "--time", "20", name)
        assert state_of(name)["ExitCode"] == 0
    finally:
        docker("rm", "-f", name)


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        ([], 2, "there is no model to serve: give --model or set STEMWRIGHT_MODEL"),
        (["--read-only", "-e", "STEMWRIGHT_MODEL=/x.mar"], 1, "there is no folder for temporary files: mount one with"),
    ],
)
def test_a_server_that_cannot_start_says_why(flags: list[str], code: int, sentence: str) -> None:
    done = docker("run", "--rm", "--user", STRANGER, *flags, build("serve"), check=False)
    assert done.returncode == code and sentence in done.stderr and "Traceback" not in done.stderr
