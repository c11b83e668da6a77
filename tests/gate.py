"""A TCP port in front of a real server that lets through, hangs or refuses, as a test says."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from training.demo.local_s3 import free_port


class Gate:
    """`port` leads to a server's port while the gate is open. It begins shut: connections are refused."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.port = free_port()
        self.listener: socket.socket | None = None
        self.connections: list[socket.socket] = []

    def open(self) -> None:
        """Let connections through."""
        self._listen(hanging=False)

    def hang(self) -> None:
        """Accept connections and never answer."""
        self._listen(hanging=True)

    def shut(self) -> None:
        """Refuse connections and cut those that there are."""
        if self.listener is not None:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def _listen(self, hanging: bool) -> None:
        self.shut()
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen(64)
        threading.Thread(target=self._accept, args=(self.listener, hanging), daemon=True).start()

    def _accept(self, listener: socket.socket, hanging: bool) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections.append(client)
                if not hanging:
                    server = socket.create_connection(("127.0.0.1", self.to_port))
                    self.connections.append(server)
                    for one, other in ((client, server), (server, client)):
                        threading.Thread(target=forward, args=(one, other), daemon=True).start()


def forward(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def gate_to(port: int) -> Iterator[Gate]:
    gate = Gate(port)
    try:
        yield gate
    finally:
        gate.shut()
