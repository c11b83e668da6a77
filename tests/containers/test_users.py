"""Both images as any user, on any folder: they work, or say in one sentence what to do."""

import subprocess
from pathlib import Path

import pytest
from torch import nn

from serving.model.archive import write_archive
from serving.model.spec import ModelSpec
from tests.containers.engine import build, docker, needs_docker, state_of, wait_for_line
from training.demo.local_s3 import free_port
from training.demo.songs import write_songs

pytestmark = needs_docker

STRANGER = "12345:12345"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Songs that anybody may read, and a folder that root alone may write to."""
    folder = tmp_path_factory.mktemp("users")
    write_songs(folder / "songs", train=2, test=1, seconds=2, seed=0)
    (folder / "roots").mkdir(mode=0o755)
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(parent.stat().st_mode | 0o055)
    return folder


def train(folder: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    size = ["--steps", "1", "--batch-size", "1", "--crop-s", "1", "--validations", "1", "--valid-excerpt-s", "2"]
    command = ["train", "--data", "/songs", "--run-dir", "/runs/first", *size]
    return docker("run", "--rm", *flags, "-v", f"{folder}/songs:/songs:ro", build("train"), *command, check=False)


@pytest.mark.parametrize("user", [STRANGER, "10001:10001"])
def test_an_empty_volume_takes_any_user(folder: Path, user: str) -> None:
    volume = f"stemwright-users-{user.partition(':')[0]}"
    try:
        done = train(folder, "--user", user, "--read-only", "--tmpfs", "/tmp", "-v", f"{volume}:/runs")
        assert done.returncode == 0 and "1 steps" in done.stdout, done.stderr
        assert "arning" not in done.stderr and "getpwuid" not in done.stderr
    finally:
        docker("volume", "rm", "-f", volume)


@pytest.mark.parametrize("user", [STRANGER, "10001:10001"])
def test_a_folder_of_root_is_named_with_chown_and_user(folder: Path, user: str) -> None:
    done = train(folder, "--user", user, "-v", f"{folder}/roots:/runs")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith(
        f"error: user {user} may not write to /runs/first: `chown -R {user} /runs`"
    )
    assert "`docker run --user`" in line
    assert not list((folder / "roots").iterdir())


def test_a_folder_that_is_read_only_is_named(folder: Path) -> None:
    done = train(folder, "--user", STRANGER, "-v", f"{folder}/roots:/runs:ro")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "/runs/first cannot be written to (Read-only file system): name another" in line


@pytest.fixture
def archive(folder: Path, tiny_spec: ModelSpec, tiny_network: nn.Module) -> Path:
    path = folder / "tiny.mar"
    write_archive(path, tiny_spec, tiny_network, {})
    path.chmod(0o644)
    return path


def test_a_server_serves_as_any_user_where_only_tmp_can_be_written(archive: Path, tmp_path: Path) -> None:
    name = f"serve-{tmp_path.name.replace('_', '-')}"
    ports = [f"STEMWRIGHT_{port}_PORT={free_port()}" for port in ("HTTP", "MANAGEMENT", "METRICS")]
    settings = [word for port in (*ports, "STEMWRIGHT_MODEL=/model.mar") for word in ("-e", port)]
    flags = [
        "--network",
        "host",
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--user",
        STRANGER,
        "-v",
        f"{archive}:/model.mar:ro",
    ]
    docker("run", "-d", "--name", name, *flags, *settings, build("serve"))
    try:
        wait_for_line(name, "ready: ")
        docker("stop", "--time", "20", name)
        assert state_of(name)["ExitCode"] == 0
    finally:
        docker("rm", "-f", name)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "there is no model to serve: give --model or set STEMWRIGHT_MODEL"),
        (["--read-only", "-e", "STEMWRIGHT_MODEL=/x.mar"], 1, "there is no folder for temporary files: mount one with"),
        (
            ["-e", "STEMWRIGHT_MODEL=models:/x@champion", "-e", "MLFLOW_TRACKING_URI=http://127.0.0.1:9"],
            1,
            "MLflow does not tell the version of models:/x@champion",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why_within_20_s(flags: list[str], code: int, said: str) -> None:
    image = build("serve")
    command = ["docker", "run", "--rm", "--user", STRANGER, *flags, image]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
