import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from serving.endpoint import disconnects
from serving.endpoint.disconnects import LOG, Caller

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")

BEGUN_S = 1_700_000_000.5
UNIX = ("worker.py", "--sock-type", "unix", "--sock-name", "/tmp/x/.ts.sock.9000", "--metrics-config", "/tmp/m1")
TCP = ("worker.py", "--sock-type", "tcp", "--port", "9000", "--metrics-config", "/tmp/m1")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is a look."""
    monkeypatch.setattr(disconnects, "LOOK_EVERY_S", 0)


@contextmanager
def server(clients: int) -> Iterator[tuple[int, list[socket.socket]]]:
    """A port and who is connected to it."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        connected = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(clients)]
        for _ in connected:
            stack.enter_context(listener.accept()[0])
        yield port, connected


def line(port: int, worker: int = 9000, later_ms: int = 10, address: str = "127.0.0.1") -> str:
    what = f'/{address}:{port} "POST /predictions/stemwright HTTP/1.1" 200 31'
    return f"{int(BEGUN_S * 1_000) + later_ms} W-{worker}-stemwright_1.0 {what}\n"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("arguments", [UNIX, TCP])
@pytest.mark.parametrize("address", ["127.0.0.1", "[0:0:0:0:0:0:0:1]", "0:0:0:0:0:0:0:1"])
def test_a_caller_leaves_while_another_waits(tmp_path: Path, arguments: tuple[str, ...], address: str) -> None:
    with server(clients=2) as (port, (mine, _)):
        (tmp_path / LOG).write_text(line(mine.getsockname()[1], address=address))
        caller = Caller(tmp_path, port, BEGUN_S, arguments)
        assert not caller.has_gone()
        mine.close()
        assert caller.has_gone()


@pytest.mark.usefixtures("always")
def test_answers_of_others_and_of_before_are_not_ours(tmp_path: Path) -> None:
    with server(clients=3) as (port, clients):
        mine, waiting, other = (client.getsockname()[1] for client in clients)
        caller = Caller(tmp_path, port, BEGUN_S, UNIX)
        assert not caller.has_gone(), "there is no log yet"
        before = line(1, later_ms=-1) + line(other, worker=9001) + line(other, worker=19000)
        (tmp_path / LOG).write_text(before + "anything\n")
        clients[2].close()
        assert not caller.has_gone(), "nothing is known of ours yet"
        (tmp_path / LOG).write_text(before + line(mine) + line(waiting, later_ms=99))
        assert not caller.has_gone()
        (tmp_path / LOG).unlink()
        clients[0].close()
        assert caller.has_gone(), "also when the log has been cut"


def test_nobody_is_there(tmp_path: Path) -> None:
    with server(clients=0) as (port, _):
        assert Caller(tmp_path, port, BEGUN_S, UNIX).has_gone()


def test_it_looks_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(disconnects, "connections", lambda port: looks.append(port) or [])
    mine = Caller(tmp_path, 8080, BEGUN_S, UNIX)
    assert [mine.has_gone() for _ in range(100)] == [True] + 99 * [False]
    assert looks == [8080]
    time.sleep(disconnects.LOOK_EVERY_S)
    assert mine.has_gone()
