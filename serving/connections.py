"""Who is connected to a port of this machine, as Linux tells it; on other systems nothing is known."""

from dataclasses import dataclass
from pathlib import Path

ESTABLISHED = "01"
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


@dataclass(frozen=True)
class Connection:
    """One client, by the port that it is connected from; `unsent_bytes` wait in this machine to be taken by it."""

    port: int
    unsent_bytes: int


def connections(port: int) -> list[Connection] | None:
    """The clients of a port, None where the system does not tell."""
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
