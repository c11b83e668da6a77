"""Fetching while everything goes wrong: a file has its name only when it is right, and the next run ends well."""

import multiprocessing
import random
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
from serving.storage import retries, s3
from serving.storage.progress import no_progress
from serving.storage.storage import delete, store_file
from tests.bad_network import BadNetwork, Fault, Request
from tests.data_sets import write_data_set
from training.data.data_set import SPLITS, copy_dataset
from training.data.push import push
from training.demo.local_s3 import S3Server, free_port, serve_s3, wait_for
from training.errors import DataError
from training.transfer import arrivals

pytestmark = pytest.mark.slow

CUT_BYTES = 5_000  # of files of 17,684
DATA = "s3://a-bucket/songs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses too short to notice."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "PATIENCE_S", 0.5)
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
    """The proxy between this test and the bucket."""
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


def files_of(requests: list[Request]) -> list[str]:
    """The names of the stems that were asked for."""
    return [request.path.removeprefix("/a-bucket/songs/") for request in requests if request.path.endswith(".wav")]


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
    assert len(files_of(network.requests)) > len(contents(songs))


def test_a_connection_that_is_always_cut_still_gets_on(songs: Path, network: BadNetwork, tmp_path: Path) -> None:
    network.fault = every(1, Fault(cut_bytes=CUT_BYTES))
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)
    assert network.sent_bytes < 1.2 * sum(map(len, contents(songs).values())), "what had come was fetched again"


def test_a_silent_connection_is_left(
    songs: Path, network: BadNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "CONNECTION", s3.CONNECTION.merge(Config(read_timeout=0.3)))
    network.fault = every(5, Fault(silence_s=2))
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)


def test_a_store_that_stays_away_is_named_and_what_came_is_not_fetched_again(
    songs: Path, network: BadNetwork, tmp_path: Path
) -> None:
    count = iter(range(1_000_000))
    network.fault = lambda request: (
        Fault(status=503, code="SlowDown") if request.path.endswith(".wav") and next(count) >= 5 else None
    )
    with pytest.raises(
        StorageError, match=r"the store of s3://a-bucket/songs/.*\.wav is overloaded .*: try again later"
    ):
        fetch_all(tmp_path / "to")
    arrived = contents(tmp_path / "to")
    assert len(arrived) == 5 and arrived.items() < contents(songs).items()

    network.requests.clear()
    network.fault = lambda _: None
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)
    assert sorted(files_of(network.requests)) == sorted(contents(songs).keys() - arrived.keys())


def some_bytes_came(folder: Path) -> bool:
    try:
        return any(file.stat().st_size for file in folder.glob("*"))
    except FileNotFoundError:  # it came whole in between
        return True


def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    songs: Path, store: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PATIENCE_S", 30)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.2)
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
        while not some_bytes_came(tmp_path / "to" / ".fetch"):
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

    def change(request: Request) -> Fault | None:
        if not request.path.endswith(name) or changed.is_set():
            return None
        if request.range.startswith("bytes=0-"):
            return Fault(cut_bytes=CUT_BYTES)
        changed.set()  # the rest is asked for
        store_file(other, f"{url}/{name}")
        return None

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


def test_what_a_kill_left_on_the_way_is_not_taken_for_the_file(songs: Path, tmp_path: Path) -> None:
    (tmp_path / "to" / ".fetch").mkdir(parents=True)
    for name, content in contents(songs).items():
        arrivals.Arrivals(tmp_path / "to").way_in(name).write_bytes(bytes(len(content) + 7))
    fetch_all(tmp_path / "to")
    assert contents(tmp_path / "to") == contents(songs)


def test_an_object_that_is_shorter_than_listed_is_never_taken_for_whole(
    songs: Path, network: BadNetwork, tmp_path: Path
) -> None:
    network.fault = lambda request: (
        Fault(cut_bytes=100 if "bytes=0-" in request.range else 0) if request.path.endswith("A - 0/drums.wav") else None
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
    assert [request.path for request in network.requests] == ["/a-bucket/songs/manifest.json"]
    (tmp_path / "to/train/A - 0/bass.wav").chmod(0o600)
    (tmp_path / "to/train/A - 0/bass.wav").write_bytes(b"somebody else's")
    fetch_all(tmp_path / "to")
    assert (tmp_path / "to/train/A - 0/bass.wav").read_bytes() == (songs / "train/A - 0/bass.wav").read_bytes()


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
    assert files_of(network.requests) == [], told
    assert songs.exists()


def test_a_full_disk_is_named_and_goes_on_when_there_is_room(songs: Path, tmp_path: Path) -> None:
    """The kernel refuses to let a file grow beyond a limit, as a full disk would."""
    code = f"""
import resource, signal, sys
from pathlib import Path
from training.errors import DataError
from training.data.data_set import SPLITS, copy_dataset
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
        if files_of([request]):
            second_waits.wait(60)

    network.fault = hold
    code = f"""
import sys
from pathlib import Path
from training.data.data_set import SPLITS, copy_dataset
copy_dataset({DATA!r}, Path(sys.argv[1]), SPLITS)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "to")]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not files_of(network.requests):
        time.sleep(0.01)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    said = second.stderr.readline()
    second_waits.set()
    assert (first.wait(), second.wait()) == (0, 0)
    assert contents(tmp_path / "to") == contents(songs)
    assert sorted(files_of(network.requests)) == sorted(contents(songs))
    assert "is being filled already: waiting until that is done" in said


def test_kills_at_random_moments_lose_nothing(
    songs: Path, network: BadNetwork, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    """After each kill the files are right, and none that was here is asked for again."""
    network.bytes_per_s = 150_000
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    folder, completed = tmp_path / "to-0", 0
    for _ in range(times(6, 50)):
        arrived = contents(folder)
        network.requests.clear()
        process = context.Process(target=fetch_all, args=[folder])
        process.start()
        process.join(chance.uniform(0.05, 0.7))
        ended = process.exitcode == 0
        if process.is_alive():
            process.kill()
        process.join()
        assert contents(folder).items() <= contents(songs).items()
        assert not arrived.keys() & set(files_of(network.requests))
        if ended:
            assert contents(folder) == contents(songs)
            completed += 1
            folder = tmp_path / f"to-{completed}"
    network.bytes_per_s = float("inf")
    fetch_all(folder)
    assert contents(folder) == contents(songs)
