"""Object storage against a real S3 server, and the same functions on plain folders."""

import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serving.errors import StorageError
from serving.storage import delete, exists, fetch_file, fetch_files, is_remote, list_files, store_file, store_folder
from tests.s3 import bucket_fixture  # noqa: F401

BIG = bytes(range(256)) * 40_000  # 10 MB: more than one part


def in_bucket(bucket: Path) -> str:
    return f"s3://{bucket.name}/some/prefix"


def in_folder(bucket: Path) -> str:
    return str(bucket / "some" / "prefix")


Place = Callable[[Path], str]
both = pytest.mark.parametrize("place", [pytest.param(in_bucket, marks=pytest.mark.slow), in_folder])


@both
def test_a_file_comes_back_as_it_was_stored(place: Place, bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(BIG)
    url = f"{place(bucket)}/a b/ü.bin"
    assert not exists(url)
    store_file(tmp_path / "x", url)
    assert exists(url)
    fetch_file(url, tmp_path / "new" / "y")
    assert (tmp_path / "new" / "y").read_bytes() == BIG
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["y"]


@both
def test_a_folder_is_listed_with_names_relative_to_it(place: Place, bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "songs" / "deep").mkdir(parents=True)
    (tmp_path / "songs" / "b.wav").write_bytes(BIG)
    (tmp_path / "songs" / "deep" / "a.wav").write_bytes(b"1234")
    seen: list[tuple[int, int]] = []
    store_folder(tmp_path / "songs", place(bucket), lambda _, done, total: seen.append((done, total)))
    assert seen[-1] == (len(BIG) + 4, len(BIG) + 4)
    assert [(file.name, file.size_bytes) for file in list_files(place(bucket))] == [
        ("b.wav", len(BIG)),
        ("deep/a.wav", 4),
    ]
    assert [file.name for file in list_files(place(bucket) + "/deep/")] == ["a.wav"]


@pytest.mark.slow
def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    store_file(tmp_path / "x", f"s3://{bucket.name}/songs-old/x")
    assert list_files(f"s3://{bucket.name}/songs") == []


@pytest.mark.slow
def test_files_are_fetched_once(bucket: Path, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/c"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(name.encode())
    store_folder(tmp_path / "from", f"s3://{bucket.name}/data")
    files = list_files(f"s3://{bucket.name}/data")
    fetch_files(files, tmp_path / "to")
    assert {p.relative_to(tmp_path / "to").as_posix() for p in (tmp_path / "to").rglob("?")} == {f.name for f in files}

    (tmp_path / "to/train/a").write_bytes(b"TRAIN/A")  # of full size: left alone
    (tmp_path / "to/train/b").write_bytes(b"short")
    fetched: list[int] = []
    fetch_files(files, tmp_path / "to", lambda _, done, __: fetched.append(done))
    assert fetched[-1] == len("train/b")
    assert [(tmp_path / "to" / f.name).read_bytes() for f in files] == [b"test/c", b"TRAIN/A", b"train/b"]


every_way_in = pytest.mark.parametrize(
    "work", [list_files, exists, lambda url: fetch_file(url, Path("x")), lambda url: store_file(Path(__file__), url)]
)
Work = Callable[[str], object]


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
@every_way_in
def test_a_missing_bucket_is_named(work: Work) -> None:
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket: check the name"):
        work("s3://no-such-bucket/key")


@pytest.mark.slow
@every_way_in
def test_wrong_credentials_are_called_that(work: Work, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    with pytest.raises(
        StorageError, match=rf"s3://{bucket.name}/key (are wrong|is refused).*: check .*(KEY_ID|credentials)"
    ):
        work(f"s3://{bucket.name}/key")


@every_way_in
def test_an_endpoint_without_a_server_is_named(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError, match=r"s3://bucket/key .*127\.0\.0\.1:9.*check AWS_ENDPOINT_URL and the network"):
        work("s3://bucket/key")


@every_way_in
def test_a_url_without_a_bucket_or_of_another_scheme_is_refused(work: Work) -> None:
    with pytest.raises(StorageError, match="s3:///key names no bucket"):
        work("s3:///key")
    with pytest.raises(StorageError, match="gs://bucket/key is neither s3:// nor a path"):
        work("gs://bucket/key")


def test_missing_credentials_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"there are no credentials for s3://bucket/key .*: set AWS_ACCESS_KEY_ID"):
        exists("s3://bucket/key")


def test_a_malformed_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    with pytest.raises(
        StorageError, match=r"address is malformed \(Invalid endpoint: localhost\): check AWS_ENDPOINT_URL"
    ):
        exists("s3://bucket/key")


@pytest.mark.slow
def test_a_missing_file_is_named(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"there is no s3://{bucket.name}/a/b\.mar: check the key"):
        fetch_file(f"s3://{bucket.name}/a/b.mar", tmp_path / "b.mar")
    assert not (tmp_path / "b.mar").exists()


def test_a_missing_plain_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no file .*/x: check the path"):
        fetch_file(str(tmp_path / "x"), tmp_path / "y")
    with pytest.raises(StorageError, match=r"there is no folder .*/x: check the path"):
        list_files(str(tmp_path / "x"))


@pytest.mark.slow
def test_an_object_that_would_leave_the_folder_is_refused(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    store_file(tmp_path / "x", f"s3://{bucket.name}/data/x")
    (file,) = list_files(f"s3://{bucket.name}/data")
    escaping = type(file)(f"../{file.name}", file.url, file.size_bytes, file.etag)
    with pytest.raises(StorageError, match="would be written outside"):
        fetch_files([escaping], tmp_path / "to")


@pytest.mark.slow
def test_a_dead_endpoint_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that drops packets, as a socket does whose queue is full."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(deaf.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of three
        started = time.monotonic()
        with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL and the network"):
            exists("s3://bucket/key")
        assert time.monotonic() - started < 8
        for client in waiting:
            client.close()


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [None, "when_supported"])
def test_checksums_are_left_out_unless_the_user_wants_them(
    wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an S3 server sees it: Ceph, Backblaze and others refuse requests with checksum headers."""
    seen: list[set[str]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            seen.append({name.lower() for name in self.headers})
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    if wanted:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", wanted)
    (tmp_path / "x").write_bytes(b"1")
    store_file(tmp_path / "x", "s3://bucket/x")
    server.shutdown()
    server.server_close()
    (headers,) = seen
    assert ("x-amz-checksum-crc32" in headers) == (wanted is not None)


def test_what_is_remote() -> None:
    assert is_remote("s3://bucket/key")
    assert not is_remote("/data/s3") and not is_remote("runs:/1/model.mar")


@both
def test_what_is_deleted_is_gone_and_may_be_gone_already(tmp_path: Path, bucket: Path, place: Place) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store_file(tmp_path / "file", f"{place(bucket)}/file")
    for _ in range(2):
        delete(f"{place(bucket)}/file")
        assert not exists(f"{place(bucket)}/file")
