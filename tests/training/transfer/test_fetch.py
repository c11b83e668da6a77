"""Fetching while everything goes wrong: a file has its name only when it is right, and the next run ends well."""

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.config import Config

from serving.errors import StorageError
from serving.storage.storage import delete, no_progress, store_file
from tests.bad_network import BadNetwork, Fault, Request
from tests.data_sets import write_data_set
from training.data.data_set import SPLITS, copy_dataset
from training.data.push import push
from training.demo.local_s3 import S3Server, free_port, serve_s3, wait_for
from training.errors import DataError
from training.transfer import arrivals, bucket, fetch

pytestmark = pytest.mark.slow

PART_BYTES = 8_192  # of files of 17,684
DATA = "s3://a-bucket/songs"


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few KB, so that small songs have many; pauses too short to notice."""
    monkeypatch.setattr(fetch, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(bucket, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(bucket, "PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "a-bucket").mkdir()
    with serve_s3(folder) as server:
        yield server


@pytest.fixture(scope="module")
def songs(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of songs that is in the bucket, too."""
    root = write_data_set(tmp_path_factory.mktemp("songs"), train=2, test=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        push(str(root), DATA, no_progress)
    return root


@pytest.fixture(autouse=True)
def connected(clean_environment: None, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def network(connected: None, songs: Path, store: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[BadNetwork]:  # noqa: ARG001
    """What is between this test and the bucket."""
    network = BadNetwork(store.endpoint)
    with network.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield network


def contents(folder: Path) -> dict[str, bytes]:
    """The stems, and whatever else has a name in the folder, but not the mixtures, which do not travel."""
    files = [file for split in ("train", "test") for file in (folder / split).rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.name != "mixture.wav"}


def fetch_all(folder: Path) -> None:
    copy_dataset(DATA, folder, SPLITS)


def parts_of(requests: list[Request]) -> list[tuple[str, str]]:
    return [(request.path, request.range) for request in requests if request.path.endswith(".wav")]


def count_of_parts(songs: Path) -> int:
    return sum(-(-len(content) // PART_BYTES) for content in contents(songs).values())


def every(nth: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """The fault, on each n-th request for a song."""
    count = iter(range(1, 1_000_000))
    return lambda request: fault if request.path.endswith(".wav") and next(count) % nth == 0 else None


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, code="InternalError"),
        Fault(status=503, code="SlowDown"),
        Fault(cut_bytes=0),
        Fault(cut_bytes=1_000),
    ],
    ids=lambda fault: f"{fault.status or fault.cut_bytes}",
)
def test_what_passes_is_waited_for(fault: Fault, songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    network.fault = every(3, fault)
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)
    assert len(parts_of(network.requests)) > count_of_parts(songs)


def test_a_connection_that_is_always_cut_still_gets_on(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    network.fault = every(1, Fault(cut_bytes=5_000))
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)
    assert network.sent_bytes < 1.2 * sum(map(len, contents(songs).values())), "what had come was fetched again"


def test_a_silent_connection_is_left(
    songs: Path, network: BadNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.storage import storage

    monkeypatch.setattr(storage, "CONNECTION", storage.CONNECTION.merge(Config(read_timeout=0.3)))
    network.fault = every(15, Fault(silence_s=2))
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)


def test_a_store_that_stays_away_is_named_and_what_came_is_not_fetched_again(
    songs: Path, network: BadNetwork, tmp_path: Path
) -> None:
    count = iter(range(1_000_000))
    network.fault = lambda request: (
        Fault(status=503, code="SlowDown") if request.path.endswith(".wav") and next(count) >= 20 else None
    )
    with pytest.raises(
        StorageError, match=r"the store of s3://a-bucket/songs/.*\.wav is overloaded .*: try again later"
    ):
        fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to").items() < contents(songs).items()
    first = parts_of(network.requests)[:20]

    network.requests.clear()
    network.fault = lambda _: None
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)
    assert not set(first) & set(parts_of(network.requests))
    assert len(parts_of(network.requests)) == count_of_parts(songs) - 20
    assert not list((tmp_path / "to" / ".fetch").glob("*.parts"))


def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    songs: Path, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "PATIENCE_S", 30)
    monkeypatch.setattr(bucket, "LONGEST_PAUSE_S", 0.2)
    port = free_port()

    def start() -> subprocess.Popen[str]:
        rclone = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
        rclone += ["--config", "", "--bwlimit", "100k" if not (tmp_path / "to").exists() else "off", str(store.folder)]
        process = subprocess.Popen(rclone, stderr=subprocess.DEVNULL, text=True)
        wait_for(port, process)
        return process

    server = start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        fetching = threading.Thread(target=fetch_all, args=[tmp_path / "to"])
        fetching.start()
        while not [file for file in (tmp_path / "to").rglob("*.parts") if parts_noted(file)]:
            time.sleep(0.01)
        server.kill()
        server.wait()
        time.sleep(0.3)
        assert fetching.is_alive() and contents(tmp_path / "to") != contents(songs)
        server = start()
        fetching.join(timeout=30)
        assert contents(tmp_path / "to") == contents(songs)
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("with_manifest", [True, False])
def test_an_object_that_changed_after_it_was_listed_is_named(
    with_manifest: bool, songs: Path, network: BadNetwork, tmp_path: Path
) -> None:
    url = f"s3://a-bucket/changing-{with_manifest}"
    push(str(songs), url, no_progress)
    if not with_manifest:
        delete(f"{url}/manifest.json")
    other, name = tmp_path / "other.wav", "train/A - 1/bass.wav"
    other.write_bytes((songs / name).read_bytes()[::-1])
    changed = threading.Event()

    def change(request: Request) -> None:
        second = request.path.endswith(name) and request.range == f"bytes={PART_BYTES}-{2 * PART_BYTES - 1}"
        if second and not changed.is_set():
            changed.set()
            store_file(other, f"{url}/{name}")

    network.fault = change
    with pytest.raises(StorageError, match=rf"{url}/{name} changed while it was fetched"):
        copy_dataset(url, tmp_path / "to", SPLITS)
    assert contents(tmp_path / "to").items() < contents(songs).items()

    expected = contents(songs)
    if with_manifest:
        with pytest.raises(StorageError, match=r"bass\.wav is not what its manifest says .*: push it again"):
            copy_dataset(url, tmp_path / "to", SPLITS)
        push(str(songs), url, no_progress)
    else:
        expected[name] = other.read_bytes()
    copy_dataset(url, tmp_path / "to", SPLITS)
    assert contents(tmp_path / "to") == expected


def test_wrong_bytes_are_noticed_by_their_hash(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    network.fault = lambda request: Fault(flip=True) if request.path.endswith("A - 0/vocals.wav") else None
    with pytest.raises(StorageError, match=r"A - 0/vocals\.wav is not what its manifest says \(its SHA-256 is"):
        fetch_all(tmp_path / "to")
    assert "train/A - 0/vocals.wav" not in contents(tmp_path / "to")
    assert contents(tmp_path / "to").items() < contents(songs).items()
    network.fault = lambda _: None
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)


def test_bytes_that_rotted_on_the_way_in_are_fetched_again(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    """As after a power cut, which may keep the journal and lose what it speaks of."""
    url = "s3://a-bucket/without"
    push(str(songs), url, no_progress)
    delete(f"{url}/manifest.json")
    count = iter(range(1_000_000))
    network.fault = lambda request: Fault(status=503) if request.path.endswith(".wav") and next(count) >= 15 else None
    with pytest.raises(StorageError):
        copy_dataset(url, tmp_path / "to", SPLITS)
    for journal in (tmp_path / "to" / ".fetch").glob("*.parts"):
        way_in = journal.with_suffix("")
        way_in.write_bytes(bytes(way_in.stat().st_size))
    network.fault = lambda _: None
    copy_dataset(url, tmp_path / "to", SPLITS)
    assert contents(tmp_path / "to") == contents(songs)


def test_an_object_that_is_shorter_than_listed_is_never_taken_for_whole(
    songs: Path, network: BadNetwork, tmp_path: Path
) -> None:
    network.fault = lambda request: (
        Fault(cut_bytes=100)
        if request.path.endswith("A - 0/drums.wav") and "bytes=8192-" in request.range
        else Fault(cut_bytes=0)
        if request.path.endswith("A - 0/drums.wav") and "bytes=8292-" in request.range
        else None
    )
    with pytest.raises(StorageError, match=r"A - 0/drums\.wav cannot be reached"):
        fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to").items() < contents(songs).items()


def test_a_complete_folder_is_not_read_again(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    fetch_all(tmp_path / "to")
    network.requests.clear()
    for file in (tmp_path / "to").rglob("*.wav"):
        file.chmod(0)
    fetch_all(tmp_path / "to")
    assert parts_of(network.requests) == []
    assert [request.path for request in network.requests] == ["/a-bucket/songs/manifest.json"]
    (tmp_path / "to/train/A - 0/bass.wav").chmod(0o600)
    (tmp_path / "to/train/A - 0/bass.wav").write_bytes(b"somebody else's")
    fetch_all(tmp_path / "to")
    assert (tmp_path / "to/train/A - 0/bass.wav").read_bytes() == (songs / "train/A - 0/bass.wav").read_bytes()


def test_large_files_come_a_few_at_a_time(
    songs: Path, network: BadNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that write to one file wait for each other; and the first files are to be complete early."""
    monkeypatch.setattr(fetch, "CONNECTIONS", 1)
    fetch_all(tmp_path / "to")
    asked = [path for path, _ in parts_of(network.requests)]
    assert len(asked) == count_of_parts(songs)
    assert [len(set(asked[start : start + 4])) for start in range(0, 12, 4)] == [4, 4, 4], "parts of one file in a row"
    assert set(asked[:12]).isdisjoint(asked[12:]), "a fifth file began before the first four were complete"


def test_one_split_brings_its_songs_alone(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    copy_dataset(DATA, tmp_path / "to", ["test"])
    assert contents(tmp_path / "to") == {name: c for name, c in contents(songs).items() if name.startswith("test/")}
    assert {request.path.split("/")[3] for request in network.requests if "songs/t" in request.path} == {"test"}


def test_progress_counts_what_is_missing(songs: Path, network: BadNetwork, tmp_path: Path) -> None:  # noqa: ARG001
    seen: list[tuple[str, int, int]] = []
    copy_dataset(DATA, tmp_path / "to", ["test"])
    copy_dataset(DATA, tmp_path / "to", SPLITS, lambda *news: seen.append(news))
    train_bytes = sum(len(content) for name, content in contents(songs).items() if name.startswith("train/"))
    assert seen[-1] == ("fetch", train_bytes, train_bytes)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_strangers_in_the_folder_are_refused(songs: Path, tmp_path: Path) -> None:  # noqa: ARG001
    write_data_set(tmp_path / "to", train=5, test=1)
    with pytest.raises(DataError, match=r"to holds train/A - 2/bass\.wav, which s3://a-bucket/songs does not: name a"):
        fetch_all(tmp_path / "to")


def test_too_little_room_is_said_before_the_first_byte(
    songs: Path, network: BadNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(
        DataError, match=r"to needs room for .* GB more, and 0\.00 GB are free: free some, or name"
    ) as told:
        fetch_all(tmp_path / "to")
    assert parts_of(network.requests) == [], told
    assert songs.exists()


def test_a_full_disk_is_named_and_goes_on_when_there_is_room(songs: Path, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond a limit, as a full disk would."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from training.transfer import fetch
from training.errors import DataError
from training.data.data_set import SPLITS, copy_dataset
fetch.PART_BYTES = {PART_BYTES}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    copy_dataset({DATA!r}, Path(sys.argv[1]), SPLITS)
except DataError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "to")], capture_output=True, text=True)
    assert "to has no room left: free some and run this again" in done.stderr and done.returncode == 1
    assert contents(tmp_path / "to").items() <= contents(songs).items()
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)


def test_two_processes_fetch_once(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    second_waits = threading.Event()

    def hold(request: Request) -> None:
        if parts_of([request]):
            second_waits.wait(60)

    network.fault = hold
    code = f"""
import sys
from pathlib import Path
from training.transfer import fetch
from training.data.data_set import SPLITS, copy_dataset
fetch.PART_BYTES = {PART_BYTES}
copy_dataset({DATA!r}, Path(sys.argv[1]), SPLITS)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "to")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not parts_of(network.requests):
        time.sleep(0.01)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = second.stderr.readline()
    second_waits.set()
    assert (first.wait(), second.wait()) == (0, 0)
    assert contents(tmp_path / "to") == contents(songs)
    assert len(parts_of(network.requests)) == count_of_parts(songs)
    assert "is being filled already: waiting until that is done" in said


def fetch_slowly(folder: Path) -> None:
    fetch.PART_BYTES = PART_BYTES
    fetch_all(folder)


def test_kills_at_random_moments_lose_nothing(
    songs: Path, network: BadNetwork, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    """What is here after each kill is right, and parts that had arrived are never asked for again."""
    network.bytes_per_s = 150_000
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    folder, completed = tmp_path / "to-0", 0
    for _ in range(times(6, 50)):
        arrived = {file: parts_noted(file) for file in (folder / ".fetch").glob("*.parts")}
        network.requests.clear()
        process = context.Process(target=fetch_slowly, args=[folder])
        process.start()
        process.join(chance.uniform(0.05, 0.7))
        ended = process.exitcode == 0
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert contents(folder).items() <= contents(songs).items()
        asked = parts_of(network.requests)
        for name in contents(songs):
            way_in = folder / ".fetch" / arrivals.Arrivals(folder).way_in(name).name
            for part in arrived.get(way_in.with_suffix(".parts"), ()):
                assert not [1 for path, wanted in asked if path.endswith(name) and f"={part * PART_BYTES}-" in wanted]
        if ended:
            assert contents(folder) == contents(songs)
            completed += 1
            folder = tmp_path / f"to-{completed}"
    network.bytes_per_s = float("inf")
    fetch_all(folder)
    assert contents(folder) == contents(songs)


def parts_noted(journal: Path) -> list[int]:
    return [int(line[1]) for line in re.finditer("^([0-9]+) [0-9a-f]{8}$", journal.read_text(), re.MULTILINE)]
