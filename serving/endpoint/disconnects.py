"""Callers who hang up, of which TorchServe does not inform its workers.

TorchServe logs the start of every answer with the caller's address, in the thread of its worker. The worker reads the
caller's port from that log, and asks the system whether anybody is still connected from that port.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = "01"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LOG = "callers"
"""The log, in TorchServe's folder."""
LOG_PATTERN = "%d{UNIX_MILLIS} %t %m%n"
LOOK_EVERY_S = 0.25
"""The system takes ten milliseconds for its list of connections, as long as the network takes for a third of a second of
song."""


class Caller:
    """The client of the answer that this worker begins at `now_s` or soon after. `arguments` are the worker's."""

    def __init__(self, folder: Path, http_port: int, now_s: float, arguments: Sequence[str] = sys.argv) -> None:
        worker = re.search(r"--(?:sock-name \S*\.|port )(\d+)", " ".join(arguments))
        self._line = re.compile(rf'^(\d+) W-{worker[1] if worker else ""}-\S* /\S*:(\d+) "', re.MULTILINE)
        self._log = folder / LOG
        self._http_port = http_port
        self._begun_ms = int(now_s * 1_000)
        self._port: int | None = None
        self._next_look_s = 0.0

    def has_gone(self) -> bool:
        """True if the caller has hung up. False if the system does not tell, between two checks, and until the port is
        known."""
        now_s = time.monotonic()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_EVERY_S
        there = connections(self._http_port)
        if there is None:
            return False
        self._port = self._port or self._logged_port()
        return not any(self._port in (None, client.port) for client in there)

    def _logged_port(self) -> int | None:
        if not self._log.is_file():
            return None
        answers = self._line.findall(self._log.read_text(errors="replace"))
        return next((int(port) for time_ms, port in answers if int(time_ms) >= self._begun_ms), None)


@dataclass(frozen=True)
class Connection:
    """One client, by the port that it connects from. `unsent_bytes` wait here for it."""

    port: int
    unsent_bytes: int


def connections(port: int) -> list[Connection] | None:
    """The clients of a port; None if the system does not tell."""
    if not TABLES[0].is_file():
        return None
    rows = [row.split() for table in TABLES if table.is_file() for row in table.read_text().splitlines()[1:]]
    return [
        Connection(port_in(remote), unsent_bytes=int(queues.partition(":")[0], 16))
        for _, local, remote, state, queues, *_ in rows
        if state == ESTABLISHED and port_in(local) == port
    ]


def port_in(address: str) -> int:
    return int(address.rpartition(":")[2], 16)
