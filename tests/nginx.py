"""infra/proxy/nginx.conf in a real nginx, and how to ask it."""

import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import urllib3

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "infra" / "proxy" / "nginx.conf"
IS_THERE = all(map(shutil.which, ("nginx", "openssl")))
KEY = "0123456789ab" * 4
"""As long as the first one of `make up`."""


@contextmanager
def proxy_of(upstream_port: int | str, folder: Path, limit: str = "200m") -> Iterator[str]:
    """The address of an nginx in front of a port of this machine, with a key and a certificate of its own in `folder`."""
    (folder / "keys.map").write_text(f'"{KEY}" "ali";\n')
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    keys = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*command, *keys], check=True, capture_output=True)
    port = free_port()
    config = CONFIG.read_text().replace("serve:8080", f"127.0.0.1:{upstream_port}")
    config = config.replace("listen 8443", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{folder}/")
    config = config.replace("root /etc/stemwright/page;", f"root {ROOT / 'serving' / 'page'};")
    config = config.replace("root /etc/stemwright;", f"root {ROOT / 'serving' / 'endpoint'};")
    (folder / "nginx.conf").write_text(config.replace("200m", limit))
    user = "user root;" if os.getuid() == 0 else ""  # its workers would else be nobody, whom `folder` is closed to
    nginx = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-g", f"daemon off; {user}"])
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def post(
    proxy: str, body: bytes = bytes(10), path: str = "/predictions/stemwright", key: str | None = KEY, **headers: str
) -> urllib3.BaseHTTPResponse:
    """Without looking at the certificate, and with the key unless another one is given."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        named["x-api-key"] = key
    with urllib3.PoolManager(cert_reqs=ssl.CERT_NONE, assert_hostname=False, retries=False) as pool:
        return pool.request("POST", proxy + path, body=body, headers=named, timeout=60)


def get(proxy: str, path: str) -> urllib3.BaseHTTPResponse:
    """Without a key."""
    with urllib3.PoolManager(cert_reqs=ssl.CERT_NONE, assert_hostname=False, retries=False) as pool:
        return pool.request("GET", proxy + path, timeout=60)
