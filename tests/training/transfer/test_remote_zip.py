"""A zip in a bucket, of which only what is asked for travels."""

import io
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from serving.errors import StorageError
from serving.storage import retries
from serving.storage.progress import no_progress
from serving.storage.storage import find_file, store_file
from tests.bad_network import BadNetwork, Fault
from tests.s3 import bucket_fixture  # noqa: F401
from training.data.data_set import list_dataset
from training.transfer import remote_zip
from training.transfer.remote_zip import RangedFile, opener

pytestmark = pytest.mark.slow

URL = "s3://a-bucket/songs.zip"
STEMS = ("bass", "drums", "mixture", "other", "vocals")
STEM_BYTES = 60_000


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_zip, "TAIL_BYTES", 4_096)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "PATIENCE_S", 0.5)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture
def members() -> dict[str, bytes]:
    names = [f"{split}/{number}/{stem}.wav" for split in ("train", "test") for number in range(4) for stem in STEMS]
    return {name.replace("test/", "test/t"): random.Random(name).randbytes(STEM_BYTES) for name in names}


@pytest.fixture
def network(
    bucket: Path,  # noqa: ARG001
    members: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[BadNetwork]:
    """The way to a zip of `members` in the bucket."""
    with zipfile.ZipFile(tmp_path / "songs.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(f"musdb18hq/{name}", "w", force_zip64=True) as member:
                member.write(content)
    store_file(tmp_path / "songs.zip", URL)
    network = BadNetwork(os.environ["AWS_ENDPOINT_URL"])
    with network.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield network


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for split in ("train", "test") for file in (folder / split).rglob("*.wav")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def stems(members: dict[str, bytes], start: str = "") -> dict[str, bytes]:
    return {name: content for name, content in members.items() if name.startswith(start) and "mixture" not in name}


def bring(folder: Path, *splits: str) -> Path:
    data = list_dataset(URL, folder)
    names = [name for split in splits for song in data.splits[split] for name in data.files[song]]
    data.source.bring(names, data.folder, no_progress, Event())
    return data.folder


def test_only_the_songs_of_a_split_travel(network: BadNetwork, members: dict[str, bytes], tmp_path: Path) -> None:
    folder = bring(tmp_path, "valid")
    (valid,) = {name.split("/")[1] for name in contents(folder)}
    assert contents(folder) == stems(members, f"train/{valid}/")
    assert network.sent_bytes < 4 * STEM_BYTES * 1.02 + 20_000
    bring(tmp_path, "train", "valid", "test")
    assert contents(folder) == stems(members)
    assert network.sent_bytes < 32 * STEM_BYTES * 1.02 + 40_000, "what was here travelled again"


@pytest.mark.parametrize("tail_bytes", [100, 4_096, 10_000_000])
def test_the_directory_may_be_larger_than_the_tail_that_is_read_first(
    tail_bytes: int, network: BadNetwork, members: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_zip, "TAIL_BYTES", tail_bytes)
    assert contents(bring(tmp_path, "test")) == stems(members, "test/")
    assert network.requests


@pytest.mark.parametrize("fault", [Fault(cut_bytes=20_000), Fault(status=503, code="SlowDown")])
def test_a_bad_network_is_overcome(
    fault: Fault, network: BadNetwork, members: dict[str, bytes], tmp_path: Path
) -> None:
    count = iter(range(1_000_000))
    network.fault = lambda _: fault if next(count) % 3 == 1 else None
    assert contents(bring(tmp_path, "train", "valid", "test")) == stems(members)


def test_members_that_arrived_stay_and_the_others_come_later(
    network: BadNetwork, members: dict[str, bytes], tmp_path: Path
) -> None:
    count = iter(range(1_000_000))
    network.fault = lambda _: Fault(status=500, code="InternalError") if next(count) > 12 else None
    with pytest.raises(StorageError, match=r"songs\.zip is overloaded or broken"):
        bring(tmp_path, "train", "valid", "test")
    (folder,) = tmp_path.glob("[0-9a-f]*")
    arrived = contents(folder)
    assert 0 < len(arrived) < len(stems(members)) and arrived.items() < stems(members).items()
    network.fault, network.sent_bytes = lambda _: None, 0
    assert contents(bring(tmp_path, "train", "valid", "test")) == stems(members)
    assert network.sent_bytes < (32 - len(arrived)) * STEM_BYTES * 1.02 + 20_000


def test_a_zip_that_was_replaced_is_noticed(network: BadNetwork, tmp_path: Path) -> None:
    data = list_dataset(URL, tmp_path)
    with zipfile.ZipFile(tmp_path / "songs.zip", "a") as archive:
        archive.writestr("more.txt", "more")
    store_file(tmp_path / "songs.zip", URL)
    with pytest.raises(StorageError, match=r"s3://a-bucket/songs\.zip changed while it was fetched: run this again"):
        data.source.bring(data.files[data.test[0]], data.folder, no_progress, Event())
    assert network.requests and contents(data.folder) == {}


def test_random_reads_are_those_of_the_file_itself(
    network: BadNetwork, tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    stored = find_file(URL)
    assert stored is not None
    content, chance = (tmp_path / "songs.zip").read_bytes(), random.Random(0)
    bounds = [*sorted(chance.sample(range(1, len(content)), 20)), len(content)]
    ranged = RangedFile(stored, content[-4_096:], bounds, Event())
    with opener(stored)(Event()) as again, io.BufferedReader(ranged) as file:
        plain = io.BytesIO(content)
        for _ in range(times(30, 1_000)):
            position, length = chance.choice((0, 1, -1)), chance.randrange(0, 30_000)
            offset = chance.randrange(len(content)) if position == 0 else chance.randrange(50)
            whence = {0: os.SEEK_SET, 1: os.SEEK_CUR, -1: os.SEEK_END}[position]
            offset = -offset if position == -1 else offset
            assert file.seek(offset, whence) == plain.seek(offset, whence) == file.tell()
            assert file.read(length) == plain.read(length)
            again.seek(plain.tell())
            assert again.read(10) == content[plain.tell() :][:10]
    assert network.requests
