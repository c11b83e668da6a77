"""Data sets in every place, as a folder of the songs that are asked for."""

import zipfile
from pathlib import Path
from threading import Event

import pytest

from serving.errors import StorageError
from serving.storage.progress import no_progress
from serving.storage.storage import delete, store_file
from tests.data_sets import STEMS, write_data_set
from tests.s3 import bucket_fixture  # noqa: F401
from training.data.data_set import list_dataset, open_dataset
from training.data.push import push
from training.data.source import find_source
from training.errors import DataError


def zipped(root: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*.wav")):
            archive.write(file, f"{inside}{file.relative_to(root).as_posix()}")
        archive.writestr("__MACOSX/train/A - 0/._drums.wav", b"resource fork")
        archive.writestr(f"{inside}train/._A - 9.stem.mp4", b"resource fork")
        archive.writestr(f"{inside}README.md", b"read me")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The files of songs."""
    files = [file for split in ("train", "test") for file in folder.glob(f"{split}/*/*")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def brought(data: str, work_dir: Path) -> Path:
    """The folder with every file of a data set's songs, the mixtures too."""
    source = find_source(data)
    source.bring(list(source.files), source.place(work_dir), no_progress, Event())
    return source.place(work_dir)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "data", train=2)


def test_a_folder_is_used_where_it_is(root: Path, tmp_path: Path) -> None:
    (root / "train" / ".DS_Store").touch()
    (root / "train" / "A - 0" / "._drums.wav").touch()
    assert find_source(str(root)).files == {
        name: len(content) for name, content in contents(root).items() if "._" not in name
    }
    assert brought(str(root), tmp_path / "work") == root
    assert not (tmp_path / "work").exists() and not (root / ".fetch").exists()


@pytest.mark.parametrize("inside", ["", "musdb18hq/"])
def test_a_zip_is_unpacked_once(root: Path, tmp_path: Path, inside: str) -> None:
    path = zipped(root, tmp_path / "songs.zip", inside)
    seen: list[tuple[int, int]] = []
    source = find_source(str(path))
    copy = source.place(tmp_path / "work")
    source.bring(list(source.files), copy, lambda _, done, total: seen.append((done, total)), Event())
    assert contents(copy) == contents(root)
    assert seen[-1][0] == seen[-1][1] == sum(map(len, contents(root).values()))

    written = {file: file.stat().st_mtime_ns for file in copy.rglob("*.wav")}
    first, second, *_ = written
    first.unlink()
    second.write_bytes(b"somebody else's")
    assert brought(str(path), tmp_path / "work") == copy
    assert contents(copy) == contents(root)
    assert [file for file in written if file.stat().st_mtime_ns != written[file]] == [first, second]


def test_a_zip_in_a_folder_of_its_own_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "download").mkdir()
    zipped(root, tmp_path / "download" / "musdb18hq.zip")
    assert contents(brought(str(tmp_path / "download"), tmp_path / "work")) == contents(root)


def test_a_name_in_a_zip_cannot_lead_out_of_the_work_folder(root: Path, tmp_path: Path) -> None:
    path = zipped(root, tmp_path / "songs.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/../../../../evil.wav", b"x")
        archive.writestr("train/../evil.wav", b"x")
        archive.writestr("/train/A - 0/evil.wav", b"x")
    assert contents(brought(str(path), tmp_path / "work")) == contents(root)
    assert not list(tmp_path.rglob("evil.wav"))


def test_a_damaged_zip_is_named(root: Path, tmp_path: Path) -> None:
    path = zipped(root, tmp_path / "songs.zip")
    content = bytearray(path.read_bytes())
    content[1_000] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"songs\.zip cannot be unpacked \(.*\): get it again"):
        brought(str(path), tmp_path / "work")
    (copy,) = (tmp_path / "work").iterdir()
    assert contents(copy).items() < contents(root).items()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"songs\.zip cannot be unpacked \(File is not a zip file\): get it again"):
        brought(str(path), tmp_path / "work")
    with pytest.raises(DataError, match=r"there is no zip .*nowhere\.zip: check the path"):
        find_source(str(tmp_path / "nowhere.zip"))


