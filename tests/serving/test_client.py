"""The client against small real HTTP servers that answer well, badly, late and not at all."""

import io
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serving import client
from serving.audio.audio_io import AudioInfo
from serving.audio.delivery import FACT_SHEET, zip_file
from serving.audio.encoding import AudioFormat, Encoding, Written
from serving.client import Client
from serving.errors import (
    AudioError,
    AudioTooLong,
    Forbidden,
    RequestError,
    ServerError,
    StemwrightError,
    UnsupportedAudio,
)
from serving.songs.fact_sheet import FactSheet, ModelFacts, SongFacts, SongFile, sha256_of

pytestmark = pytest.mark.slow

SONG = b"a song" * 1_000
STEMS = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2, 20_000)).astype(np.float32)
NAMES = ["vocals", "accompaniment"]

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Server:
    """Gives one answer after the other, the last one for ever, and keeps what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)


@contextmanager
def serving(*answers: Answer, reads_body: bool = True) -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])) if reads_body else b""
            headers = {name.lower(): value for name, value in self.headers.items()}
            server.requests.append(Request(self.path, headers, body))
            answers[min(len(server.requests), len(answers)) - 1](self)

        def end_headers(self) -> None:
            self.send_header("Connection", "close")  # said, so that a retry does not meet a connection that just ended
            super().end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def stems_zip(names: list[str] = NAMES, audio_format: AudioFormat = "wav") -> bytes:
    encoding = Encoding(audio_format, "PCM_16", 44_100, 2, STEMS.shape[-1])
    stems = np.resize(STEMS, (len(names), *STEMS.shape[1:]))

    def fact_sheet(written: Mapping[str, Written]) -> bytes:
        info = AudioInfo(44_100, 2, STEMS.shape[-1], "WAV", "PCM_16")
        song = SongFacts.of_audio(SongFile.of(SONG, "song.wav").with_sha256(SONG), info)
        form = (audio_format, encoding.bit_depth, written, {"separate": 1.0})
        return FactSheet(1, song, ModelFacts("classic", "f" * 64), tuple(names), "fast", *form).to_json()

    return b"".join(zip_file([stems], names, encoding, fact_sheet))


def plain(status: int, body: bytes = b"", **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **named}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def chunked(body: bytes, ends: bool = True) -> Answer:
    """As TorchServe streams."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(body), 10_000):
            piece = body[start : start + 10_000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if ends:
            handler.wfile.write(b"0\r\n\r\n")

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def told(status: int, name: str, message: str) -> Answer:
    return plain(status, json.dumps({"error": name, "message": message}).encode())


def assert_right(separated: dict[str, Path], out: Path, names: list[str] = NAMES, audio_format: str = "wav") -> None:
    assert separated == {stem: out / f"{stem}.{audio_format}" for stem in names}
    assert sorted(out.iterdir()) == sorted([*separated.values(), out / FACT_SHEET])
    for path, stem in zip(separated.values(), STEMS, strict=False):
        audio, rate_hz = soundfile.read(path, dtype="float32")
        assert rate_hz == 44_100
        np.testing.assert_allclose(audio.T, stem, atol=2**-15)


def test_the_stems_of_the_model() -> None:
    with serving(plain(503, Retry_After="0"), plain(200, json.dumps({"stems": NAMES}).encode())) as server:
        assert Client(server.url, api_key="hush").stems() == tuple(NAMES)
    assert [request.headers["x-api-key"] for request in server.requests] == 2 * ["hush"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"stems": []}'])
def test_what_does_not_say_its_stems_is_no_model(body: bytes) -> None:
    with serving(plain(200, body)) as server, pytest.raises(ServerError, match="check that it is Stemwright"):
        Client(server.url).stems()


@pytest.mark.parametrize("audio_format", ["wav", "flac"])
def test_all_stems(audio_format: AudioFormat, tmp_path: Path) -> None:
    song, out = tmp_path / "song.mp3", tmp_path / "new" / "stems"
    song.write_bytes(SONG)
    with serving(chunked(stems_zip(audio_format=audio_format))) as server:
        separated = Client(server.url).save(song, out, audio_format=audio_format)
    assert_right(separated, out, audio_format=audio_format)
    [request] = server.requests
    assert request.path == "/predictions/stemwright"
    assert request.body == SONG
    assert request.headers["accept"] == f"application/zip, audio/{audio_format}"
    assert "x-stems" not in request.headers
    assert "transfer-encoding" not in request.headers


def test_one_stem_from_bytes(tmp_path: Path) -> None:
    with serving(plain(200, stems_zip(["vocals"]))) as server:
        separated = Client(f"{server.url}/predictions/other/1.0").save(SONG, tmp_path, stems=["vocals"])
    assert_right(separated, tmp_path, ["vocals"])
    [request] = server.requests
    assert request.path == "/predictions/other/1.0"
    assert request.body == SONG
    assert request.headers["x-stems"] == "vocals"


def test_new_stems_take_the_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "vocals.wav").write_bytes(b"old")
    with serving(chunked(stems_zip())) as server:
        assert_right(Client(server.url).save(SONG, tmp_path), tmp_path)


