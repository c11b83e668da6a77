"""Serves the page on this machine and passes its requests on to a separation server.

Page and server share an origin, so no CORS is needed. Bytes stream both ways. When a browser hangs up, the connection to
the server closes and the server stops its work.
"""

import http.client
import json
import re
import select
import socket
import threading
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PREDICTIONS = "/predictions/stemwright"
SENT = "/sent/"
PASSED_UP = re.compile("accept|content-(type|disposition|length)|describe|x-[a-z-]+")
PASSED_DOWN = re.compile("content-(type|disposition|length)|retry-after|x-[a-z-]+")
PIECE_BYTES = 1 << 16
TIMEOUT_S = 600
"""The longest silence of the server that is tolerated."""


def serve_page(endpoint: str, api_key: str | None = None) -> None:
    """Serve the page on a free port of this machine, and open it in the browser, until Ctrl-C.

    `endpoint` is the full address that songs are posted to. `api_key` goes with every request that brings none.
    """
    with page_server(endpoint, api_key) as server:
        address = f"http://{LOOPBACK}:{server.server_port}/"
        print(f"page: {address} sends songs to {endpoint}; Ctrl-C stops it", flush=True)
        with suppress(KeyboardInterrupt):
            webbrowser.open(address)
            server.serve_forever()
        print("stopped", flush=True)


def page_server(endpoint: str, api_key: str | None = None) -> "PageServer":
    return PageServer(endpoint, api_key, page_files())


def page_files() -> dict[str, tuple[str, bytes]]:
    """Content type and bytes of every file of the page, by path."""
    files = {
        f"/{path.name}": (TYPES[path.suffix], path.read_bytes()) for path in FOLDER.iterdir() if path.suffix in TYPES
    }
    files["/"] = files.pop("/index.html")
    files["/openapi.yaml"] = ("application/yaml", (FOLDER.parent / "endpoint" / "openapi.yaml").read_bytes())
    return files


class PageServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, endpoint: str, api_key: str | None, files: Mapping[str, tuple[str, bytes]]) -> None:
        super().__init__((LOOPBACK, 0), PageHandler)
        self.endpoint, self.api_key, self.files = endpoint, api_key, files
        self.sent_bytes: dict[str, int] = {}
        """Bytes of a song that have gone to the server, by X-Request-Id, while it is sent."""


class PageHandler(BaseHTTPRequestHandler):
    """One connection from the browser."""

    server: PageServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self.is_ours():
            self.tell(403, "Forbidden", "the page belongs to this machine: open it under its own address")
        elif self.path in self.server.files:
            self.reply(200, *self.server.files[self.path])
        elif self.path.startswith(SENT):
            sent_bytes = self.server.sent_bytes.get(self.path.removeprefix(SENT))
            self.reply(200, "application/json", json.dumps({"sent_bytes": sent_bytes}).encode())
        else:
            self.tell(404, "NotFound", "there is no such file: open /")

    def do_POST(self) -> None:
        if not self.is_ours():
            self.tell(403, "Forbidden", "the page belongs to this machine: open it under its own address")
        elif self.path != PREDICTIONS:
            self.tell(404, "NotFound", f"there is only {PREDICTIONS}: post a song there")
        elif not self.headers.get("Content-Length", "").isdecimal():
            self.tell(411, "RequestError", "the request does not say how long it is: send Content-Length")
        else:
            self.pass_through()

    def is_ours(self) -> bool:
        """False if another page asks, or a foreign host name that resolves to this machine."""
        host = self.headers.get("Host", "")
        ours = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        return host in ours and self.headers.get("Origin", f"http://{host}") == f"http://{host}"

    def pass_through(self) -> None:
        """Forward the request to the server and stream back its answer."""
        self.close_connection = True  # otherwise reading to the end would look like hanging up
        upstream = connection(self.server.endpoint)
        try:
            self.send_up(upstream)
            with closed_with(self.connection, upstream):
                self.send_down(upstream.getresponse())
        except (OSError, http.client.HTTPException) as error:
            if not self.wfile_used:
                told = f"{self.server.endpoint} gives no answer ({error}): check that it runs"
                self.tell(503, "ServerError", told)
        finally:
            self.server.sent_bytes.pop(self.headers.get("X-Request-Id", ""), None)
            upstream.close()

    wfile_used = False

    def send_up(self, upstream: http.client.HTTPConnection) -> None:
        upstream.putrequest("POST", urlsplit(self.server.endpoint).path, skip_accept_encoding=True)
        headers = {name: value for name, value in self.headers.items() if PASSED_UP.fullmatch(name.lower())}
        if self.server.api_key and "x-api-key" not in map(str.lower, headers):
            headers["X-Api-Key"] = self.server.api_key
        for name, value in headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        left_bytes, sent_bytes = int(self.headers["Content-Length"]), 0
        while left_bytes:
            piece = self.rfile.read1(min(PIECE_BYTES, left_bytes))
            if not piece:
                raise http.client.HTTPException("the browser hung up")
            try:
                upstream.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                break  # the server refused early and has sent its reason
            left_bytes -= len(piece)
            sent_bytes += len(piece)
            self.server.sent_bytes[self.headers.get("X-Request-Id", "")] = sent_bytes

    def send_down(self, answer: http.client.HTTPResponse) -> None:
        self.wfile_used = True
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if PASSED_DOWN.fullmatch(name.lower()):
                self.send_header(name, value)
        chunked = answer.getheader("Content-Length") is None
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        while piece := answer.read1(PIECE_BYTES):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def tell(self, status: int, error: str, message: str) -> None:
        self.close_connection = True  # the body may be unread
        self.reply(status, "application/json", json.dumps({"error": error, "message": message}).encode())

    def reply(self, status: int, content_type: str, body: bytes) -> None:
        with suppress(ConnectionError):  # whoever asked may have gone
            self.send_whole(status, content_type, body)

    def send_whole(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-cache"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: a terminal is no place for every request."""


def connection(endpoint: str) -> http.client.HTTPConnection:
    parts = urlsplit(endpoint)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)


def has_gone(browser: socket.socket) -> bool:
    """True if a connection that can be read has only its end to give, or a reset."""
    try:
        return not browser.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


@contextmanager
def closed_with(browser: socket.socket, upstream: http.client.HTTPConnection) -> Iterator[None]:
    """Shut down the connection to the server as soon as the browser hangs up, even while nothing is sent."""
    done = threading.Event()
    server = upstream.sock

    def watch() -> None:
        while not done.is_set():
            readable, _, _ = select.select([browser], [], [], 0.2)
            if readable and not done.is_set():
                if has_gone(browser):
                    with suppress(OSError):
                        server.shutdown(socket.SHUT_RDWR)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
