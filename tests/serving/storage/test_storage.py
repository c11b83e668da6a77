"""Object storage against a real S3 server, and the same functions on plain folders."""

import multiprocessing
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from botocore.config import Config

from serving.errors import StorageError
from serving.storage import retries, s3
from serving.storage.s3 import connect
from serving.storage.storage import (
    delete,
    exists,
    fetch_file,
    find_file,
    is_remote,
    list_files,
    store_bytes,
    store_file,
)
from tests.bad_network import BadNetwork, Fault, Request
from tests.s3 import bucket_fixture  # noqa: F401

pytestmark = pytest.mark.slow

BIG = bytes(range(256)) * 40_000  # 10 MB: more than one part


def in_bucket(bucket: Path) -> str:
    return f"s3://{bucket.name}/some/prefix"


def in_folder(bucket: Path) -> str:
    return str(bucket / "some" / "prefix")


Place = Callable[[Path], str]
both = pytest.mark.parametrize("place", [in_bucket, in_folder])


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
def test_bytes_are_stored_as_a_file(place: Place, bucket: Path, tmp_path: Path) -> None:
    store_bytes(b"1234", f"{place(bucket)}/x")
    store_bytes(b"56", f"{place(bucket)}/x")
    fetch_file(f"{place(bucket)}/x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == b"56"


def test_a_fetch_goes_on_where_the_connection_was_cut(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    url = f"s3://{bucket.name}/x"
    (tmp_path / "x").write_bytes(BIG)
    store_file(tmp_path / "x", url)
    cut = {f"bytes=0-{len(BIG) - 1}": 4_000_000, f"bytes=4000000-{len(BIG) - 1}": 0}
    faults: list[Request] = []

    def fault(request: Request) -> Fault | None:
        if request.range not in cut:
            return None
        faults.append(request)
        return Fault(cut_bytes=cut.pop(request.range))

    network = BadNetwork(os.environ["AWS_ENDPOINT_URL"], fault)
    with network.serving() as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        seen: list[tuple[str, int, int]] = []
        fetch_file(url, tmp_path / "y", lambda *news: seen.append(news))
    assert len(faults) == 2 and network.sent_bytes == len(BIG) and (tmp_path / "y").read_bytes() == BIG
    assert seen[-1] == ("fetch", len(BIG), len(BIG))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_client_is_made_once_for_the_settings_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    made, real = [], s3._client
    monkeypatch.setattr(s3, "_client", lambda **options: made.append(options) or real(**options))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with ThreadPoolExecutor(4) as pool:
        (first,) = set(pool.map(lambda _: connect(), range(8)))
    assert len(made) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:10")
    assert connect().meta.endpoint_url == "http://127.0.0.1:10" and len(made) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert connect() is first and len(made) == 2
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(2 + (connect() is first)))
    process.start()
    process.join(30)
    assert process.exitcode == 2, "connections are not shared with a parent process"


@both
def test_a_folder_is_listed_with_names_relative_to_it(place: Place, bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "songs" / "deep").mkdir(parents=True)
    (tmp_path / "songs" / "b.wav").write_bytes(BIG)
    (tmp_path / "songs" / "deep" / "a.wav").write_bytes(b"1234")
    store_file(tmp_path / "songs" / "b.wav", f"{place(bucket)}/b.wav")
    store_file(tmp_path / "songs" / "deep" / "a.wav", f"{place(bucket)}/deep/a.wav")
    assert [(file.name, file.size_bytes) for file in list_files(place(bucket))] == [
        ("b.wav", len(BIG)),
        ("deep/a.wav", 4),
    ]
    assert [file.name for file in list_files(place(bucket) + "/deep/")] == ["a.wav"]


def test_a_prefix_is_a_folder_and_not_the_start_of_a_name(bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    store_file(tmp_path / "x", f"s3://{bucket.name}/songs-old/x")
    assert list_files(f"s3://{bucket.name}/songs") == []


@both
def test_a_deleted_file_is_gone_and_may_be_deleted_again(place: Place, bucket: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    url = f"{place(bucket)}/x"
    store_file(tmp_path / "x", url)
    found = find_file(url)
    assert found is not None and (found.name, found.size_bytes) == ("x", 1)
    delete(url)
    delete(url)
    assert not exists(url)


every_way_in = pytest.mark.parametrize(
    "work", [list_files, exists, lambda url: fetch_file(url, Path("x")), lambda url: store_file(Path(__file__), url)]
)
Work = Callable[[str], object]


@pytest.mark.usefixtures("bucket")
@every_way_in
def test_a_missing_bucket_is_named(work: Work) -> None:
    with pytest.raises(StorageError, match="there is no bucket no-such-bucket: check the name"):
        work("s3://no-such-bucket/key")


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


@every_way_in
def test_missing_credentials_are_asked_for(work: Work, bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match=r"no credentials for s3://.*/key, and it is not public: set AWS_ACCESS_KEY"):
        work(f"s3://{bucket.name}/key")


def test_half_credentials_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(StorageError, match=r"there are no credentials for s3://bucket/key .*: set AWS_ACCESS_KEY_ID"):
        exists("s3://bucket/key")


def test_a_malformed_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost")
    with pytest.raises(
        StorageError, match=r"address is malformed \(Invalid endpoint: localhost\): check AWS_ENDPOINT_URL"
    ):
        exists("s3://bucket/key")


def test_a_missing_file_is_named(bucket: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"there is no s3://{bucket.name}/a/b\.mar: check the key"):
        fetch_file(f"s3://{bucket.name}/a/b.mar", tmp_path / "b.mar")
    assert not (tmp_path / "b.mar").exists()


def test_a_missing_plain_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no file .*/x: check the path"):
        fetch_file(str(tmp_path / "x"), tmp_path / "y")
    with pytest.raises(StorageError, match=r"there is no folder .*/x: check the path"):
        list_files(str(tmp_path / "x"))


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
        assert s3.CONNECTION.connect_timeout == 5
        monkeypatch.setattr(s3, "CONNECTION", s3.CONNECTION.merge(Config(connect_timeout=0.5)))
        started = time.monotonic()
        with pytest.raises(StorageError, match="check AWS_ENDPOINT_URL and the network"):
            exists("s3://bucket/key")
        assert time.monotonic() - started < 4
        for client in waiting:
            client.close()


@dataclass
class Recorder:
    """An HTTP server that answers every request alike and remembers their headers, with names in lower case."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[dict[str, str]] = field(default_factory=list)

    @contextmanager
    def serving(self, monkeypatch: pytest.MonkeyPatch, tls: ssl.SSLContext | None = None) -> Iterator[str]:
        """Its address, which the environment points to, without credentials."""
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                recorder.seen.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(recorder.status)
                for name, value in {"Content-Length": str(len(recorder.body)), **recorder.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(recorder.body)

            do_GET = do_HEAD = do_PUT  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        try:
            yield endpoint
        finally:
            server.shutdown()
            server.server_close()


def use_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.mark.parametrize("wanted", [None, "when_supported"])
def test_checksums_are_left_out_unless_the_user_wants_them(
    wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an S3 server sees it: Ceph, Backblaze and others refuse requests with checksum headers."""
    use_keys(monkeypatch)
    if wanted:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", wanted)
    (tmp_path / "x").write_bytes(b"1")
    with (server := Recorder()).serving(monkeypatch):
        store_file(tmp_path / "x", "s3://bucket/x")
    (headers,) = server.seen
    assert ("x-amz-checksum-crc32" in headers) == (wanted is not None)


@pytest.mark.parametrize("agreed", [False, True])
def test_the_requester_pays_only_where_the_configuration_agrees(
    agreed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_keys(monkeypatch)
    (tmp_path / "config").write_text("[default]\ns3 =\n  request_payer = requester\n" if agreed else "[default]\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with (server := Recorder()).serving(monkeypatch):
        assert exists("s3://bucket/x")
    (headers,) = server.seen
    assert headers.get("x-amz-request-payer") == ("requester" if agreed else None)
    assert ("x-amz-request-payer" in headers["authorization"]) == agreed  # signed, or a store refuses it


@pytest.mark.parametrize(("style", "path"), [("path", "/bucket/x"), ("virtual", "/x")])
def test_the_addressing_style_is_that_of_the_configuration(
    style: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_keys(monkeypatch)
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with (server := Recorder(status=403)).serving(monkeypatch) as endpoint:
        port = endpoint.rsplit(":", 1)[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{port}")
        assert connect().generate_presigned_url("head_object", {"Bucket": "bucket", "Key": "x"}).split("?")[0] == (
            f"http://localhost:{port}{path}" if style == "path" else f"http://bucket.localhost:{port}{path}"
        )
    assert server.seen == []


def test_a_public_bucket_is_read_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    with (server := Recorder()).serving(monkeypatch):
        assert exists("s3://bucket/x")
    (headers,) = server.seen
    assert "authorization" not in headers


def test_a_web_page_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    with Recorder(body=b"<html>Welcome").serving(monkeypatch), pytest.raises(StorageError, match="check AWS_ENDPOINT"):
        list_files("s3://bucket/x")


def test_a_wrong_clock_is_told_from_missing_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    use_keys(monkeypatch)
    an_hour_ago = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>"
    for answer in (Recorder(403, body), Recorder(403)):
        with answer.serving(monkeypatch), monkeypatch.context() as patch:
            patch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda *_: an_hour_ago)
            with pytest.raises(StorageError, match=r"the clock of this machine is 60 minutes away .* set the clock"):
                exists("s3://bucket/x")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
    path = tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=a-store"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(tmp_path / "only.pem")]
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "only.pem").read_bytes())
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_trusted_only_where_the_user_says_so(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_keys(monkeypatch)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with Recorder().serving(monkeypatch, tls) as endpoint:
        untrusted = r"certificate of the store of s3://bucket/x is not trusted .*: name .* in AWS_CA_BUNDLE, or check"
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        with pytest.raises(StorageError, match=untrusted):
            exists("s3://bucket/x")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        assert exists("s3://bucket/x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace("127.0.0.1", "localhost"))  # not its name
        with pytest.raises(StorageError, match=untrusted):
            exists("s3://bucket/x")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace("https", "http"))
        with pytest.raises(StorageError, match=r"cannot be reached .*: check AWS_ENDPOINT_URL"):
            exists("s3://bucket/x")


def test_what_is_remote() -> None:
    assert is_remote("s3://bucket/key")
    assert not is_remote("/data/s3") and not is_remote("runs:/1/model.mar")
