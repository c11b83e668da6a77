"""The page's files, and the way through to the server, before a stand-in that answers as it is told."""

import http.server
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import urllib3

from serving.page.server import FOLDER, PREDICTIONS, PageServer, page_files, page_server
from tests.torchserve import wait_for

pytestmark = pytest.mark.slow


class Upstream(http.server.BaseHTTPRequestHandler):
    """Sends the first half of its answer at once, the second when it is allowed to; notes who hung up."""

    protocol_version = "HTTP/1.1"
    go_on = threading.Event()
    seen: ClassVar[dict[str, Any]] = {}

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.seen |= {"headers": dict(self.headers), "body": self.rfile.read(size)}
        if len(self.seen["body"]) < size:
            return
        self.send_response(int(self.headers.get("X-Status", "200")))
        for name, value in (
            ("Content-Type", "application/zip"),
            ("Retry-After", "5"),
            ("Transfer-Encoding", "chunked"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"5\r\nfirst\r\n")
        self.seen["hung_up"] = False
        self.connection.settimeout(0.05)
        while not self.go_on.is_set():
            try:
                if self.connection.recv(1) == b"":
                    self.seen["hung_up"] = True
                    return
            except TimeoutError:
                pass
        self.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[type[Upstream]]:
    Upstream.go_on.clear()
    Upstream.seen.clear()
    yield Upstream
    Upstream.go_on.set()


@pytest.fixture
def page(upstream: type[Upstream]) -> Iterator[PageServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), upstream) as server:
        with page_server(f"http://127.0.0.1:{server.server_port}{PREDICTIONS}", api_key="sesame") as page:
            for each in (server, page):
                threading.Thread(target=each.serve_forever, daemon=True).start()
            yield page
            upstream.go_on.set()
            page.shutdown()
        server.shutdown()


def ask(page: PageServer, method: str = "GET", path: str = "/", **options: Any) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request(method, f"http://127.0.0.1:{page.server_port}{path}", timeout=10, **options)


def connect(page: PageServer, body: bytes = b"song") -> socket.socket:
    """A connection on which a song was posted."""
    client = socket.create_connection(("127.0.0.1", page.server_port), timeout=10)
    head = f"POST {PREDICTIONS} HTTP/1.1\r\nHost: 127.0.0.1:{page.server_port}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


def test_the_page_weighs_little() -> None:
    assert sum(len(body) for path, (_, body) in page_files().items() if path != "/openapi.yaml") < 100_000
    lengths = {path.name: path.read_text().count("\n") for path in FOLDER.glob("*.js")}
    assert {name: lines for name, lines in lengths.items() if lines > 200} == {}


def test_the_page_loads_nothing_from_elsewhere_and_nothing_inline() -> None:
    html = page_files()["/"][1].decode()
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
    assert policy in html
    assert "unsafe" not in html
    for path, (_, body) in page_files().items():
        if path != "/openapi.yaml":
            assert "//" not in body.decode().replace("http://www.w3.org/2000/svg", "").replace(" // ", "")


def test_its_files_are_served_and_no_others(page: PageServer) -> None:
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/openapi.yaml"):
        answer = ask(page, path=path)
        assert (answer.status, answer.data) == (200, page_files()[path][1])
        assert answer.headers["x-frame-options"] == "DENY"
    for path in ("/server.py", "/../server.py", "/etc/passwd", "/index.html/"):
        assert (ask(page, path=path).status, ask(page, path=path).json()["error"]) == (404, "NotFound")


def test_bytes_stream_both_ways(page: PageServer, upstream: type[Upstream]) -> None:
    with connect(page, b"x" * 300_000) as client:
        received = b""
        while b"first" not in received:
            received += client.recv(4096)
        assert b"second" not in received, "the first half came before the second was made"
        upstream.go_on.set()
        while data := client.recv(4096):
            received += data
    assert received.endswith(b"6\r\nsecond\r\n0\r\n\r\n")
    assert b"Retry-After: 5" in received
    assert upstream.seen["body"] == b"x" * 300_000


