"""A Ray cluster is tried before Ray connects, which would ask an address where nothing listens for minutes."""

import socket
from urllib.parse import urlsplit

from serving.errors import RequestError

PATIENCE_S = 5


def require_cluster(address: str | None) -> None:
    """Raise RequestError where nothing listens at the address of a cluster; Ray's own words, such as auto, pass."""
    parts = urlsplit(f"//{address}" if address and "://" not in address else address or "")
    if parts.hostname is None or parts.port is None:
        return
    try:
        socket.create_connection((parts.hostname, parts.port), PATIENCE_S).close()
    except OSError as error:
        raise RequestError(f"no Ray cluster answers at {address} ({error}): start one, or unset RAY_ADDRESS") from error
