"""A catalogue over a real S3 server and a real Ray: done is a fact in the bucket, whatever is killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np
import psutil
import pytest
import soundfile
import torch

from serving.catalogue.task import tasks
from serving.model.archive import write_archive
from serving.model.networks import build
from serving.storage.storage import list_files
from tests.torchserve import SPEC
from training.demo.local_s3 import serve_s3

pytest.importorskip("ray", reason="no Ray: pip install 'stemwright[catalogue]'")
pytestmark = pytest.mark.slow

RATE_HZ = 8_000
SONGS = "s3://stemwright/songs"


class Amounts(TypedDict):
    """Songs, those of them that are no audio, and their length."""

    count: int
    broken: int
    seconds: float


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The folder behind the store, with the songs of both tests: rclone does not see what is changed behind it."""
    folder = tmp_path_factory.mktemp("buckets")
    write_songs(folder / "stemwright" / "songs", count=6, broken=1, seconds=1.0)
    write_songs(folder / "stemwright" / "more", **amounts(request.config.getoption("--soak")))
    return folder


def amounts(soak: bool) -> Amounts:
    """The songs of the test of kills."""
    return {"count": 200, "broken": 20, "seconds": 8} if soak else {"count": 8, "broken": 2, "seconds": 2}


@pytest.fixture(scope="module")
def environment(buckets: Path) -> Iterator[dict[str, str]]:
    """A store, and Ray with two workers that know it."""
    ray = str(Path(sys.executable).with_name("ray"))
    with serve_s3(buckets) as s3:
        environment = {
            **os.environ,
            **s3.environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "STEMWRIGHT_ENGINE": os.environ["STEMWRIGHT_ENGINE"],
        }
        start = "start --head --node-ip-address=127.0.0.1 --port=6399 --include-dashboard=false --num-cpus=2"
        subprocess.run(
            [ray, *start.split(), "--object-store-memory=200000000"], env=environment, check=True, capture_output=True
        )
        yield {**environment, "RAY_ADDRESS": "auto"}
        subprocess.run([ray, "stop", "--force"], env=environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.mar"
    torch.manual_seed(0)
    write_archive(path, SPEC, build(SPEC), {})
    return path


def write_songs(folder: Path, count: int, broken: int, seconds: float) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        audio = 0.1 * generator.standard_normal((int(seconds * RATE_HZ), 2))
        path = folder / f"{'ab'[number % 2]}" / f"Song {number}.{('flac', 'wav')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < broken:
            path.write_bytes(b"no audio at all")
        else:
            soundfile.write(path, audio, RATE_HZ)


def command(model: Path, to: str, *options: str, songs: str = SONGS) -> list[str]:
    return [sys.executable, "-m", "serving", "catalogue", songs, "--to", to, "--model", str(model), *options]


def run(environment: dict[str, str], model: Path, to: str, *options: str, songs: str = SONGS) -> dict[str, float]:
    """The summary that a whole run prints."""
    done = subprocess.run(command(model, to, *options, songs=songs), env=environment, capture_output=True, text=True)
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


def test_stems_are_those_of_separate_and_a_second_run_finds_them(
    buckets: Path, environment: dict[str, str], model: Path, tmp_path: Path
) -> None:
    to = "s3://stemwright/stems"
    summary = run(environment, model, to, "--price-per-hour", "2")
    assert (summary["done"], summary["skipped"], summary["failed"]) == (5, 0, 1)
    assert summary["price_of_1000_songs"] == pytest.approx(2 * 1000 * summary["hours"] / 5, rel=0.1)
    (failed,) = (line for line in journal(buckets, to) if line.get("state") == "failed")
    assert str(failed["song"]).endswith("a/Song 0.flac") and "audio" in str(failed["message"])

    local = [sys.executable, "-m", "serving", "separate", str(buckets / "stemwright" / "songs"), "--model", str(model)]
    subprocess.run([*local, "--out", str(tmp_path)], env=environment, capture_output=True)
    found = stored(buckets, to)
    for song in (f"{'ab'[n % 2]}/Song {n}.{('flac', 'wav')[n % 2]}" for n in range(1, 6)):
        for stem in ("vocals.wav", "accompaniment.wav"):
            assert found[f"{song}/{stem}"] == (tmp_path / Path(song).with_suffix("") / stem).read_bytes()

    again = run(environment, model, to)
    assert (again["done"], again["skipped"], again["failed"]) == (0, 5, 1)
    assert stored(buckets, to) == found

    other = run(environment, model, to, "--stems", "vocals", "--format", "flac")
    assert other["done"] == 5
    names = {Path(name).name for name in stored(buckets, to)}
    assert names == {"vocals.flac", "stems.json"}, "stems of the former request are left"


def test_what_is_killed_is_done_by_the_next_run(
    buckets: Path, environment: dict[str, str], model: Path, times: Callable[[int, int], int]
) -> None:
    """Workers and the whole command die at random moments."""
    chance, to, songs = random.Random(0), "s3://stemwright/killed", "s3://stemwright/more"
    whole, broken = times(8, 200), times(2, 20)
    process = subprocess.Popen(
        command(model, to, songs=songs), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    for _ in range(times(1, 10)):
        kill_a_worker(chance, process)
    time.sleep(chance.uniform(0, 2))
    process.send_signal(chance.choice((signal.SIGKILL, signal.SIGTERM)))
    process.communicate()
    assert_whole(buckets, to)

    summary = run(environment, model, to, songs=songs)
    assert summary["done"] + summary["skipped"] == whole - broken, journal(buckets, to)
    assert summary["failed"] == broken
    assert_whole(buckets, to)
    assert len([name for name in stored(buckets, to) if name.endswith("stems.json")]) == whole - broken


def kill_a_worker(chance: random.Random, driver: "subprocess.Popen[bytes]") -> None:
    """End one of Ray's workers at once; return without, if the driver ends before one appears."""
    for _ in range(600):
        workers = [p for p in psutil.process_iter(["cmdline"]) if "MapWorker" in " ".join(p.info["cmdline"] or [])]
        if workers or driver.poll() is not None:
            break
        time.sleep(0.1)
    for worker in chance.sample(workers, min(1, len(workers))):
        time.sleep(chance.uniform(0, 1))
        worker.kill()


def assert_whole(buckets: Path, to: str) -> None:
    """Every fact sheet is true: its files are there, of the size that it says."""
    folder = buckets / to.removeprefix("s3://")
    for sheet in folder.rglob("stems.json"):
        for file in json.loads(sheet.read_text())["files"].values():
            assert (sheet.parent / file["name"]).stat().st_size == file["size_bytes"]


def test_songs_below_the_target_are_no_songs(tmp_path: Path) -> None:
    for name in ("a.flac", "b.txt", ".hidden.wav", "stems/a.flac/vocals.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [task.out for task in tasks(str(tmp_path), f"{tmp_path}/stems")] == [f"{tmp_path}/stems/a.flac"]
    assert len(list_files(str(tmp_path))) == 4
