"""`docker stop` of a training container at any moment of a run: it ends with 143 within 8 s, and the run goes on."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.storage.storage import exists, no_progress
from tests.containers.engine import HARDENED, build, docker, needs_docker, state_of
from tests.s3 import bucket_fixture  # noqa: F401
from training.data.push import push
from training.demo.songs import write_songs

pytestmark = needs_docker

WITHIN_S = 8
STEPS = 12
LONGEST_S = 100
"""A run takes 30 s on two idle cores; on busy ones it comes to its end in several goes."""


@pytest.fixture
def container(tmp_path: Path) -> Iterator[str]:
    """The name of a container and of its volume, both of which go with the test."""
    name = f"stemwright-{tmp_path.name.replace('_', '-')}"
    yield name
    docker("rm", "-f", name, check=False)
    docker("volume", "rm", "-f", name, check=False)


class Training:
    """A run in a container, started again and again on one volume."""

    def __init__(self, image: str, name: str) -> None:
        self.image, self.name = image, name
        environment = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("AWS_")]
        self.flags = [*HARDENED, "--name", name, "-v", f"{name}:/runs"]
        for variable in environment:
            self.flags += ["-e", variable]

    def start(self, run: str) -> None:
        docker("rm", "-f", self.name, check=False)
        size = ["--steps", str(STEPS), "--batch-size", "1", "--crop-s", "1"]
        size += ["--validations", "4", "--valid-excerpt-s", "2"]
        places = ["--run-dir", f"/runs/{run}", "--cache", f"/runs/cache-of-{run}"]
        places += ["--publish", "s3://a-bucket/models/", "--checkpoint-uri", f"s3://a-bucket/checkpoints/{run}"]
        train = ["train", "--data", "s3://a-bucket/songs", "--resume", *places, *size]
        docker("run", "-d", *self.flags, self.image, *train)

    def ends_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while state_of(self.name)["Running"]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def said(self) -> str:
        done = docker("logs", self.name)
        return done.stderr + done.stdout

    def exit_code(self) -> int:
        return int(state_of(self.name)["ExitCode"])


@pytest.mark.usefixtures("bucket")
def test_a_container_stops_at_random_moments(container: str, tmp_path: Path, times: Callable[[int, int], int]) -> None:
    """Runs of which each goes on until it is stopped or done; a fresh one decodes its songs anew."""
    write_songs(tmp_path / "songs", train=20, test=1, seconds=3, seed=0)
    push(str(tmp_path / "songs"), "s3://a-bucket/songs", no_progress)
    training = Training(build("train"), container)

    rng = random.Random(0)
    run, stops, stopped_at, longest_s = 0, 0, 0, float(LONGEST_S)
    while stops < times(2, 30):
        took_s, started = 0.0, time.monotonic()
        training.start(f"run-{run}")
        if not training.ends_within(rng.uniform(0, longest_s)):
            began = time.monotonic()
            docker("stop", container)
            took_s = time.monotonic() - began
        if training.exit_code() == 0:
            assert exists(f"s3://a-bucket/models/classic-run-{run}.mar")
            run, stopped_at = run + 1, 0
            longest_s = min(longest_s, time.monotonic() - started)  # later no run would be left to stop
            continue
        stops += 1
        load, said = os.getloadavg()[0], training.said().strip().splitlines()
        print(
            f"{stops:2}: {training.exit_code()} after {took_s:.1f} s, load {load:.1f}: {[line[:70] for line in said[-3:]]}"
        )
        assert training.exit_code() == 143, training.said()[-4000:]
        assert took_s < WITHIN_S, training.said()[-4000:]
        goes_on = re.findall(r"going on from step-(\d+)", training.said())
        assert not goes_on or int(goes_on[0]) >= stopped_at
        # Ended by the thread, a run saves in silence.
        stopped_at = max([stopped_at, *map(int, re.findall(r"stopped at step (\d+)", training.said()))])
    training.start(f"run-{run}")
    assert training.ends_within(600) and training.exit_code() == 0, training.said()[-4000:]
    assert f"{STEPS} steps" in training.said() and exists(f"s3://a-bucket/models/classic-run-{run}.mar")
