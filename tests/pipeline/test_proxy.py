"""The proxy in front of a stand-in for TorchServe that answers as it is told, and of the real one. Runs where nginx is."""

import http.server
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import pytest

from serving.endpoint.answer import Answer
from serving.errors import AudioTooLong, StemwrightError, StorageError
from tests import nginx
from tests.nginx import get, post, proxy_of
from tests.torchserve import MAX_DURATION_S, Server, encoded, metrics, stems_in, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),  # its certificate is its own
    pytest.mark.skipif(not nginx.IS_THERE, reason="nginx or openssl is not installed"),
]
FORM = "multipart/form-data; boundary=x"


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers with the status, the Retry-After and the X-Error that it is asked for, and with the headers that it saw."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(int(self.headers.get("x-status", "200")))
        self.send_header("x-request-id", "of-torchserve")
        for asked, name in (("x-retry", "Retry-After"), ("x-fail", "X-Error")):
            if asked in self.headers:
                self.send_header(name, self.headers[asked])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        with proxy_of(upstream.server_port, tmp_path_factory.mktemp("proxy"), limit="1m") as address:
            yield address
        upstream.shutdown()


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The proxy of the real server."""
    with proxy_of(server.port, tmp_path_factory.mktemp("front")) as address:
        yield address


def test_a_key_opens_and_goes_no_further(proxy: str) -> None:
    answer = post(proxy)
    assert answer.status == 200
    assert nginx.KEY not in answer.data.decode()
    for refused in (post(proxy, key=None), post(proxy, key="basil"), post(proxy, key="")):
        assert (refused.status, refused.json()["error"]) == (401, "Unauthorized")


def test_one_id_goes_all_the_way(proxy: str) -> None:
    answer = post(proxy, x_request_id="mine-1")
    assert answer.headers.getlist("x-request-id") == ["mine-1"]
    assert answer.json()["x-request-id"] == "mine-1"
    made = post(proxy, x_request_id="two words")
    assert len(made.headers["x-request-id"]) == 32
    assert made.json()["x-request-id"] == made.headers["x-request-id"]


def test_every_503_says_when_to_try_again(proxy: str) -> None:
    assert post(proxy, x_status="503").headers.getlist("retry-after") == ["5"]
    assert post(proxy, x_status="503", x_retry="7").headers.getlist("retry-after") == ["7"]
    assert "retry-after" not in post(proxy).headers


@pytest.mark.parametrize("status", ["500", "502", "504", "507"])
def test_a_lost_worker_is_a_503_that_says_when_to_try_again(proxy: str, status: str) -> None:
    answer = post(proxy, x_status=status)
    assert (answer.status, answer.json()["error"], answer.headers["retry-after"]) == (503, "ServerError", "5")
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("error", [AudioTooLong("too long"), StemwrightError("a mistake"), StorageError("no “bucket”")])
def test_what_the_server_says_itself_passes(proxy: str, error: StemwrightError) -> None:
    said = Answer("id-1", {}, 1)
    said.refuse(error)
    answer = post(proxy, x_status=str(error.status), x_fail=said.headers["X-Error"])
    assert (answer.status, answer.headers["content-type"]) == (error.status, "application/json")
    assert answer.json() == {"error": type(error).__name__, "message": str(error), "request_id": "id-1"}


def test_a_body_over_the_limit_gets_json(proxy: str) -> None:
    for answer in (post(proxy, bytes(1_100_000)), post(proxy, x_status="413")):
        assert (answer.status, answer.json()["error"]) == (413, "AudioTooLong")


@pytest.mark.parametrize(
    "path",
    [
        "/models",
        "/server.py",
        "/../server.py",
        "/nothing.js",
        "/metrics",
        "/predictions/other",
        "/invocations",
        "/api-description",
    ],
)
def test_nothing_else_is_reachable(proxy: str, path: str) -> None:
    for answer in (get(proxy, path), post(proxy, path=path)):
        assert answer.status in (404, 405)
        assert answer.json()["error"]


def test_the_page_is_there_and_is_only_read(proxy: str) -> None:
    for path, content_type in (
        ("/", "text/html"),
        ("/app.js", "text/javascript"),
        ("/openapi.yaml", "application/yaml"),
    ):
        answer = get(proxy, path)
        assert (answer.status, answer.headers["content-type"]) == (200, content_type)
        assert (answer.headers["x-content-type-options"], answer.headers["x-frame-options"]) == ("nosniff", "DENY")
        refused = post(proxy, path=path)
        assert (refused.status, refused.json()["error"]) == (405, "RequestError")
    assert get(proxy, "/").headers["cache-control"] == "no-cache"


def form(body: bytes, disposition: str = 'form-data; name="song"; filename="a.wav"') -> bytes:
    return f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + body + b"\r\n--x--\r\n"


def test_a_song_that_curl_calls_a_form_is_a_song(front: str, song: bytes, mixture: np.ndarray) -> None:
    answer = post(front, song, content_type="application/x-www-form-urlencoded")
    assert answer.status == 200
    assert stems_in(answer.data)["vocals"].shape == mixture.shape
    assert stems_in(post(front, form(song), content_type=FORM).data)["vocals"].shape == mixture.shape


@pytest.mark.parametrize("content_type", [FORM, "multipart/form-data; boundary="])
def test_a_broken_form_is_the_callers_mistake(front: str, content_type: str) -> None:
    answer = post(front, form(b"a song", "nonsense"), content_type=content_type)
    assert (answer.status, answer.json()["error"]) == (400, "RequestError")


def test_a_song_too_long_is_told_so(front: str) -> None:
    answer = post(front, encoded(np.zeros((8_000 * MAX_DURATION_S + 1, 1)), 8_000, "FLAC"))
    assert (answer.status, answer.json()["error"]) == (413, "AudioTooLong")
    assert f"longer than {MAX_DURATION_S} s" in answer.json()["message"]


def test_random_forms_get_no_answer_of_5xx_but_503(
    front: str, server: Server, times: Callable[[int, int], int]
) -> None:
    chance, worker = random.Random(0), server.worker_pid()
    whole = form(encoded(np.random.default_rng(0).uniform(-0.5, 0.5, (800, 1)), 8_000))
    types = [FORM, FORM, "multipart/form-data", "multipart/mixed; boundary=x", "application/x-www-form-urlencoded"]
    types += ['multipart/form-data; boundary="', "multipart/form-data; boundary=x; charset=y"]
    headers = [b"Content-Type: multipart/mixed", b"Content-Length: x", b"Content-Transfer-Encoding: y", b"a", b""]
    for _ in range(times(30, 2_000)):
        body = bytearray(whole.replace(b"\r\n\r\n", b"\r\n" + chance.choice(headers) + b"\r\n\r\n", 1))
        for _ in range(chance.choice([0, 1, 5])):
            body[(at := chance.randrange(200)) : at + chance.randrange(9)] = chance.randbytes(chance.randrange(3))
        answer = post(front, bytes(body), content_type=chance.choice(types))
        assert answer.status == 503 or answer.status < 500, answer.data
    assert server.worker_pid() == worker


def requests_taken(server: Server) -> float:
    return sum(value for name, value in metrics(server).items() if name.startswith("ts_inference_requests_total"))


def test_a_caller_of_a_killed_worker_gets_a_503(front: str, server: Server, mixture: np.ndarray) -> None:
    slow = encoded(np.tile(mixture, (3, 1)), audio_format="FLAC")
    worker, before = psutil.Process(server.worker_pid()), requests_taken(server)
    worker.suspend()  # so that it certainly holds the song and has sent nothing
    with ThreadPoolExecutor(1) as callers:
        asked = callers.submit(post, front, slow)
        wait_for(lambda: requests_taken(server) > before)
        time.sleep(1)  # from there it takes milliseconds to the worker
        worker.kill()
        answer = asked.result()
    assert (answer.status, answer.json()["error"], answer.headers["retry-after"]) == (503, "ServerError", "5")
    assert post(front, slow).status == 200, "on the next try"
