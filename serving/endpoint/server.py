"""The server: TorchServe on one model archive, supervised from start to end.

This process fetches the archive, starts TorchServe and stays its parent. It reports when the endpoint really answers, as
TorchServe's /ping says Healthy while nothing works, or why it never will. It leaves no process and no file behind.
"""

import io
import json
import random
import signal
import socket
import subprocess
import tempfile
import time
import wave
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import urllib3

from serving.endpoint.disconnects import connections
from serving.endpoint.drain import Drain
from serving.endpoint.torchserve import LOOPBACK, MODEL_NAME, TorchServe, lay_out, running
from serving.errors import ServerError
from serving.settings import Settings, print_settings

LINGER_S = 1


def serve(model: str, settings: Settings, commercial: bool = False) -> int:
    """Serve a model archive until SIGTERM or SIGINT, then finish requests in progress; a second signal cuts them.

    `commercial` refuses a model whose licences do not allow commercial use, and later versions of an alias, too.

    Returns 0 after a signal. Raises LicenceError for a refused model, ArchiveError or StorageError if there is no archive to
    serve, ServerError if the server does not start in time or is lost.
    """
    # Imported here, like the client below: it is slow, and `ready` runs every few seconds.
    from serving.endpoint.champion import following
    from serving.model.sealed import read_sealed
    from serving.model.source import resolve, version_behind

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    require_temporary_folder()
    try:
        with tempfile.TemporaryDirectory(prefix="stemwright-") as name:
            folder = Path(name)
            print(f"serving {model} with\n{print_settings(settings)}", flush=True)
            settings, inner_ports = take_ports(settings)
            served = version_behind(model)
            archive = resolve(model, folder)
            if commercial:
                facts, _ = read_sealed(archive)
                facts.licences.require_commercial(model)
            lay_out(folder, archive, settings, inner_ports, served)
            with running(folder, settings) as process:
                wait_until_ready(process, settings, folder)
                try:
                    with following(model, served, folder, settings, commercial):
                        watch_java(process, settings)
                except KeyboardInterrupt:
                    drain(process, settings, Drain(folder))
    except KeyboardInterrupt:
        pass
    print("stopped", flush=True)
    return 0


def require_temporary_folder() -> None:
    """Raises ServerError where nothing can be written for a while, as in a container that is all read-only."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ServerError(
            "there is no folder for temporary files: mount one with --tmpfs /tmp, or set TMPDIR"
        ) from error


def ready(settings: Settings) -> bool:
    """True if a worker holds the model and has separated noise with it. Asks the management port, which must not be set to
    0."""
    return any(worker["status"] == "READY" for worker in describe(settings).get("workers", []))


def drain(process: TorchServe, settings: Settings, stop: Drain) -> None:
    """Let workers finish their requests and TorchServe send the answers, within the grace period. New requests are refused."""
    print(f"stopping: requests in progress have {settings.grace_period_s} s, a second signal cuts it", flush=True)
    stop.begin()
    begun = time.monotonic()
    while process.java.poll() is None:
        callers = connections(settings.http_port) or []
        # A client that is still connected sends a song, and is refused soon, or is idle, and need not be waited for.
        served = not callers or time.monotonic() - begun > LINGER_S
        if served and stop.quiet and not any(caller.unsent_bytes for caller in callers):
            return
        if time.monotonic() - begun > settings.grace_period_s:
            print(
                "cut the requests that were still in progress: STEMWRIGHT_GRACE_PERIOD_S gives them longer", flush=True
            )
            return
        time.sleep(0.1)


def take_ports(settings: Settings) -> tuple[Settings, tuple[int, int, int]]:
    """Choose a free port for every setting of 0, two for gRPC and one for the first worker.

    gRPC cannot be switched off. The worker needs its port if /tmp is mounted noexec, where Unix sockets fail. Raises
    ServerError for a port in use.
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
            metrics_port=take(settings.metrics_host, settings.metrics_port),
        )
        return settings, (take(LOOPBACK, 0), take(LOOPBACK, 0), take(LOOPBACK, 0))


def describe(settings: Settings, customized: bool = False, timeout_s: float = 5) -> dict[str, Any]:
    """Ask TorchServe about the model; {} without an answer. `customized` adds the handler's facts, which wait for songs."""
    address = f"http://{LOOPBACK}:{settings.management_port}/models/{MODEL_NAME}?customized={str(customized).lower()}"
    try:
        response = urllib3.request("GET", address, timeout=timeout_s, retries=False)
    except urllib3.exceptions.HTTPError:
        return {}
    if response.status != 200:
        return {}
    facts: dict[str, Any] = json.loads(response.data)[0]
    return facts


def wait_until_ready(process: TorchServe, settings: Settings, folder: Path) -> None:
    """Wait until a second of noise has been separated over HTTP. Raises ServerError as soon as that cannot happen any more."""
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
    facts = describe(settings, customized=True, timeout_s=settings.startup_timeout_s).get("customizedMetadata")
    if facts is None:
        raise ServerError(
            f"the model did not describe itself in {settings.startup_timeout_s} s: raise STEMWRIGHT_STARTUP_TIMEOUT_S"
        )
    stems, device, weights = ", ".join(facts["stems"]), facts.get("device", "a device"), facts["weights_sha256"][:12]
    print(
        f"ready: {endpoint(settings)} gives {stems} on {device} (weights sha256 {weights}…, "
        f"management port {settings.management_port}, metrics port {settings.metrics_port})",
        flush=True,
    )


def separate_noise(address: str, folder: Path, timeout_s: int) -> None:
    """Send a second of CD audio as a song is sent. Raises StemwrightError if no stems come back."""
    from serving.client import Client

    noise = io.BytesIO()
    with wave.open(noise, "wb") as file:
        file.setparams((2, 2, 44_100, 44_100, "NONE", ""))
        file.writeframes(random.randbytes(4 * 44_100))
    Client(address, timeout_s=timeout_s, attempts=1).save(noise.getvalue(), folder / "noise")


def endpoint(settings: Settings) -> str:
    """The address to send songs to, from this machine."""
    host = LOOPBACK if settings.http_host == "0.0.0.0" else settings.http_host
    return f"http://{host}:{settings.http_port}/predictions/{MODEL_NAME}"


def watch_java(process: TorchServe, settings: Settings) -> NoReturn:
    """Raise ServerError when Java ends, or when no worker is ready for as long as a start may take."""
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
