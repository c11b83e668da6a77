import zipfile
from pathlib import Path

import pytest

from serving.errors import StorageError
from serving.storage import store_file, store_folder
from tests.data_sets import write_data_set
from tests.s3 import bucket_fixture  # noqa: F401
from training.errors import DataError
from training.local_copy import local_copy
from training.musdb18 import open_dataset


def nothing(_what: str, _done: int, _total: int) -> None: ...


def zipped(root: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.wav")):
            archive.write(file, f"{inside}{file.relative_to(root).as_posix()}")
        archive.writestr("__MACOSX/train/A - 0/._drums.wav", b"resource fork")
        archive.writestr(f"{inside}train/._A - 9.stem.mp4", b"resource fork")
        archive.writestr(f"{inside}README.md", b"read me")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the mixtures, which are left out of copies."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "mixture.wav"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "data", train=2)


def test_a_folder_is_used_where_it_is(root: Path, tmp_path: Path) -> None:
    assert local_copy(str(root), tmp_path / "work", nothing) == root
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("inside", ["", "musdb18hq/"])
def test_a_zip_is_unpacked_once(root: Path, tmp_path: Path, inside: str) -> None:
    path = zipped(root, tmp_path / "songs.zip", inside)
    seen: list[tuple[int, int]] = []
    copy = local_copy(str(path), tmp_path / "work", lambda _, done, total: seen.append((done, total)))
    assert contents(copy) == contents(root)
    assert not list(copy.rglob("mixture.wav"))
    assert seen[-1][0] == seen[-1][1] == sum(map(len, contents(root).values()))

    written = {file: file.stat().st_mtime_ns for file in copy.rglob("*.wav")}
    next(iter(written)).unlink()
    assert local_copy(str(path), tmp_path / "work", nothing) == copy
    assert contents(copy) == contents(root)
    assert sum(file.stat().st_mtime_ns != written[file] for file in copy.rglob("*.wav")) == 1


def test_a_zip_in_a_folder_of_its_own_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    zipped(root, tmp_path / "download" / "musdb18hq.zip")
    assert contents(local_copy(str(tmp_path / "download"), tmp_path / "work", nothing)) == contents(root)


def test_a_name_in_a_zip_cannot_lead_out_of_the_work_folder(root: Path, tmp_path: Path) -> None:
    path = zipped(root, tmp_path / "songs.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/../../../../evil.wav", b"x")
        archive.writestr("train/../evil.wav", b"x")
        archive.writestr("/train/A - 0/evil.wav", b"x")
    assert contents(local_copy(str(path), tmp_path / "work", nothing)) == contents(root)
    assert not list(tmp_path.rglob("evil.wav"))


def test_a_damaged_zip_is_named(root: Path, tmp_path: Path) -> None:
    path = zipped(root, tmp_path / "songs.zip")
    content = bytearray(path.read_bytes())
    content[1_000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"songs\.zip cannot be unpacked \(Bad CRC-32 .*\): get it again"):
        local_copy(str(path), tmp_path / "work", nothing)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"songs\.zip cannot be unpacked \(File is not a zip file\): get it again"):
        local_copy(str(path), tmp_path / "work", nothing)
    with pytest.raises(DataError, match=r"there is no zip .*nowhere\.zip: check the path"):
        local_copy(str(tmp_path / "nowhere.zip"), tmp_path / "work", nothing)


def test_a_zip_without_songs_or_with_several_data_sets_is_refused(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("holiday.jpg", b"")
    with pytest.raises(DataError, match=r"empty\.zip holds no songs: expected"):
        local_copy(str(tmp_path / "empty.zip"), tmp_path / "work", nothing)
    path = zipped(root, tmp_path / "two.zip", "one/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("two/train/A - 0/drums.wav", b"")
    with pytest.raises(DataError, match=r"two\.zip holds several data sets \(one/, two/\): name one of them"):
        local_copy(str(path), tmp_path / "work", nothing)


@pytest.mark.slow
def test_a_bucket_is_copied_and_a_change_in_it_is_seen(root: Path, bucket: Path, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/musdb18hq"
    store_folder(root, url)
    copy = local_copy(url, tmp_path / "work", nothing)
    assert contents(copy) == contents(root)
    assert open_dataset(url, tmp_path / "work").digest == open_dataset(str(root), tmp_path).digest
    assert local_copy(url, tmp_path / "work", nothing) == copy

    drums = root / "train/A - 0/drums.wav"
    drums.write_bytes(drums.read_bytes()[:-1] + b"\x7f")  # the same size
    store_file(drums, f"{url}/train/A - 0/drums.wav")
    assert contents(local_copy(url, tmp_path / "work", nothing)) == contents(root)


@pytest.mark.slow
def test_a_zip_in_a_bucket_is_found_by_its_name_and_by_its_prefix(root: Path, bucket: Path, tmp_path: Path) -> None:
    store_file(zipped(root, tmp_path / "songs.zip", "musdb18hq/"), f"s3://{bucket.name}/zips/songs.zip")
    for url in (f"s3://{bucket.name}/zips/songs.zip", f"s3://{bucket.name}/zips"):
        assert contents(local_copy(url, tmp_path / "work", nothing)) == contents(root)


@pytest.mark.slow
def test_an_empty_prefix_or_a_missing_bucket_is_named(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"s3://{bucket.name}/nothing holds no songs: expected"):
        local_copy(f"s3://{bucket.name}/nothing", tmp_path, nothing)
    with pytest.raises(StorageError, match=rf"there is no s3://{bucket.name}/no\.zip: check the key"):
        local_copy(f"s3://{bucket.name}/no.zip", tmp_path, nothing)
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"):
        local_copy("s3://no-such-bucket/x", tmp_path, nothing)
