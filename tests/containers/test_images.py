"""Both images, built from their Dockerfiles, and the whole path through them. Runs wherever a Docker engine answers."""

import json
import re
import shlex
import subprocess
import time
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving.storage.progress import no_progress
from serving.storage.storage import exists
from tests.containers.engine import HARDENED, ROOT, build, docker, needs_docker, wait_for_line, wait_until_healthy
from tests.readme import commands
from training.data.push import push
from training.demo.local_s3 import S3Server, free_port
from training.demo.songs import write_songs

SHORT = "--steps 4 --batch-size 2 --crop-s 2"

pytestmark = needs_docker


@pytest.fixture(scope="module", params=["train", "serve"])
def image(request: pytest.FixtureRequest) -> str:
    return build(request.param)


def test_an_image_runs_as_nobody_and_holds_no_credentials(image: str) -> None:
    facts = json.loads(docker("image", "inspect", image).stdout)[0]["Config"]
    assert facts["User"] == "10001:10001"
    assert not [line for line in facts["Env"] if line.startswith(("AWS_", "MLFLOW_TRACKING"))]


def as_readme_says(line: str, s3: S3Server, folder: Path, *flags: str) -> list[str]:
    """A `docker run` line of README for this machine: hardened, no GPU, its own network, a short run, a volume of its own."""
    (folder / "aws.env").write_text("".join(f"{name}={value}\n" for name, value in s3.environment.items()))
    line = (
        line.replace("--gpus all ", "")
        .replace("-p 8080:8080 ", "")
        .replace("--env-file aws.env", f"--env-file {folder}/aws.env")
    )
    line = line.replace("-v runs:/runs", f"-v {folder.name}:/runs").replace("--minutes 30", SHORT)
    _, run, *rest = shlex.split(line)
    return [run, *HARDENED, *flags, *rest]


def test_songs_in_a_bucket_become_stems_over_http(s3: S3Server, tmp_path: Path) -> None:
    build_serve, serve, build_train, train = commands("sh docker")
    for line in (build_train, build_serve):
        _, build_command, *rest = shlex.split(line)
        docker(build_command, "--network", "host", *rest[:-1], str(ROOT))
    write_songs(tmp_path / "songs", train=3, test=1, seconds=8, seed=0)
    push(str(tmp_path / "songs"), "s3://stemwright/songs", no_progress)
    mixture_file = next((tmp_path / "songs" / "test").rglob("mixture.wav"))

    docker(*as_readme_says(train, s3, tmp_path))
    assert exists("s3://stemwright/models/classic-third.mar")

    port, container = free_port(), f"serve-{tmp_path.name}"
    docker(*as_readme_says(serve, s3, tmp_path, "-d", "--name", container, "-e", f"STEMWRIGHT_HTTP_PORT={port}"))
    try:
        wait_until_healthy(container)
        url, answer = f"http://127.0.0.1:{port}/predictions/stemwright", tmp_path / "stems.zip"
        subprocess.run(["curl", "-fsS", "-T", str(mixture_file), url, "-o", str(answer)], check=True)
        mixture, rate_hz = soundfile.read(mixture_file, dtype="float32")
        with zipfile.ZipFile(answer) as stems:
            files = [BytesIO(stems.read(name)) for name in ("vocals.wav", "accompaniment.wav")]
        found = [soundfile.read(file, dtype="float32") for file in files]
        assert all(rate == rate_hz and audio.shape == mixture.shape for audio, rate in found)
        np.testing.assert_allclose(found[0][0] + found[1][0], mixture, atol=1e-4)

        started = time.monotonic()
        exit_code = subprocess.Popen(["docker", "wait", container], stdout=subprocess.PIPE, text=True)
        docker("stop", "--time", "20", container)
        assert time.monotonic() - started < 10
        assert exit_code.communicate()[0].strip() == "0"
    finally:
        print(docker("logs", container, check=False).stdout[-4000:])
        docker("rm", "-f", container, check=False)
        docker("volume", "rm", "-f", tmp_path.name)


def test_a_stopped_run_goes_on_where_it_was(s3: S3Server, tmp_path: Path) -> None:
    image, volume = build("train"), f"stemwright-test-{tmp_path.name}"
    write_songs(tmp_path / "songs", train=3, test=1, seconds=8, seed=0)
    push(str(tmp_path / "songs"), "s3://stemwright/songs", no_progress)
    flags = [*HARDENED, "-v", f"{volume}:/runs"]
    for name, value in s3.environment.items():
        flags += ["-e", f"{name}={value}"]
    train = [
        "train",
        "--data",
        "s3://stemwright/songs",
        "--run-dir",
        "/runs/first",
        "--batch-size",
        "2",
        "--crop-s",
        "2",
    ]
    container = docker("run", "-d", *flags, image, *train, "--steps", "10000").stdout.strip()
    try:
        wait_for_line(container, "; step ")
        docker("stop", "--time", "30", container)
        assert json.loads(docker("inspect", container).stdout)[0]["State"]["ExitCode"] == 143
        # A run that a busy machine lets no time for words has saved all the same.
        saved = docker("run", "--rm", *flags, "--entrypoint", "ls", image, "/runs/first").stdout
        stopped = max(int(step) for step in re.findall(r"step-(\d+)", saved))
        assert stopped >= 10
        last = ["train", "--run-dir", "/runs/first", "--resume", "--steps"]
        done = docker("run", "--rm", *flags, image, *last, str(stopped + 2))
        assert f"{stopped + 2} steps" in done.stdout
        two_ranks = ["--entrypoint", "torchrun", image, "--nproc-per-node", "2", "-m", "training"]
        done = docker("run", "--rm", *flags, *two_ranks, *last, str(stopped + 4))
        assert f"{stopped + 4} steps" in done.stdout
    finally:
        docker("rm", "-f", container)
        docker("volume", "rm", "-f", volume)