def test_who_hangs_up_is_not_worked_for(page: PageServer, upstream: type[Upstream]) -> None:
    with connect(page) as client:
        client.recv(4096)
    wait_for(lambda: upstream.seen.get("hung_up", False), timeout_s=5)


def test_who_hangs_up_before_the_answer_leaves_no_trace(page: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    head = f"POST {PREDICTIONS} HTTP/1.1\r\nHost: 127.0.0.1:{page.server_port}\r\nX-Request-Id: r-2\r\n"
    client = socket.create_connection(("127.0.0.1", page.server_port), timeout=10)
    client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + bytes(600))
    wait_for(lambda: ask(page, path="/sent/r-2").json() == {"sent_bytes": 600}, timeout_s=5)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # with a reset, which writing meets
    client.close()
    wait_for(lambda: ask(page, path="/sent/r-2").json() == {"sent_bytes": None}, timeout_s=5)
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_the_key_of_the_command_goes_with_requests_that_bring_none(page: PageServer, upstream: type[Upstream]) -> None:
    upstream.go_on.set()
    ask(page, "POST", PREDICTIONS, body=b"song", headers={"X-Stems": "vocals", "Cookie": "a=b"})
    assert upstream.seen["headers"]["X-Api-Key"] == "sesame"
    assert upstream.seen["headers"]["X-Stems"] == "vocals"
    assert "Cookie" not in upstream.seen["headers"]
    ask(page, "POST", PREDICTIONS, body=b"song", headers={"X-Api-Key": "basil"})
    assert upstream.seen["headers"]["X-Api-Key"] == "basil"


def test_what_the_server_refuses_passes(page: PageServer, upstream: type[Upstream]) -> None:
    upstream.go_on.set()
    answer = ask(page, "POST", PREDICTIONS, body=b"song", headers={"X-Status": "415"})
    assert (answer.status, answer.data, answer.headers["retry-after"]) == (415, b"firstsecond", "5")


@pytest.mark.parametrize("headers", [{"Host": "evil.example:80"}, {"Origin": "https://evil.example"}])
def test_other_pages_cannot_use_it(page: PageServer, upstream: type[Upstream], headers: dict[str, str]) -> None:
    for method, path in (("GET", "/"), ("POST", PREDICTIONS)):
        assert ask(page, method, path, headers=headers).status == 403
    assert upstream.seen == {}


def test_what_was_sent_is_counted_while_it_is_sent(page: PageServer) -> None:
    head = f"POST {PREDICTIONS} HTTP/1.1\r\nHost: 127.0.0.1:{page.server_port}\r\nX-Request-Id: r-1\r\n"
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=10) as client:
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + bytes(600))
        wait_for(lambda: ask(page, path="/sent/r-1").json() == {"sent_bytes": 600}, timeout_s=5)
    wait_for(lambda: ask(page, path="/sent/r-1").json() == {"sent_bytes": None}, timeout_s=5)


def test_a_server_that_is_away_is_told_so() -> None:
    with page_server(f"http://127.0.0.1:9{PREDICTIONS}") as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        answer = ask(page, "POST", PREDICTIONS, body=b"song")
        page.shutdown()
    assert (answer.status, answer.json()["error"]) == (503, "ServerError")
    assert "check that it runs" in answer.json()["message"]


def test_requests_it_cannot_pass_on_are_refused(page: PageServer) -> None:
    assert ask(page, "POST", "/predictions/other", body=b"song").status == 404
    no_length = ask(page, "POST", PREDICTIONS, body=iter([b"song"]))
    assert (no_length.status, json.loads(no_length.data)["error"]) == (411, "RequestError")


def test_the_command_opens_the_page_and_ends_at_a_signal(tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "serving", "page", "--server", "http://127.0.0.1:9"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"BROWSER": str(browser)},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("page: http://127.0.0.1:")
    assert f"to http://127.0.0.1:9{PREDICTIONS}" in said
    wait_for(lambda: opened.is_file() and opened.read_text().strip() == said.split()[1])
    assert urllib3.request("GET", said.split()[1], timeout=10).data == page_files()["/"][1]
    process.terminate()
    assert process.wait(timeout=10) == 0
    assert process.stdout.read() == "stopped\n"
