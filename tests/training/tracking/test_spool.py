import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from training.errors import TrackingError
from training.tracking import spool as spool_module
from training.tracking.spool import BATCH_OPERATIONS, Operation, Sender, Spool, send_all


class Receiver:
    """Takes what is sent while it is up; `hang` keeps it from answering."""

    def __init__(self) -> None:
        self.received: list[Operation] = []
        self.up = True
        self.answers = threading.Event()
        self.answers.set()

    def __call__(self, operations: list[Operation]) -> None:
        self.answers.wait()
        if not self.up:
            raise TrackingError("connection refused")
        self.received += operations


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "INTERVAL_S", 0.05)
    monkeypatch.setattr(spool_module, "PAUSE_AT_THE_END_S", 0.05)


@contextmanager
def sender(spool: Spool, receiver: Receiver) -> Iterator[Sender]:
    sender = Sender(spool, receiver, "the receiver")
    try:
        yield sender
    finally:
        receiver.answers.set()
        sender.close(0)


def numbered(first: int, end: int) -> list[Operation]:
    return [{"n": n} for n in range(first, end)]


def test_everything_is_sent_once_and_in_order(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path), Receiver()
    operations = numbered(0, 2 * BATCH_OPERATIONS + 1)
    with sender(spool, receiver) as sending:
        for operation in operations:
            spool.append(operation)
        assert sending.close(10)
    assert receiver.received == operations
    assert send_all(Spool(tmp_path), receiver) == 0, "a process that opens it later knows what was sent"


def test_appending_does_not_wait_for_a_receiver_that_hangs(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path), Receiver()
    receiver.answers.clear()
    spool.append({"n": 0})
    with sender(spool, receiver) as sending:
        assert not sending.tried(0.1)
        started = time.monotonic()
        for operation in numbered(1, 1000):
            spool.append(operation)
        assert time.monotonic() - started < 1
        assert not sending.close(0.1)
        assert time.monotonic() - started < 2
    sent = send_all(Spool(tmp_path), receiver)
    assert sent in (999, 1000)  # the one that hung may have got through when the receiver answered again
    assert {operation["n"] for operation in receiver.received} == set(range(1000))


def test_two_senders_of_one_spool_do_not_take_each_others_mark(tmp_path: Path) -> None:
    """A run that gave up on a receiver may get through to it while `sync` sends the rest."""
    Spool(tmp_path)

    def mark(count: int) -> None:
        spool = Spool(tmp_path)
        for up_to_bytes in range(count):
            spool.mark_sent(up_to_bytes)

    with ThreadPoolExecutor(2) as senders:
        for done in [senders.submit(mark, 500) for _ in range(2)]:
            done.result()
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".sent")] == []


def test_what_failed_comes_again_and_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool, receiver = Spool(tmp_path), Receiver()
    receiver.up = False
    spool.append({"n": 0})
    with sender(spool, receiver) as sending:
        assert sending.tried(10)
        spool.append({"n": 1})
        receiver.up = True
        assert sending.close(10)
    assert receiver.received == numbered(0, 2)
    assert capsys.readouterr().err.splitlines() == [
        f"the receiver lags behind, {tmp_path} keeps what it lacks: connection refused",
        "the receiver works again",
    ]


def test_a_batch_whose_confirmation_is_lost_is_sent_again(tmp_path: Path) -> None:
    spool, receiver = Spool(tmp_path), Receiver()
    for operation in numbered(0, 3):
        spool.append(operation)
    receiver(spool.unsent()[0])  # and the process is killed before it can note that
    send_all(Spool(tmp_path), receiver)
    assert receiver.received == [*numbered(0, 3), *numbered(0, 3)]


@pytest.mark.parametrize("torn", [b'{"n": ', b"\0\0\0"])
def test_half_a_line_at_the_end_is_dropped(tmp_path: Path, torn: bytes) -> None:
    Spool(tmp_path).append({"n": 0})
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(torn)
    spool, receiver = Spool(tmp_path), Receiver()
    spool.append({"n": 1})
    send_all(spool, receiver)
    assert receiver.received == numbered(0, 2)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    Spool(tmp_path).append({"n": 0})
    (tmp_path / "journal.jsonl").write_bytes(b"{n: 0}\n")
    with pytest.raises(TrackingError, match=r"journal.jsonl is damaged \(.*\): remove the line"):
        send_all(Spool(tmp_path), Receiver())


@pytest.mark.parametrize("room_bytes", [0, 4])
def test_a_disk_that_is_full_is_an_error_and_the_journal_stays_whole(tmp_path: Path, room_bytes: int) -> None:
    spool, receiver = Spool(tmp_path), Receiver()
    spool.append({"n": 0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (spool.journal.stat().st_size + room_bytes, limits[1]))
    try:
        with pytest.raises(TrackingError, match=r"cannot be used .*make room"):
            spool.append({"n": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.append({"n": 2})
    send_all(spool, receiver)
    assert receiver.received == [{"n": 0}, {"n": 2}]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"a file")
    with pytest.raises(TrackingError, match=f"{tmp_path}/run/spool cannot be used"):
        Spool(tmp_path / "run" / "spool")


APPENDS_FOR_EVER = """
import sys, itertools
from pathlib import Path
from training.tracking.spool import Sender, Spool
spool = Spool(Path(sys.argv[1]))
for n in itertools.count(int(sys.argv[2])):
    spool.append({"n": n})
    if n % 100 == 99:
        spool.mark_sent(spool.unsent()[1])
        print(n, flush=True)
"""


def test_a_process_killed_at_random_loses_nothing_that_it_appended(
    tmp_path: Path, times: Callable[[int, int], int]
) -> None:
    begun = 0
    for _ in range(times(2, 20)):
        command = [sys.executable, "-c", APPENDS_FOR_EVER, str(tmp_path), str(begun)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            printed = [process.stdout.readline()]
            process.kill()
            printed += process.stdout.readlines()
        spool, receiver = Spool(tmp_path), Receiver()
        send_all(spool, receiver)
        lines = spool.journal.read_text().splitlines()
        assert lines == [f'{{"n": {n}}}' for n in range(len(lines))]
        assert len(lines) > int(printed[-1])
        assert all(operation["n"] >= begun for operation in receiver.received)
        begun = len(lines)
