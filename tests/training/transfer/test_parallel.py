import subprocess
import sys
import threading
import time

import pytest

from training.errors import Stopped
from training.transfer import parallel
from training.transfer.parallel import run_parallel


def test_results_come_in_the_order_of_the_items_however_long_each_takes() -> None:
    def work(number: int) -> int:
        time.sleep(0.02 * (4 - number % 4))
        return number**2

    assert run_parallel(work, range(8), 4, threading.Event()) == [number**2 for number in range(8)]
    assert run_parallel(work, [], 4, threading.Event()) == []


def test_no_more_than_the_workers_are_at_work_at_a_time() -> None:
    at_work, most = 0, 0
    lock = threading.Lock()

    def work(_: int) -> None:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.02)
        with lock:
            at_work -= 1

    run_parallel(work, range(9), 3, threading.Event())
    assert most == 3


def test_the_first_error_drops_what_has_not_begun_and_waits_for_what_has() -> None:
    ended: list[int] = []
    both = threading.Barrier(2, timeout=10)

    def work(number: int) -> None:
        both.wait()
        if number == 0:
            raise KeyError(number)
        time.sleep(0.1)
        ended.append(number)

    with pytest.raises(KeyError):
        run_parallel(work, range(10), 2, threading.Event())
    assert ended == [1]


@pytest.mark.slow
def test_a_stop_ends_what_listens_at_once_and_leaves_the_rest_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "GRACE_S", 0.2)
    stopping, deaf = threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            deaf.wait(10)
        elif stopping.wait(10):
            raise Stopped("told to")

    threading.Timer(0.1, stopping.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        run_parallel(work, range(6), 3, stopping)
    assert time.monotonic() - started < 2
    deaf.set()


@pytest.mark.slow
def test_an_interrupt_ends_a_process_whose_work_hangs() -> None:
    """As Ctrl-C and SIGTERM do; a pool of concurrent.futures would wait for the work at the end of the process."""
    code = """
import signal, threading, time
from training.run.signals import exit_on_signal
from training.transfer.parallel import run_parallel
signal.signal(signal.SIGTERM, exit_on_signal)
print("begin", flush=True)
run_parallel(lambda _: time.sleep(60), range(8), 4, threading.Event())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begin\n"
    time.sleep(0.2)
    process.terminate()
    assert process.wait(10) == 143
