"""A catalogue over a real S3 server and a real Ray: done is a fact in the bucket, whatever is killed."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypedDict

import numpy as np
import psutil
import pytest
import soundfile
import torch

from serving.catalogue.task import tasks
from serving.catalogue.worker import Form, Worker
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.storage.storage import list_files
from tests.torchserve import SPEC, wait_for
from training.demo.local_s3 import S3Server, free_port, serve_s3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install 'stemwright[catalogue]'"),
]

RATE_HZ = 8_000
SONGS = "s3://stemwright/songs"


class Amounts(TypedDict):
    """Songs, those of them that are broken, and the shortest and the longest of them."""

    count: int
    broken: int
    seconds: tuple[float, float]


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder behind the store, with the songs of both tests: rclone does not see what is changed behind it."""
    folder = tmp_path_factory.mktemp("buckets")
    write_songs(folder / "stemwright" / "songs", count=6, broken=1, seconds=(1, 1))
    write_songs(folder / "stemwright" / "more", **amounts(request.config.getoption("--soak")))
    return folder


def amounts(soak: bool) -> Amounts:
    """The songs of the test of kills."""
    return {"count": 200, "broken": 20, "seconds": (5, 20)} if soak else {"count": 8, "broken": 2, "seconds": (1, 2)}


@dataclass(frozen=True)
class Cluster:
    """A Ray with two workers, and the environment in which the command finds it and the store."""

    head: psutil.Popen
    environment: dict[str, str]

    def workers(self) -> list[psutil.Process]:
        """The processes that separate songs now."""
        return [child for child in self.head.children(recursive=True) if "MapWorker" in name_of(child)]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return ""


@pytest.fixture(scope="module")
def store(buckets: Path) -> Iterator[S3Server]:
    with serve_s3(buckets) as s3:
        yield s3


