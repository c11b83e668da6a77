"""Fetching beside `rclone copy`, and beside boto3's transfer manager: python -m pytest -s tests/benchmarks/bench_fetch.py

All fetch the same files from the same server. They are whole processes with 16 transfers each, and begin with an empty folder
and an idle disk: writes that are still on their way would slow the next one. The order changes by the round. The figure is
the median of the rounds' ratios, because within a round the machine changes least.

It takes 40 GB of disk below --basetemp and gives them back. `-k small`, `-k large`, `-k mixed`, `-k whole` and `-k memory`
run one part.
"""

import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from serving.storage.progress import no_progress
from serving.storage.s3 import CONNECTIONS
from serving.storage.storage import list_files
from training.data.push import push
from training.demo.local_s3 import S3Server, serve_s3

# The bytes of every file; the last is the stems of MUSDB18-HQ.
SETS = {
    "small": [4 << 20] * 256,
    "large": [1 << 30] * 4,
    "mixed": [4 << 20] * 256 + [1 << 30] * 16,
    "whole": [30_000_000] * 600,
}
ROUNDS = {"small": 7, "large": 5, "mixed": 2, "whole": 2}
REPEATS = 5
STEMS = ("drums", "bass", "other", "vocals")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with an empty bucket."""
    (tmp_path / "buckets" / "b").mkdir(parents=True)
    try:
        with serve_s3(tmp_path / "buckets") as server:
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            yield server
    finally:
        shutil.rmtree(tmp_path)


def add_songs(store: S3Server, name: str, sizes: Sequence[int]) -> None:
    """Noise in the layout of songs, four files each, with a manifest, below a prefix of its own."""
    root = store.folder / "b" / name
    for number, size_bytes in enumerate(sizes):
        path = root / "train" / f"A - {number // 4}" / f"{STEMS[number % 4]}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in range(0, size_bytes, 1 << 20):
                noise = random.Random(f"{number} {block}").randbytes(min(1 << 20, size_bytes - block))
                file.write(noise)
    push(str(root), f"s3://b/{name}", no_progress)  # they are there already: it adds the manifest
    list_files(f"s3://b/{name}")  # the server reads every file once for its ETag, and then remembers it


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


FETCH = """
import re, sys
from pathlib import Path
from training.__main__ import main
code = main(["fetch", sys.argv[1], "--to", sys.argv[2]])
print(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def fetch(name: str, folder: Path) -> int:
    """`python -m training fetch`; the peak of its memory in bytes."""
    command = [sys.executable, "-c", FETCH, f"s3://b/{name}", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(done.stdout.split()[-1]) * 1024


MANAGER = """
import hashlib, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from s3transfer.subscribers import BaseSubscriber
from serving.storage.s3 import connect
from serving.storage.storage import list_files

class Known(BaseSubscriber):
    def __init__(self, file):
        self.file = file
    def on_queued(self, future, **_):
        future.meta.provide_transfer_size(self.file.size_bytes)
        future.meta.provide_object_etag(self.file.etag)

def verify(path):
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())

url, to = sys.argv[1], Path(sys.argv[2])
manager = create_transfer_manager(connect(), TransferConfig(max_concurrency=16, preferred_transfer_client="classic"))
coming = []
for file in list_files(url):
    if file.name.endswith(".wav"):
        path = to / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        key = file.url.removeprefix("s3://b/")
        coming.append((path, manager.download("b", key, str(path), subscribers=[Known(file)])))
with ThreadPoolExecutor(4) as pool:
    for path, download in coming:
        download.result()
        pool.submit(verify, path)
manager.shutdown()
"""


def manager_copy(name: str, folder: Path) -> None:
    """boto3's transfer manager, with a hash of each object after it."""
    subprocess.run([sys.executable, "-c", MANAGER, f"s3://b/{name}", str(folder)], check=True)


def rclone_copy(store: S3Server, name: str, folder: Path) -> None:
    remote = f":s3,provider=Rclone,env_auth=true,endpoint='{store.endpoint}':b/{name}/train"
    command = [str(Path(sys.executable).with_name("rclone")), "copy", "--config", "", "--transfers", str(CONNECTIONS)]
    subprocess.run([*command, remote, str(folder / "train")], check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("name", SETS)
def test_fetching_beside_rclone(name: str, store: S3Server, tmp_path: Path) -> None:
    sizes = SETS[name]
    add_songs(store, name, sizes)
    folder = tmp_path / "to"
    turns: list[tuple[str, Callable[[], object]]] = [
        ("rclone", lambda: rclone_copy(store, name, folder)),
        ("fetch", lambda: fetch(name, folder)),
        ("manager", lambda: manager_copy(name, folder)),
    ]
    took_s: dict[str, list[float]] = {"rclone": [], "fetch": [], "manager": [], "again": []}
    for _ in range(ROUNDS[name]):
        for rival, work in turns:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            took_s[rival].append(seconds(work))
            assert sum(file.stat().st_size for file in folder.rglob("*.wav")) == sum(sizes)
            if rival == "fetch":
                took_s["again"] += [seconds(lambda: fetch(name, folder)) for _ in range(REPEATS)]
        turns = [*turns[1:], turns[0]]
    median = {what: statistics.median(times) for what, times in took_s.items()}
    ratio = statistics.median(theirs / ours for theirs, ours in zip(took_s["rclone"], took_s["fetch"], strict=True))
    print(
        f"\n{name}, {len(sizes)} files, {sum(sizes) / 1e9:.1f} GB: {ratio:.2f} times the rate of rclone copy "
        f"({sum(sizes) / median['fetch'] / 1e6:.0f} MB/s), "
        f"a second run {median['again']:.2f} s, {100 * median['again'] / median['fetch']:.2f} % of the time"
    )
    for what, times in took_s.items():
        print(f"  {what}: {' '.join(f'{time_s:.1f}' for time_s in times)} s")


def test_memory_of_a_small_and_a_four_times_larger_set(store: S3Server, tmp_path: Path) -> None:
    add_songs(store, "one", [16 << 20] * 4)
    add_songs(store, "four", [16 << 20] * 16)
    small, large = fetch("one", tmp_path / "one"), fetch("four", tmp_path / "four")
    print(f"\npeak memory {small / 1e6:.0f} MB for 64 MB of songs, {large / 1e6:.0f} MB for 256 MB")
    assert large < small + 20e6