def test_a_zip_without_songs_or_with_several_data_sets_is_refused(root: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("holiday.jpg", b"")
    with pytest.raises(DataError, match=r"empty\.zip holds no songs: expected"):
        find_source(str(tmp_path / "empty.zip"))
    path = zipped(root, tmp_path / "two.zip", "one/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("two/train/A - 0/drums.wav", b"")
    with pytest.raises(DataError, match=r"two\.zip holds several data sets \(one/, two/\): name one of them"):
        find_source(str(path))


@pytest.mark.slow
def test_a_bucket_is_copied_and_a_change_in_it_is_seen(root: Path, bucket: Path, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/musdb18hq"
    push(str(root), url, no_progress)
    delete(f"{url}/manifest.json")
    copy = brought(url, tmp_path / "work")
    assert contents(copy) == contents(root)
    assert open_dataset(url, tmp_path / "work").digest == open_dataset(str(root), tmp_path).digest
    assert brought(url, tmp_path / "work") == copy

    drums = root / "train/A - 0/drums.wav"
    drums.write_bytes(drums.read_bytes()[:-1] + b"\x7f")  # the same size
    store_file(drums, f"{url}/train/A - 0/drums.wav")
    assert contents(brought(url, tmp_path / "work")) == contents(root)


@pytest.mark.slow
def test_a_zip_in_a_bucket_is_found_by_its_name_and_by_its_prefix(root: Path, bucket: Path, tmp_path: Path) -> None:
    store_file(zipped(root, tmp_path / "songs.zip", "musdb18hq/"), f"s3://{bucket.name}/zips/songs.zip")
    for url in (f"s3://{bucket.name}/zips/songs.zip", f"s3://{bucket.name}/zips"):
        assert contents(brought(url, tmp_path / "work")) == contents(root)


@pytest.mark.slow
def test_an_empty_prefix_or_a_missing_bucket_is_named(bucket: Path) -> None:
    with pytest.raises(DataError, match=f"s3://{bucket.name}/nothing holds no songs: expected"):
        find_source(f"s3://{bucket.name}/nothing")
    with pytest.raises(DataError, match=rf"there is no zip s3://{bucket.name}/no\.zip: check the path"):
        find_source(f"s3://{bucket.name}/no.zip")
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket"):
        find_source("s3://no-such-bucket/x")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["objects", "zip"])
def test_songs_come_piece_by_piece_and_are_known_before(kind: str, root: Path, bucket: Path, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/songs"
    push(str(root if kind == "objects" else zipped(root, tmp_path / "songs.zip")), url, no_progress)
    data, whole = list_dataset(url, tmp_path / "work"), open_dataset(str(root), tmp_path)
    assert data.digest == whole.digest
    names = {split: [song.name for song in songs] for split, songs in data.splits.items()}
    assert names == {split: [song.name for song in songs] for split, songs in whole.splits.items()}
    assert not (tmp_path / "work").exists()

    data.bring(data.valid)
    here = {file.parent.name for file in (tmp_path / "work").rglob("*.wav")}
    assert here == {song.name for song in data.valid}
    assert {file.stem for file in (tmp_path / "work").rglob("*.wav")} == set(STEMS)
    data.bring(data.train)
    for song, same in zip(data.train + data.valid, whole.train + whole.valid, strict=True):
        assert (song.read(["mixture"])[0] == same.read(["mixture"])[0]).all()
    assert not [file for file in (tmp_path / "work").rglob("*.wav") if "test" in file.parts]


@pytest.mark.slow
def test_a_bucket_that_does_not_fit_its_manifest_is_refused(root: Path, bucket: Path, tmp_path: Path) -> None:
    url = f"s3://{bucket.name}/songs"
    push(str(root), url, no_progress)
    (tmp_path / "x").write_bytes(b"not a song")
    store_file(tmp_path / "x", f"{url}/train/A - 0/bass.wav")
    with pytest.raises(DataError, match=r"A - 0/bass\.wav has 10 bytes, and manifest\.json says .*: push the data set"):
        find_source(url)
    store_file(root / "train/A - 0/bass.wav", f"{url}/train/A - 0/bass.wav")
    store_file(tmp_path / "x", f"{url}/train/A - 7/bass.wav")
    with pytest.raises(DataError, match=r"holds train/A - 7/bass\.wav, which its manifest\.json does not list: push"):
        find_source(url)
    store_file(tmp_path / "x", f"{url}/manifest.json")
    with pytest.raises(DataError, match=r"manifest\.json is no manifest .*: push the data set again"):
        find_source(url)