@pytest.fixture(scope="module")
def cluster(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    port, log = free_port(), tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as output:
        environment = {
            **os.environ,
            **store.environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
            "STEMWRIGHT_ENGINE": os.environ["STEMWRIGHT_ENGINE"],
        }
        start = f"start --head --block --node-ip-address=127.0.0.1 --port={port} --include-dashboard=false --num-cpus=2"
        ray = [str(Path(sys.executable).with_name("ray")), *start.split(), "--object-store-memory=200000000"]
        head = psutil.Popen(ray, env=environment, stdout=output, stderr=output)
        try:
            wait_for(lambda: "Ray runtime started" in log.read_text(), timeout_s=60)
            yield Cluster(head, {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"})
        finally:
            processes = [*head.children(recursive=True), head]  # asked to end, they take half a minute
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.mar"
    torch.manual_seed(0)
    write_archive(path, SPEC, build(SPEC), {})
    return path


def write_songs(folder: Path, count: int, broken: int, seconds: tuple[float, float]) -> None:
    """Write noise as FLAC and WAV in two folders; the broken ones are text, empty, or half a file."""
    generator = np.random.default_rng(0)
    for number in range(count):
        audio = 0.1 * generator.standard_normal((int(generator.uniform(*seconds) * RATE_HZ), 2))
        path = folder / f"{'ab'[number % 2]}" / f"Song {number}.{('flac', 'wav')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, audio, RATE_HZ)
        nth, is_whole = divmod(number, count // broken)
        if not is_whole:
            whole = path.read_bytes()
            path.write_bytes((b"no audio at all", b"", whole[: len(whole) // 2])[nth % 3])


def command(model: Path, to: str, *options: str, songs: str = SONGS) -> list[str]:
    return [sys.executable, "-m", "serving", "catalogue", songs, "--to", to, "--model", str(model), *options]


def run(cluster: Cluster, model: Path, to: str, *options: str, songs: str = SONGS) -> dict[str, float]:
    """The summary that a whole run prints."""
    done = subprocess.run(
        command(model, to, *options, songs=songs), env=cluster.environment, capture_output=True, text=True
    )
    assert done.returncode in (0, 1) and done.stdout, done.stderr[-3000:]
    summary: dict[str, float] = json.loads(done.stdout)
    return summary


def stored(buckets: Path, to: str) -> dict[str, bytes]:
    """The stems and fact sheets below an address, without the journals."""
    folder = buckets / to.removeprefix("s3://")
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def journal(buckets: Path, to: str) -> list[dict[str, object]]:
    """The lines of the newest journal."""
    newest = max((buckets / to.removeprefix("s3://")).glob("*.jsonl"))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def separated(cluster: Cluster, model: Path, songs: Path, out: Path) -> dict[str, bytes]:
    """The stems that `stemwright separate` makes of a folder, by the names that a catalogue gives them."""
    local = [sys.executable, "-m", "serving", "separate", str(songs), "--model", str(model), "--out", str(out)]
    done = subprocess.run(local, env=cluster.environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-3000:]  # some are broken
    return {
        f"{song.relative_to(songs)}/{stem.name}": stem.read_bytes()
        for song in songs.rglob("Song *")
        for stem in (out / song.relative_to(songs)).with_suffix("").glob("*.wav")
    }


@pytest.mark.long
def test_stems_are_those_of_separate(buckets: Path, cluster: Cluster, model: Path, tmp_path: Path) -> None:
    to = "s3://stemwright/stems"
    summary = run(cluster, model, to, "--price-per-hour", "2")
    assert (summary["done"], summary["skipped"], summary["failed"]) == (5, 0, 1)
    assert summary["price_of_1000_songs"] == pytest.approx(2 * 1000 * summary["hours"] / 5, rel=0.1)
    (failed,) = (line for line in journal(buckets, to) if line.get("state") == "failed")
    assert str(failed["song"]).endswith("a/Song 0.flac") and "audio" in str(failed["message"])
    wanted = separated(cluster, model, buckets / "stemwright" / "songs", tmp_path)
    assert len(wanted) == 10
    assert_are(buckets, to, wanted)


def test_a_song_is_skipped_until_something_else_is_asked_for(
    buckets: Path, store: S3Server, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker by itself: Ray adds nothing to what is done already."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    to = "s3://stemwright/by-a-worker"

    def states(form: Form) -> Counter[str]:
        worker = Worker(model.read_bytes(), form, "cpu", "torch")
        return Counter(worker(task).state for task in tasks(SONGS, to))

    assert states(Form()) == {"done": 5, "failed": 1}
    found = stored(buckets, to)
    assert states(Form()) == {"skipped": 5, "failed": 1}
    assert stored(buckets, to) == found
    assert states(Form("vocals", "flac")) == {"done": 5, "failed": 1}
    names = {Path(name).name for name in stored(buckets, to)}
    assert names == {"vocals.flac", "stems.json"}, "stems of the former request are left"


@pytest.mark.long
def test_what_is_killed_at_random_is_done_by_the_next_run(
    buckets: Path, cluster: Cluster, model: Path, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    """Workers and the whole command die at random moments."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, to, songs = random.Random(seed), "s3://stemwright/killed", "s3://stemwright/more"
    whole, broken = times(8, 200), times(2, 20)
    process = subprocess.Popen(
        command(model, to, songs=songs), env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    killed = 0
    while killed < times(1, 10) and process.poll() is None:
        killed += kill_a_worker(chance, cluster, process, within_s=times(1, 12))
    time.sleep(chance.uniform(0, times(2, 20)))
    sent = chance.choice((signal.SIGKILL, signal.SIGTERM))
    process.send_signal(sent)
    _, said = process.communicate()
    assert process.returncode in (-sent, 128 + sent, 0, 1), said[-3000:]
    assert process.returncode != 128 + signal.SIGTERM or b"the same command goes on" in said
    assert_whole(buckets, to)
    done = len(sheets(buckets, to))
    print(f"after {killed} killed workers {done} of {whole - broken} songs were done when the command was killed")

    summary = run(cluster, model, to, songs=songs)
    assert summary["done"] + summary["skipped"] == whole - broken, journal(buckets, to)
    assert summary["failed"] == broken
    assert_whole(buckets, to)
    assert len(sheets(buckets, to)) == whole - broken
    wanted = separated(cluster, model, buckets / "stemwright" / "more", tmp_path)
    assert len(wanted) == 2 * (whole - broken)
    assert_are(buckets, to, wanted)


@pytest.mark.long
def test_a_cluster_of_before_is_not_asked(model: Path, tmp_path: Path) -> None:
    """Ray notes the last cluster of a machine; where that was killed, the note outlives it."""
    (tmp_path / "songs").mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # Ray's sockets want a short path
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        words = command(model, str(tmp_path / "stems"), songs=str(tmp_path / "songs"))
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "there are no songs below" in done.stderr, done.stderr[-3000:]


def kill_a_worker(chance: random.Random, cluster: Cluster, driver: "subprocess.Popen[bytes]", within_s: float) -> int:
    """End one of Ray's workers at once, at a random moment; gives 0 if they were gone by then."""
    wait_for(lambda: bool(cluster.workers()) or driver.poll() is not None, timeout_s=60)
    time.sleep(chance.uniform(0, within_s))
    workers = cluster.workers()
    for worker in chance.sample(workers, min(1, len(workers))):
        worker.kill()
    return min(1, len(workers))


def sheets(buckets: Path, to: str) -> list[Path]:
    return list((buckets / to.removeprefix("s3://")).rglob("stems.json"))


def assert_whole(buckets: Path, to: str) -> None:
    """Every fact sheet is true: its files are there, of the size that it says."""
    for sheet in sheets(buckets, to):
        for file in json.loads(sheet.read_text())["files"].values():
            assert (sheet.parent / file["name"]).stat().st_size == file["size_bytes"]


def assert_are(buckets: Path, to: str, wanted: dict[str, bytes]) -> None:
    """The store has these stems, and nothing beside them but a fact sheet for each song."""
    found = stored(buckets, to)
    assert found.keys() == wanted.keys() | {f"{name.rpartition('/')[0]}/stems.json" for name in wanted}
    assert [name for name in wanted if found[name] != wanted[name]] == []


LISTING = """
import resource, sys
import psutil
from serving.catalogue.ray_cluster import connected
from serving.catalogue.task import tasks
from serving.catalogue.worker import Form, Worker
with connected(0, "torch") as cluster:
    before = psutil.Process().memory_info().rss
    references, count = cluster.put(tasks("s3://many/songs", "s3://many/stems"))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)
"""


@pytest.mark.long
def test_a_hundred_thousand_keys_are_listed_in_little_memory(
    cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("takes minutes: --soak")
    for number in range(100):
        folder = tmp_path / "many" / "songs" / f"Artist {number}"
        folder.mkdir(parents=True)
        for song in range(1_000):
            (folder / f"Song {song}.flac").touch()
    with serve_s3(tmp_path) as s3:
        environment = {**cluster.environment, **s3.environment}
        done = subprocess.run([sys.executable, "-c", LISTING], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    count, more_bytes = map(int, done.stdout.split())
    print(f"{count} keys, {more_bytes / 1e6:.0f} MB more")
    assert count == 100_000 and more_bytes < 300e6


def test_songs_below_the_target_are_no_songs(tmp_path: Path) -> None:
    for name in ("a.flac", "b.txt", ".hidden.wav", "stems/a.flac/vocals.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [task.out for task in tasks(str(tmp_path), f"{tmp_path}/stems")] == [f"{tmp_path}/stems/a.flac"]
    assert len(list_files(str(tmp_path))) == 4