def broken(body: bytes) -> bytes:
    """The zip with one bit of the vocals turned over."""
    middle = len(body) // 4
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def with_member(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"stem")
    return file.getvalue()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (chunked(stems_zip()[:-100]), "damaged zip"),
        (chunked(stems_zip()[: len(stems_zip()) // 2]), "damaged zip"),
        (chunked(broken(stems_zip())), "damaged zip"),
        (chunked(b"<html>welcome</html>"), "damaged zip"),
        (chunked(with_member("../vocals.wav")), "it holds ../vocals.wav"),
        (chunked(stems_zip(audio_format="flac")), "it holds vocals.flac"),
        (chunked(stems_zip(["vocals"])), "sent the stems vocals"),
        (plain(307, Location="/predictions/other"), "answered 307"),
    ],
)
def test_an_answer_that_is_not_whole_leaves_nothing(answer: Answer, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serving(answer) as server, pytest.raises(ServerError, match=message):
        Client(server.url).save(SONG, out, stems=NAMES)
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "lost",
    [
        chunked(stems_zip(), ends=False),
        chunked(stems_zip()[:50_000], ends=False),
        plain(200, stems_zip()[:50_000], Content_Length="100000"),
        hang_up,
    ],
    ids=["last byte", "middle", "with a length", "no answer"],
)
def test_a_lost_connection_is_tried_again(lost: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    song, out = tmp_path / "song.wav", tmp_path / "out"
    song.write_bytes(SONG)
    with serving(lost, lost, chunked(stems_zip())) as server:
        assert_right(Client(server.url).save(song, out), out)
    assert [request.body for request in server.requests] == [SONG] * 3
    with serving(lost) as server, pytest.raises(ServerError, match="no complete answer"):
        Client(server.url, attempts=2).save(song, tmp_path / "none")
    assert len(server.requests) == 2
    assert not (tmp_path / "none").exists()


def test_waits_double_unless_the_server_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    answers = [
        plain(503),
        plain(503),
        plain(503, Retry_After="7"),
        plain(503, Retry_After="99999"),
        chunked(stems_zip()),
    ]
    with serving(*answers) as server:
        Client(server.url).save(SONG, tmp_path)
    assert waits == [0.5, 1, 7, 120]


def test_progress_ends_where_everything_ends(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    song, answer = bytes(3_000_000), stems_zip()
    with serving(plain(200, answer)) as server:
        Client(server.url).save(song, tmp_path, on_progress=lambda *what: told.append(what))
    sent, received = ([step for step in told if step[0] == what] for what in ("send", "receive"))
    assert [done for _, done, _ in sent] == [2**20, 2 * 2**20, 3_000_000]
    assert {total for _, _, total in sent} == {3_000_000}
    assert received[-1] == ("receive", len(answer), len(answer))


def test_a_proxy_gets_its_key_and_the_server_the_songs_name(tmp_path: Path) -> None:
    song = tmp_path / "Jóga.wav"
    song.write_bytes(SONG)
    with serving(chunked(stems_zip())) as server:
        caller = Client(server.url, api_key="hush")
        caller.save(song, tmp_path / "out", bit_depth="16")
    assert "hush" not in repr(caller)
    [request] = server.requests
    assert request.headers["x-api-key"] == "hush"
    assert request.headers["content-disposition"] == "attachment; filename*=UTF-8''J%C3%B3ga.wav"
    assert request.headers["x-bit-depth"] == "16"


def test_audio_in_and_audio_out() -> None:
    audio = np.random.default_rng(1).uniform(-2, 2, (2, 1_000)).astype(np.float32)
    with serving(chunked(stems_zip())) as server:
        stems = Client(server.url).separate(audio, 44_100, stems=NAMES)
    assert list(stems) == NAMES
    for name, stem in zip(NAMES, STEMS, strict=True):
        np.testing.assert_allclose(stems[name], stem, atol=2**-15)
    [request] = server.requests
    sent, rate_hz = soundfile.read(io.BytesIO(request.body), dtype="float32")
    assert rate_hz == 44_100
    assert np.array_equal(sent.T, audio)
    assert request.headers["x-bit-depth"] == "float"


def test_audio_needs_a_rate() -> None:
    with pytest.raises(RequestError, match="give rate_hz"):
        Client("http://127.0.0.1:9").separate(np.zeros((2, 10), np.float32))


def test_a_busy_server_is_asked_again_when_it_says(tmp_path: Path) -> None:
    song, out = tmp_path / "song.wav", tmp_path / "out"
    song.write_bytes(SONG)
    busy = plain(503, Retry_After="1")
    start = time.monotonic()
    with serving(busy, busy, chunked(stems_zip())) as server:
        assert_right(Client(server.url).save(song, out), out)
    assert [request.body for request in server.requests] == [SONG] * 3
    assert time.monotonic() - start > 2


@pytest.mark.parametrize(
    "lost",
    [
        plain(507, b'{"code": 507, "type": "InternalServerException", "message": "Worker died."}'),
        plain(500, b'{"code": 500, "type": "InternalServerException", "message": "Worker died."}'),
        plain(502, b"<html>Bad Gateway</html>"),
        plain(504),
    ],
    ids=["killed", "ended", "no TorchServe", "no answer"],
)
def test_a_server_that_has_lost_its_worker_is_asked_again(
    lost: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    with serving(lost, lost, chunked(stems_zip())) as server:
        assert_right(Client(server.url).save(SONG, tmp_path / "out"), tmp_path / "out")
    assert [request.body for request in server.requests] == [SONG] * 3
    with serving(lost) as server, pytest.raises(ServerError, match=r"answered 50\d"):
        Client(server.url, attempts=2).save(SONG, tmp_path / "none")
    assert len(server.requests) == 2


def test_a_server_that_stays_busy(tmp_path: Path) -> None:
    message = "all workers are busy: ask again later"
    with serving(told(503, "ServerError", message)) as server, pytest.raises(ServerError, match=message):
        Client(server.url, attempts=2).save(SONG, tmp_path)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestError),
        (403, Forbidden),
        (413, AudioTooLong),
        (415, UnsupportedAudio),
        (422, AudioError),
        (500, ServerError),
        (502, ServerError),
    ],
)
def test_errors_arrive_as_what_they_were(status: int, error: type[StemwrightError], tmp_path: Path) -> None:
    with serving(told(status, "Name", "the song is wrong: mend it")) as server, pytest.raises(error) as caught:
        Client(server.url).save(SONG, tmp_path)
    assert type(caught.value) is error
    assert "the song is wrong: mend it" in str(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 500}'])
def test_errors_without_a_message(body: bytes, tmp_path: Path) -> None:
    with serving(plain(415, body)) as server, pytest.raises(ServerError, match="answered 415"):
        Client(server.url).save(SONG, tmp_path)


def test_a_body_beyond_the_limit_of_torchserve(tmp_path: Path) -> None:
    # TorchServe answers before it has read the body, and says nothing.
    body = bytes(8_000_000)
    with serving(plain(413), reads_body=False) as server, pytest.raises(AudioTooLong, match=r"8,000,000 bytes"):
        Client(server.url).save(body, tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with serving(plain(200)) as server:
        url = server.url
    with pytest.raises(ServerError, match="no complete answer") as caught:
        Client(url, attempts=2).save(SONG, tmp_path)
    assert url in str(caught.value)


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    with serving(lambda _: time.sleep(1)) as server, pytest.raises(ServerError, match="no complete answer"):
        Client(server.url, timeout_s=0.2).save(SONG, tmp_path)
    assert len(server.requests) == 1


def test_no_song(tmp_path: Path) -> None:
    with serving(plain(200)) as server, pytest.raises(AudioError, match="is not a file"):
        Client(server.url).save(tmp_path / "song.wav", tmp_path)
    assert server.requests == []


def test_stems_without_a_fact_sheet_are_measured(tmp_path: Path) -> None:
    """An archive of before there were fact sheets sends none."""
    loud = np.zeros((20_000, 2), np.float32)
    loud[5:8, 0], loud[9, 1] = 2, -2
    stem, sent = io.BytesIO(), io.BytesIO()
    soundfile.write(stem, loud, 44_100, "PCM_16", format="WAV")
    with zipfile.ZipFile(sent, "w") as archive:
        archive.writestr("vocals.wav", stem.getvalue())
    described = plain(200, json.dumps({"stems": NAMES, "weights_sha256": "e" * 64}).encode())
    with serving(plain(200, sent.getvalue()), described) as server:
        Client(server.url).save(SONG, tmp_path, stems=["vocals"])
    sheet = FactSheet.from_json((tmp_path / FACT_SHEET).read_bytes())
    assert sheet.files == {"vocals": Written("vocals.wav", len(stem.getvalue()), 1.0, 4)}
    assert (sheet.model.weights_sha256, sheet.song.samples, sheet.bit_depth) == ("e" * 64, 20_000, "16")
    assert sheet.song.sha256 == sha256_of(SONG)
