"""Data sets on their way into a bucket."""

import hashlib
import json
import math
import multiprocessing
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.errors import StorageError
from serving.storage import retries
from serving.storage.progress import no_progress
from serving.storage.storage import delete, exists, fetch_file, list_files, store_file
from tests.bad_network import BadNetwork, Fault, Request
from tests.data_sets import write_data_set
from tests.s3 import bucket_fixture  # noqa: F401
from training.data import push as push_module
from training.data.data_set import SPLITS, copy_dataset
from training.data.push import Pushed, push
from training.errors import DataError
from training.transfer import multipart

DATA = "s3://a-bucket/songs"


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "songs", train=2, test=1)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A zip of several parts."""
    path = tmp_path / "big.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for stem in ("drums", "bass", "other", "vocals"):
            archive.writestr(f"train/A - 0/{stem}.wav", random.Random(stem).randbytes(6_000_000))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_a_folder_arrives_whole_with_its_manifest(songs: Path, tmp_path: Path) -> None:
    (songs / "train" / ".DS_Store").touch()
    (songs / "notes.txt").touch()
    seen: list[tuple[str, int, int]] = []
    assert push(str(songs), f"{DATA}/", lambda *news: seen.append(news)) == Pushed(files=15, sent=15)
    assert [what for what, done, total in seen if done == total] == ["hash", "push"]

    paths = {path.relative_to(songs).as_posix(): path for path in songs.rglob("*.wav")}
    assert {file.name for file in list_files(DATA)} == {*paths, "manifest.json"}
    fetch_file(f"{DATA}/manifest.json", tmp_path / "manifest.json")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["layout"] == "own songs"
    assert manifest["objects"] == {
        name: {"size_bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in paths.items()
    }
    assert manifest["splits"]["test"] == ["B - 0"] and len(manifest["splits"]["train"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_what_is_there_is_not_sent_again(songs: Path) -> None:
    push(str(songs), DATA, no_progress)
    assert push(str(songs), DATA, no_progress) == Pushed(files=15, sent=0)
    bass = songs / "train/A - 0/bass.wav"
    bass.write_bytes(bass.read_bytes()[:-1] + b"\x7f")  # the same size
    delete(f"{DATA}/train/A - 1/bass.wav")
    assert push(str(songs), DATA, no_progress) == Pushed(files=15, sent=2)


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_songs_of_another_data_set_are_not_mixed_in(songs: Path, tmp_path: Path) -> None:
    push(str(songs), DATA, no_progress)
    other = write_data_set(tmp_path / "other", train=1, test=1)
    with pytest.raises(
        StorageError, match=r"songs holds train/A - 1/bass\.wav, which .*/other does not: remove it there"
    ):
        push(str(other), DATA, no_progress)


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_a_folder_without_songs_is_refused_before_anything_travels(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.wav").touch()
    with pytest.raises(DataError, match="holiday holds no songs: expected"):
        push(str(tmp_path / "holiday"), DATA, no_progress)
    with pytest.raises(DataError, match="there is no data set"):
        push(str(tmp_path / "nowhere"), DATA, no_progress)
    assert list_files("s3://a-bucket") == []


def test_other_places_are_refused(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StorageError, match=r"cannot be pushed to .*/there: name a folder or zip on this machine and s3"
    ):
        push(str(songs), str(tmp_path / "there"), no_progress)


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_an_official_zip_is_checked_before_anything_travels(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size_bytes, md5 = big.stat().st_size, hashlib.md5(big.read_bytes()).hexdigest()
    monkeypatch.setattr(push_module, "OFFICIAL_MD5", {size_bytes: ("MUSDB18-HQ", "12d4f2ecd55245a4688754dd76363103")})
    with pytest.raises(DataError, match=r"big\.zip has the size of MUSDB18-HQ's zip and not its MD5 .*: get it again"):
        push(str(big), DATA, no_progress)
    assert list_files("s3://a-bucket") == []
    monkeypatch.setattr(push_module, "OFFICIAL_MD5", {size_bytes: ("MUSDB18-HQ", md5)})
    assert push(str(big), DATA, no_progress) == Pushed(files=1, sent=1)


def test_the_official_zips_are_those_on_zenodo() -> None:
    assert {name for name, _ in push_module.OFFICIAL_MD5.values()} == {"MUSDB18", "MUSDB18-HQ"}
    assert all(len(bytes.fromhex(md5)) == 16 for _, md5 in push_module.OFFICIAL_MD5.values())


@pytest.mark.slow
def test_an_upload_that_was_cut_goes_on_with_the_parts_that_are_missing(
    big: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(retries, "PATIENCE_S", 0.01)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    network = BadNetwork(os.environ["AWS_ENDPOINT_URL"])
    sent: list[bool] = []

    def fail_later(request: Request) -> Fault | None:
        sent.append(request.method == "PUT")
        return Fault(status=500, code="InternalError") if sum(sent) > 2 else None

    with network.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        network.fault = fail_later
        with pytest.raises(StorageError, match=r"the store of s3://a-bucket/songs/big\.zip is overloaded or broken"):
            push(str(big), DATA, no_progress)
        assert not exists(f"{DATA}/big.zip") and not exists(f"{DATA}/manifest.json")
        network.requests.clear()
        network.fault = lambda _: None
        assert push(str(big), DATA, no_progress) == Pushed(files=1, sent=1)
        parts = math.ceil(big.stat().st_size / (5 << 20))
        assert len([request for request in network.requests if request.method == "PUT"]) == parts - 2 + 1
    assert (bucket / "songs" / "big.zip").read_bytes() == big.read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_an_object_that_did_not_arrive_as_sent_is_named(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.wav").write_bytes(b"x" * (songs / "train/A - 0/bass.wav").stat().st_size)
    send = push_module.send

    def send_and_spoil(*given: object) -> None:
        send(*given)  # type: ignore[arg-type]
        store_file(tmp_path / "other.wav", f"{DATA}/train/A - 0/bass.wav")

    monkeypatch.setattr(push_module, "send", send_and_spoil)
    with pytest.raises(StorageError, match=r"A - 0/bass\.wav is not what was sent from .*: push it again"):
        push(str(songs), DATA, no_progress)
    assert not exists(f"{DATA}/manifest.json")
    monkeypatch.setattr(push_module, "send", send)
    assert push(str(songs), DATA, no_progress) == Pushed(files=15, sent=1)


@pytest.mark.slow
def test_an_etag_that_is_no_md5_has_the_object_read_back(
    songs: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the store encrypts with a key of its own."""
    content_of = push_module.content_of

    def unlike(path: Path, count: Callable[[int], None]) -> push_module.Content:
        content = content_of(path, count)
        return push_module.Content(content.size_bytes, content.sha256, ("0" * 32, "0-1"), content.part_md5s)

    monkeypatch.setattr(push_module, "content_of", unlike)
    assert push(str(songs), DATA, no_progress) == Pushed(files=15, sent=15)
    assert push(str(songs), DATA, no_progress) == Pushed(files=15, sent=0)
    assert len(list(bucket.rglob("*.wav"))) == 15


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(
    songs: Path, bucket: Path, tmp_path: Path, times: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No object is ever half there, and the manifest says only what is."""
    network, chance = BadNetwork(os.environ["AWS_ENDPOINT_URL"]), random.Random(0)
    network.fault = lambda _: Fault(silence_s=0.05)
    context = multiprocessing.get_context("fork")
    with network.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        for _ in range(times(3, 50)):
            process = context.Process(target=push, args=[str(songs), DATA, no_progress])
            process.start()
            process.join(chance.uniform(0.3, 0.9))
            process.kill()
            process.join()
            there = {file.relative_to(bucket / "songs").as_posix(): file for file in bucket.rglob("*.wav")}
            assert all(file.read_bytes() == (songs / name).read_bytes() for name, file in there.items())
            assert not (bucket / "songs" / "manifest.json").exists() or len(there) == 15
        push(str(songs), DATA, no_progress)
        copy_dataset(DATA, tmp_path / "to", SPLITS)
    assert len(list((tmp_path / "to").rglob("*.wav"))) == 12
