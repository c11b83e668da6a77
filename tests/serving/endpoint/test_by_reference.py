"""Songs by reference from a real S3 server and a small real HTTP server; and everything that must not be reached."""

import io
import json
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from serving.audio.delivery import FACT_SHEET
from serving.endpoint import by_reference
from serving.endpoint.answer import Answer as Answered
from serving.endpoint.by_reference import Address, Deadline, Reach, Reference, awaited, checked_address, is_public
from serving.endpoint.incoming import Bounds
from serving.errors import AudioTooLong, Forbidden, RequestError, ServerError, StorageError
from serving.model.separator import Separator
from serving.model.spec import ModelSpec
from serving.songs.fact_sheet import FactSheet
from tests.s3 import bucket_fixture  # noqa: F401

pytestmark = pytest.mark.slow

SONG = b"a song" * 1_000
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def web(answer: Answer, certificate: Path | None = None) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The address of a server on this machine, and what it was asked: Host header and target. With a certificate, whose
    file holds its key, too, it speaks TLS."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.headers["Host"], self.path))
            answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        if certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
            http.socket = tls.wrap_socket(http.socket, server_side=True)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", asked
        finally:
            http.shutdown()
            thread.join()


def sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def song(reach: Reach, uri: str, seconds: float = 60) -> Iterator[Path]:
    """A copy of the song at an address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "song")
        reach.fetch(reach.check(uri), path, Deadline(seconds))
        yield path


def test_a_song_from_the_web() -> None:
    with web(sends(SONG)) as (url, asked):
        reach = Reach.of(f"s3://elsewhere, {url}/music/", 10**6)
        with song(reach, f"{url}/music/a%20song.wav?X-Amz-Signature=abc%2F1") as path:
            assert path.read_bytes() == SONG
    assert asked == [(url.removeprefix("http://"), "/music/a%20song.wav?X-Amz-Signature=abc%2F1")]


def test_a_song_from_a_bucket_and_stems_back(bucket: Path, tmp_path: Path) -> None:
    (bucket / "in").mkdir()
    (bucket / "in" / "song.wav").write_bytes(SONG)
    reach = Reach.of("s3://a-bucket/in,s3://a-bucket/out/", 10**6)
    with song(reach, "s3://a-bucket/in/song.wav") as path:
        assert path.read_bytes() == SONG
    vocals = tmp_path / "vocals.wav"
    vocals.write_bytes(b"voice")
    stored = reach.store([vocals], "s3://a-bucket/out/song/")
    assert stored == ["s3://a-bucket/out/song/vocals.wav"]
    assert (bucket / "out" / "song" / "vocals.wav").read_bytes() == b"voice"
    with pytest.raises(Forbidden):
        reach.store([vocals], "s3://a-bucket/elsewhere")
    with (
        pytest.raises(RequestError, match=r"there is no s3://a-bucket/in/other\.wav"),
        song(reach, "s3://a-bucket/in/other.wav"),
    ):
        pass
    small = Reach.of("s3://a-bucket", 100)
    with pytest.raises(AudioTooLong, match="more than 100 bytes"), song(small, "s3://a-bucket/in/song.wav"):
        pass


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there() -> None:
    with (
        pytest.raises(StorageError, match="no-bucket"),
        song(Reach.of("s3://no-bucket", 100), "s3://no-bucket/song.wav"),
    ):
        pass


def test_stems_go_to_buckets_alone() -> None:
    with pytest.raises(RequestError, match="only be written to s3://"):
        Reach.of("https://host/", 100).check_output("https://host/out")


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (sends(b"", 302, Location="http://169.254.169.254/latest/"), Forbidden, "leads to another address"),
        (sends(b"", 404), RequestError, "answers 404"),
        (sends(SONG, Content_Length="7000"), RequestError, "cannot be read"),
        (sends(SONG, Content_Length="99999999"), AudioTooLong, "more than 10,000 bytes"),
        (sends(SONG * 3), AudioTooLong, "more than 10,000 bytes"),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), RequestError, "cannot be read"),
    ],
)
def test_what_is_no_song(answer: Answer, error: type[Exception], message: str) -> None:
    with web(answer) as (url, asked):
        with (
            pytest.raises(error, match=message) as told,
            song(Reach.of(url, 10_000), f"{url}/song.wav?signature=secret"),
        ):
            pass
        assert len(asked) == 1
    assert "secret" not in str(told.value)


def test_a_server_that_trickles() -> None:
    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                handler.wfile.write(b"a")
                time.sleep(0.02)

    with (
        web(trickle) as (url, _),
        pytest.raises(RequestError, match="takes more than"),
        song(Reach.of(url, 100), url + "/a", seconds=0.2),
    ):
        pass


def test_nothing_is_allowed_unless_said() -> None:
    for uri in ("s3://bucket/song.wav", "https://example.com/song.wav"):
        with pytest.raises(Forbidden, match="STEMWRIGHT_ALLOWED_URIS") as told:
            Reach.of("", 100).check(uri)
        assert told.value.status == 403


ALLOWED = "https://store.example.com/music/, s3://bucket/in, http://127.0.0.1:9000/"


@pytest.mark.parametrize(
    "uri",
    [
        "https://store.example.com/music/a.wav?X-Amz-Signature=1",
        "https://STORE.example.com:443/music/album/a.wav",
        "s3://bucket/in/Jóga? 100% #1.wav",
        "s3://bucket/in/%2e%2e/a.wav",
        "http://127.0.0.1:9000/anything",
    ],
)
def test_below_a_prefix(uri: str) -> None:
    assert Reach.of(ALLOWED, 100).check(uri).host in uri.lower()


@pytest.mark.parametrize(
    "uri",
    [
        "https://store.example.com/musical/a.wav",
        "https://store.example.com/other/a.wav",
        "http://store.example.com/music/a.wav",
        "https://store.example.com:8443/music/a.wav",
        "https://store.example.com.evil.net/music/a.wav",
        "https://evil.net/https://store.example.com/music/a.wav",
        "s3://bucket/inside/a.wav",
        "s3://bucket2/in/a.wav",
        "s3://BUCKET/in/a.wav",
        "http://127.0.0.1:9001/a.wav",
        "http://127.0.0.1/a.wav",
        "http://localhost:9000/a.wav",
    ],
)
def test_not_below_a_prefix(uri: str) -> None:
    with pytest.raises(Forbidden):
        Reach.of(ALLOWED, 100).check(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "song.wav",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://store.example.com/music/a.wav",
        "https:///music/a.wav",
        "https://user@store.example.com/music/a.wav",
        "https://store.example.com@evil.net/music/a.wav",
        "https://store.example.com\\@evil.net/music/a.wav",
        "https://store.example.com/music/../secret/a.wav",
        "https://store.example.com/music/%2e%2e/secret/a.wav",
        "https://store.example.com/music/..%2fsecret/a.wav",
        "https://store.example.com/music/..%5csecret/a.wav",
        "https://store.example.com/music/a b.wav",
        "https://store.example.com/music/a\r\nHost: evil.net",
        "https://store.example.com:port/music/a.wav",
        "https://[::1/music/a.wav",
        "s3://bucket:80/in/a.wav",
        "s3://bucket/in/../other/a.wav",
        "s3:///in/a.wav",
    ],
)
def test_no_address_at_all(uri: str) -> None:
    with pytest.raises(RequestError) as told:
        Reach.of(ALLOWED, 100).check(uri)
    assert told.value.status == 400


PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "10.255.255.255", "100.64.0.1", "127.0.0.1", "127.1.2.3", "169.254.169.254", "172.16.0.1"),
    *(
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
    ),
    *(
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
    ),
    *("64:ff9b::7f00:1", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "fc00::1", "fd12::1"),
    *("fe80::1", "fec0::1", "ff02::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "172.15.0.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("private", ["127.0.0.1", "169.254.169.254", "::1"])
def test_a_name_with_one_private_address_is_not_reached(private: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", private)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Forbidden, match="inside a private network"):
        checked_address(Address.of("https://store.example.com/a.wav"))


@pytest.mark.parametrize("name", ["localhost", "0x7f.1", "2130706433", "127.1", "017700000001"])
def test_other_names_of_this_machine_are_not_reached(name: str) -> None:
    with pytest.raises(RequestError) as told, song(Reach.of(f"http://{name}:9", 100), f"http://{name}:9/a.wav"):
        pass
    assert isinstance(told.value, Forbidden) or "there is no host" in str(told.value)


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    # The second look-up would lead elsewhere; there is none.
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def once(host: str, *rest: object, **more: object) -> object:
        looked_up.append(host)
        return real("127.0.0.1", *rest, **more) if host == "store.example.com" else real(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    monkeypatch.setattr(by_reference, "is_public", lambda _: True)
    with web(sends(SONG)) as (url, asked):
        port = url.rsplit(":", 1)[1]
        named = f"http://store.example.com:{port}"
        with song(Reach.of(named, 10**6), f"{named}/a.wav") as path:
            assert path.read_bytes() == SONG
    assert looked_up == ["store.example.com", "127.0.0.1"]
    assert asked == [(f"store.example.com:{port}", "/a.wav")]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(("certified", "welcome"), [("store.example.com", True), ("evil.net", False)])
def test_a_certificate_must_be_the_names_not_the_addresss(
    certified: str, welcome: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    make += ["-days", "2", "-subj", f"/CN={certified}", "-addext", f"subjectAltName=DNS:{certified}"]
    make += ["-keyout", "-", "-out", "-"]
    certificate.write_bytes(subprocess.run(make, check=True, capture_output=True).stdout)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *rest, **more: real("127.0.0.1", *rest, **more))
    monkeypatch.setattr(by_reference, "is_public", lambda _: True)
    with web(sends(SONG), certificate) as (url, asked):
        named = f"https://store.example.com:{url.rsplit(':', 1)[1]}"
        if welcome:
            with song(Reach.of(named, 10**6), f"{named}/a.wav") as path:
                assert path.read_bytes() == SONG
        else:
            with pytest.raises(RequestError, match="SSLError"), song(Reach.of(named, 10**6), f"{named}/a.wav"):
                pass
    assert len(asked) == welcome


@pytest.mark.parametrize("prefix", ["bucket", "file:///", "https://host/?a=1", "https://", "https://host/../"])
def test_a_prefix_that_is_none_stops_the_start(prefix: str) -> None:
    with pytest.raises(ServerError, match="STEMWRIGHT_ALLOWED_URIS"):
        Reach.of(prefix, 100)


def test_the_body_names_a_song() -> None:
    assert Reference.from_json(b'{"uri": "s3://b/k"}') == Reference("s3://b/k")
    assert Reference.from_json(b'{"uri": "s3://b/k", "output": "s3://b/o"}') == Reference("s3://b/k", "s3://b/o")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"RIFF\xff",
        b"[]",
        b"{}",
        b'"uri"',
        b'{"uri": 1}',
        b'{"uri": "a", "url": "b"}',
        b'{"output": "s3://b"}',
        b"[" * 99_999,
    ],
)
def test_a_body_that_names_none(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"send \{"):
        Reference.from_json(body)


def test_slow_work_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_reference, "SIGN_OF_LIFE_S", 0.02)

    def slow(_: Deadline) -> str:
        time.sleep(0.1)
        return "done"

    work, signs = awaited(slow), []
    with pytest.raises(StopIteration) as end:
        while True:
            signs.append(next(work))
    assert end.value.value == "done"
    assert set(signs) == {b" "}


def answered(
    body: dict[str, str], allowed: str, spec: ModelSpec, network: nn.Module, **headers: str
) -> tuple[Answered, bytes]:
    """The answer of a server that allows these addresses."""
    answer = Answered("r1", {"content-type": "application/json; charset=utf-8", **headers}, limit_s=60)
    separator = Separator(spec, network, "cpu")
    answer.separate(separator, {"body": bytearray(json.dumps(body).encode())}, Bounds(reach=Reach.of(allowed, 10**7)))
    return answer, b"".join(iter(answer.next_piece, b""))


@pytest.fixture
def song_in_bucket(bucket: Path) -> Path:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2))
    soundfile.write(bucket / "a song.flac", noise, 8_000)
    return bucket


@pytest.mark.usefixtures("song_in_bucket")
def test_stems_of_a_named_song_come_back(tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    answer, body = answered({"uri": "s3://a-bucket/a song.flac"}, "s3://a-bucket", tiny_spec, tiny_network)
    assert (answer.status, answer.content_type) == (200, "application/zip")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="a song.zip"'
    assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["vocals.wav", "accompaniment.wav", FACT_SHEET]


def test_stems_of_a_named_song_go_to_a_bucket(
    song_in_bucket: Path, tiny_spec: ModelSpec, tiny_network: nn.Module
) -> None:
    named = {"uri": "s3://a-bucket/a song.flac", "output": "s3://a-bucket/stems/song"}
    answer, body = answered(named, "s3://a-bucket", tiny_spec, tiny_network, accept="audio/flac")
    assert (answer.status, answer.content_type) == (200, "application/json")
    addresses = {stem: f"s3://a-bucket/stems/song/{stem}.flac" for stem in ("vocals", "accompaniment")}
    assert json.loads(body) == {"stems": addresses}
    sheet = FactSheet.from_json((song_in_bucket / "stems" / "song" / FACT_SHEET).read_bytes())
    assert sheet.song.etag and sheet.song.name == "a song.flac"
    assert sheet.is_kept_in(song_in_bucket / "stems" / "song")
    stems = [soundfile.read(song_in_bucket / "stems" / "song" / f"{stem}.flac")[0] for stem in addresses]
    np.testing.assert_allclose(sum(stems), soundfile.read(song_in_bucket / "a song.flac")[0], atol=2**-13)


def test_what_is_not_allowed_is_said_before_anything_is_done(tiny_spec: ModelSpec, tiny_network: nn.Module) -> None:
    for allowed, output in (("", None), ("s3://in", "s3://out/x"), ("s3://other", None)):
        named = {"uri": "s3://in/song.wav"} | ({"output": output} if output else {})
        answer, body = answered(named, allowed, tiny_spec, tiny_network)
        assert (answer.status, answer.content_type) == (403, "application/json")
        assert json.loads(body)["error"] == "Forbidden"
        assert "Content-Disposition" not in answer.headers
