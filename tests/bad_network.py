"""A network that fails on demand: an HTTP proxy between a test and a real S3 server."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

BLOCK_BYTES = 1 << 14


@dataclass(frozen=True)
class Request:
    """A request of a client: the key with its bucket, unquoted, and the Range header."""

    method: str
    path: str
    range: str


@dataclass(frozen=True)
class Fault:
    """A fault in one answer."""

    status: int = 0
    """Instead of the server's answer, with `code` in the body."""
    code: str = ""
    silence_s: float = 0
    """Before the answer."""
    cut_bytes: int | None = None
    """The connection ends after so much of the body."""
    flip: bool = False
    """The first byte of the body is another one."""


@dataclass
class BadNetwork:
    """`fault` decides on each request that asks for an object or sends one; all of those are in `requests`."""

    upstream: str
    fault: Callable[[Request], Fault | None] = lambda _: None
    bytes_per_s: float = float("inf")
    requests: list[Request] = field(default_factory=list)
    sent_bytes: int = 0

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address."""
        network = self

        class Proxy(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, unquote(urlsplit(self.path).path), self.headers.get("Range", ""))
                fault = None
                if self.command in ("GET", "PUT") and "list-type" not in self.path and "uploads" not in self.path:
                    network.requests.append(request)
                    fault = network.fault(request)
                fault = fault or Fault()
                time.sleep(fault.silence_s)
                if fault.status:
                    self.answer(fault.status, f"<Error><Code>{fault.code}</Code></Error>".encode())
                    return
                upstream = http.client.HTTPConnection(urlsplit(network.upstream).netloc, timeout=30)
                try:
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    for name, value in self.headers.items():
                        if name.lower() not in ("expect", "connection"):
                            upstream.putheader(name, value)
                    upstream.endheaders(body)
                    self.relay(upstream.getresponse(), fault)
                except (OSError, http.client.HTTPException):
                    self.close_connection = True  # the server is gone, or the client
                finally:
                    upstream.close()

            do_PUT = do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

            def relay(self, response: http.client.HTTPResponse, fault: Fault) -> None:
                if response.chunked:  # a listing
                    self.answer(response.status, response.read())
                    return
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                left = fault.cut_bytes
                while block := response.read(BLOCK_BYTES if left is None else min(left, BLOCK_BYTES)):
                    if fault.flip:
                        block, fault = bytes([block[0] ^ 1]) + block[1:], Fault(cut_bytes=fault.cut_bytes)
                    self.wfile.write(block)
                    network.sent_bytes += len(block)
                    left = None if left is None else left - len(block)
                    time.sleep(len(block) / network.bytes_per_s)
                if left == 0:
                    self.close_connection = True

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
