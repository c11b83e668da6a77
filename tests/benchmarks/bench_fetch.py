"""Fetching beside `rclone copy` of the same files from the same server: python -m pytest -s tests/benchmarks/bench_fetch.py

The times of both go up and down together with the machine, so they take turns and their ratio is told.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.storage import no_progress
from training.local_s3 import S3Server, serve_s3
from training.push import push

# MUSDB18-HQ is 750 files of 30 MB. Make the second (4, 1 << 30) for a few of 1 GB.
MANY_SMALL, FEW_LARGE = (64, 4 << 20), (4, 96 << 20)
ROUNDS = 3
STEMS = ("drums", "bass", "other", "vocals")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server with each set of files below a prefix of its own; each set four times as large once more."""
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "b").mkdir()
    with serve_s3(folder) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        sets = {"small": MANY_SMALL, "large": FEW_LARGE, "one": (4, 16 << 20), "four": (16, 16 << 20)}
        for name, (files, size_bytes) in sets.items():
            write_songs(folder / "songs" / name, files, size_bytes)
            push(str(folder / "songs" / name), f"s3://b/{name}", no_progress)
        yield server


def write_songs(root: Path, files: int, size_bytes: int) -> None:
    """Noise in the layout of songs, four files each."""
    for number in range(files):
        path = root / "train" / f"A - {number // 4}" / f"{STEMS[number % 4]}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in range(0, size_bytes, 1 << 20):
                file.write(random.Random(f"{path.name} {number} {block}").randbytes(min(1 << 20, size_bytes - block)))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


FETCH = """
import re, sys, time
from pathlib import Path
from training.data_set import SPLITS, copy_dataset
started = time.perf_counter()
copy_dataset(sys.argv[1], Path(sys.argv[2]), SPLITS)
print(time.perf_counter() - started)
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


def fetch(store: S3Server, name: str, folder: Path) -> tuple[float, int]:
    """Fetch a set in a process of its own: the seconds after its start, and the peak of its memory in bytes."""
    command = [sys.executable, "-c", FETCH, f"s3://b/{name}", str(folder)]
    environ = {**os.environ, **store.environment}
    done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, text=True)
    took_s, peak_kb = done.stdout.split()
    return float(took_s), int(peak_kb) * 1024


def rclone_copy(store: S3Server, name: str, folder: Path) -> None:
    remote = f":s3,provider=Rclone,env_auth=true,endpoint='{store.endpoint}':b/{name}/train"
    command = [str(Path(sys.executable).with_name("rclone")), "copy", "--config", "", remote, str(folder / "train")]
    subprocess.run(command, env={**os.environ, **store.environment}, check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["small", "large"])
def test_fetching_beside_rclone(name: str, store: S3Server, tmp_path: Path) -> None:
    files, size_bytes = MANY_SMALL if name == "small" else FEW_LARGE
    ours, theirs, again = [], [], []
    for turn in range(ROUNDS):
        theirs.append(seconds(lambda: rclone_copy(store, name, tmp_path / "rclone")))
        ours.append(fetch(store, name, tmp_path / "fetch")[0])
        again.append(fetch(store, name, tmp_path / "fetch")[0])
        shutil.rmtree(tmp_path / "rclone")
        if turn < ROUNDS - 1:
            shutil.rmtree(tmp_path / "fetch")
    ratio = statistics.median(theirs) / statistics.median(ours)
    rate = files * size_bytes / statistics.median(ours) / 1e6
    print(
        f"\n{files} files of {size_bytes / 1e6:.0f} MB: {ratio:.2f} times the rate of rclone copy ({rate:.0f} MB/s), "
        f"a second run {100 * statistics.median(again) / statistics.median(ours):.1f} % of the time"
    )
    assert len(list((tmp_path / "fetch").rglob("*.wav"))) == files


def test_memory_of_a_small_and_a_four_times_larger_set(store: S3Server, tmp_path: Path) -> None:
    small, large = fetch(store, "one", tmp_path / "one")[1], fetch(store, "four", tmp_path / "four")[1]
    print(f"\npeak memory {small / 1e6:.0f} MB for 64 MB of songs, {large / 1e6:.0f} MB for 256 MB")
    assert large < small + 20e6
