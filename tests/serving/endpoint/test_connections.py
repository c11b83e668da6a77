import socket
import sys

import pytest

from serving.endpoint.disconnects import Connection, connections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def test_clients_come_and_go() -> None:
    """Callers of another server that had this port before may knock, too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            ours = Connection(client.getsockname()[1], unsent_bytes=0)
            accepted, _ = listener.accept()
            with accepted:
                assert ours in connections(port)
        assert ours not in connections(port)


def test_what_a_client_does_not_read_is_unsent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.accept()
            with accepted:
                accepted.setblocking(False)
                while True:
                    try:
                        accepted.send(bytes(1 << 20))
                    except BlockingIOError:
                        break
                assert max(connection.unsent_bytes for connection in connections(port)) > 0
