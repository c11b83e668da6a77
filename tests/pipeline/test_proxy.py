"""infra/proxy/nginx.conf in a real nginx, before a stand-in for TorchServe. Runs where nginx and openssl are."""

import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

CONFIG = Path(__file__).parent.parent.parent / "infra" / "proxy" / "nginx.conf"
NEEDED = ("nginx", "openssl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning"),  # its certificate is its own
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason="nginx or openssl is not installed"),
]


class Upstream(http.server.BaseHTTPRequestHandler):
    """Answers with the status and the Retry-After that it is asked for, and with the headers that it saw."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(int(self.headers.get("x-status", "200")))
        self.send_header("x-request-id", "of-torchserve")
        if "x-retry" in self.headers:
            self.send_header("Retry-After", self.headers["x-retry"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "keys.map").write_text('"sesame" "ali";\n')
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    keys = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*command, *keys], check=True, capture_output=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream) as upstream:
        threading.Thread(target=upstream.serve_forever, daemon=True).start()
        port = free_port()
        config = CONFIG.read_text().replace("serve:8080", f"127.0.0.1:{upstream.server_port}")
        config = config.replace("listen 8443", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{folder}/")
        (folder / "nginx.conf").write_text(config.replace("200m", "1m"))
        nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"])
        try:
            for _ in range(100):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert nginx.poll() is None
                time.sleep(0.05)
            yield f"https://127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait(timeout=10)
            upstream.shutdown()


def post(proxy: str, path: str = "/predictions/stemwright", size: int = 10, **headers: str) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(cert_reqs=ssl.CERT_NONE, assert_hostname=False, retries=False) as pool:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return pool.request("POST", proxy + path, body=bytes(size), headers=named, timeout=10)


def test_a_key_opens_and_goes_no_further(proxy: str) -> None:
    answer = post(proxy, x_api_key="sesame")
    assert answer.status == 200
    assert "sesame" not in answer.data.decode()
    for refused in (post(proxy), post(proxy, x_api_key="basil"), post(proxy, x_api_key="")):
        assert (refused.status, refused.json()["error"]) == (401, "Unauthorized")


def test_one_id_goes_all_the_way(proxy: str) -> None:
    answer = post(proxy, x_api_key="sesame", x_request_id="mine-1")
    assert answer.headers.getlist("x-request-id") == ["mine-1"]
    assert answer.json()["x-request-id"] == "mine-1"
    made = post(proxy, x_api_key="sesame", x_request_id="two words")
    assert len(made.headers["x-request-id"]) == 32
    assert made.json()["x-request-id"] == made.headers["x-request-id"]


def test_every_503_says_when_to_try_again(proxy: str) -> None:
    assert post(proxy, x_api_key="sesame", x_status="503").headers.getlist("retry-after") == ["5"]
    assert post(proxy, x_api_key="sesame", x_status="503", x_retry="7").headers.getlist("retry-after") == ["7"]
    assert "retry-after" not in post(proxy, x_api_key="sesame").headers


def test_a_body_over_the_limit_gets_json(proxy: str) -> None:
    answer = post(proxy, size=1_100_000, x_api_key="sesame")
    assert (answer.status, answer.json()["error"]) == (413, "AudioTooLong")


@pytest.mark.parametrize("path", ["/", "/models", "/metrics", "/predictions/other", "/invocations", "/api-description"])
def test_nothing_else_is_reachable(proxy: str, path: str) -> None:
    assert post(proxy, path, x_api_key="sesame").status == 404
