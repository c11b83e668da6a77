import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

TWICE = """
import os, signal, sys
from training.run.signals import stop_requests

number = signal.Signals(int(sys.argv[1]))
before = signal.getsignal(number)
try:
    with stop_requests() as stop:
        os.kill(os.getpid(), number)
        assert stop.signal == number
        os.kill(os.getpid(), number)
finally:
    assert signal.getsignal(number) is before
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_ends_the_process(number: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", TWICE, str(int(number))], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (128 + number, "")
