"""Follows an alias of MLflow's registry, `models:/name@champion`, while the server runs.

A new version is fetched and checked, loaded beside the present one and made the default; then the present one is unloaded
once its workers are idle. If a step fails, the present one stays and the log says why.
"""

import json
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import urllib3

from serving.endpoint.registered import write_number
from serving.endpoint.torchserve import LOOPBACK, MODEL_NAME
from serving.errors import ServerError, StemwrightError
from serving.model.sealed import read_sealed
from serving.model.source import resolve, version_behind
from serving.settings import Settings

INTERVAL_S = 30.0
IDLE_S = 1.5
"""A worker that took up no request for so long has none: between queue and worker a request takes less."""


@contextmanager
def following(
    model: str, served: str | None, folder: Path, settings: Settings, commercial: bool = False
) -> Iterator[None]:
    """Within the block, follow the alias `model`, starting from version `served`; SIGHUP checks at once.

    `commercial` refuses a version whose licences do not allow commercial use. Does nothing if `served` is None, for a model
    that is no alias.
    """
    if served is None:
        yield
        return
    champion = Champion(model, served, folder, settings, commercial)
    before = signal.signal(signal.SIGHUP, champion.asked)
    champion.thread.start()
    try:
        yield
    finally:
        champion.ended.set()
        champion.look.set()
        signal.signal(signal.SIGHUP, before)


class Champion:
    """The served version, and the thread that looks for another."""

    def __init__(self, model: str, served: str, folder: Path, settings: Settings, commercial: bool) -> None:
        self.model, self.served, self.commercial = model, served, commercial
        self.folder, self.settings = folder, settings
        self.loaded = 0
        self.look, self.ended = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.work, name="champion", daemon=True)

    def asked(self, _number: int, _frame: FrameType | None) -> None:
        self.look.set()

    def work(self) -> None:
        while True:
            self.look.wait(INTERVAL_S)
            self.look.clear()
            if self.ended.is_set():
                return
            try:
                wanted = version_behind(self.model)
                if wanted is not None and wanted != self.served:
                    replaced = self.change_to(wanted)
                    print(f"serving version {wanted} of {self.model} in place of {self.served}", flush=True)
                    self.served = wanted
                    self.unload(replaced["modelVersion"], Path(replaced["modelUrl"]).name)
            except (StemwrightError, urllib3.exceptions.HTTPError, OSError, zipfile.BadZipFile) as error:
                print(f"version {self.served} of {self.model} stays: {error}", flush=True)

    def change_to(self, wanted: str) -> Any:
        """Load another version and make it the default; returns TorchServe's facts of the old one.

        Raises StemwrightError, HTTPError, OSError or BadZipFile and leaves the present one as it was.
        """
        (present,) = self.ask("GET", "")
        self.loaded += 1
        number = f"{1000 + self.loaded}.0"  # TorchServe's version, which must differ each time
        unpacked = self.folder / "store" / f"{MODEL_NAME}-{number}"
        try:
            self.unpack(wanted, unpacked, number)
            try:
                # A worker that answers has separated noise.
                self.ask("POST", f"?url={unpacked.name}&model_name={MODEL_NAME}&initial_workers=1&synchronous=true")
                self.ask("PUT", f"/{MODEL_NAME}/{number}/set-default")
            except StemwrightError:
                self.ask("DELETE", f"/{MODEL_NAME}/{number}", may_fail=True)
                raise
        except (StemwrightError, urllib3.exceptions.HTTPError, OSError, zipfile.BadZipFile):
            shutil.rmtree(unpacked, ignore_errors=True)
            raise
        return present

    def unpack(self, wanted: str, unpacked: Path, number: str) -> None:
        """Fetch and check the archive, and unpack it for TorchServe with this deployment's limits."""
        fetched = self.folder / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        fetched.mkdir()
        archive = resolve(f"{self.model.partition('@')[0]}/{wanted}", fetched)
        facts, _ = read_sealed(archive)
        if self.commercial:
            facts.licences.require_commercial(f"version {wanted} of {self.model}")
        with zipfile.ZipFile(archive) as members:
            members.extractall(unpacked)
        shutil.rmtree(fetched)
        shutil.copy(self.folder / "store" / "model-config.yaml", unpacked)
        write_number(unpacked, wanted)
        manifest = unpacked / "MAR-INF" / "MANIFEST.json"
        facts = json.loads(manifest.read_text())
        facts["model"]["modelVersion"] = number
        manifest.write_text(json.dumps(facts))

    def unload(self, number: str, name: str) -> None:
        """Unload a version once it has had no request for a while; workers that never get idle are cut.

        Raises ServerError if TorchServe keeps the version.
        """
        deadline = time.monotonic() + self.settings.request_timeout_s
        idle_since = time.monotonic()
        while time.monotonic() - idle_since < IDLE_S and time.monotonic() < deadline:
            if self.at_work(number):
                idle_since = time.monotonic()
            time.sleep(0.1)
        try:
            self.ask("DELETE", f"/{MODEL_NAME}/{number}")
        except ServerError:
            # On newer Java, TorchServe interrupts its own wait for the worker, which has ended: none is left to wait for.
            self.ask("DELETE", f"/{MODEL_NAME}/{number}")
        shutil.rmtree(self.folder / "store" / name, ignore_errors=True)

    def at_work(self, number: str) -> bool:
        """True while requests wait for workers of a version, or one of its workers holds the lock of those that work."""
        (facts,) = self.ask("GET", f"/{MODEL_NAME}/{number}")
        pids = {worker["pid"] for worker in facts["workers"]}
        waiting = facts["jobQueueStatus"]["pendingRequests"] > 0
        return waiting or bool(pids & holders(self.folder / "working"))

    def ask(self, method: str, path: str, may_fail: bool = False) -> Any:
        """Send a request to TorchServe's management port; returns its answer. Raises ServerError if it refuses."""
        path = path or f"/{MODEL_NAME}"
        address = f"http://{LOOPBACK}:{self.settings.management_port}/models{path}"
        response = urllib3.request(method, address, timeout=self.settings.startup_timeout_s, retries=False)
        if response.status >= 400 and not may_fail:
            raise ServerError(f"TorchServe does not load it: {response.data.decode(errors='replace').strip()[:300]}")
        return response.json()


def holders(lock: Path) -> set[int]:
    """The processes that hold a lock on a file, from Linux's /proc/locks."""
    if not lock.exists():
        return set()
    inode = str(lock.stat().st_ino)
    fields = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(line[4]) for line in fields if "->" not in line and line[5].rsplit(":", 1)[-1] == inode}
