"""Progress as a person reads it: a bar on a terminal, plain lines in a log."""

import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

import training.progress
from training.progress import ProgressBar, clock, counted, run_bar

STEPS = """
from training.progress import ProgressBar, run_bar
progress = ProgressBar()
for done in range(8):
    progress("decode songs", done, 7)
progress("push", 3_000_000, 3_000_000)
bar = run_bar("classic", shown=True)
bar.at(0.5, "step 10, loss 0.10")
bar.at(1.0)
bar.close()
"""


@pytest.fixture
def clock_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(training.progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_half_minute_and_one_at_the_end(
    clock_s: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = run_bar("classic", shown=True)
    for done in range(1, 101):
        clock_s[0] += 1
        bar.at(done / 100, f"step {done}")
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "classic: 1 %, 0:01, 1:39 to go; step 1",
        "classic: 31 %, 0:31, 1:09 to go; step 31",
        "classic: 61 %, 1:01, 0:39 to go; step 61",
        "classic: 91 %, 1:31, 0:09 to go; step 91",
        "classic: 100 %, 1:40; step 100",
    ]


def test_a_run_that_goes_on_reckons_from_where_it_began(
    clock_s: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    bar = run_bar("classic", shown=True, begun=0.5)
    clock_s[0] = 10
    bar.at(0.6, "step 60")
    assert capsys.readouterr().err == "classic: 60 %, 0:10, 0:40 to go; step 60\n"


def test_a_stage_in_a_log_is_one_line_without_blank_ones(capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressBar()
    for done in range(8):
        progress("decode songs", done, 7)
    progress("fetch", 1_500_000_000, 3_000_000_000)
    progress("fetch", 3_000_000_000, 3_000_000_000)
    assert list(counted([1, 2], "evaluate songs", shown=True)) == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "decode songs: 7 of 7, 0:00",
        "fetch: 3.0 of 3.0 GB, 0:00",
        "evaluate songs: 2 of 2, 0:00",
    ]


def test_a_terminal_gets_a_bar_that_ends_at_all_of_it() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    subprocess.run([sys.executable, "-c", STEPS], stderr=theirs, check=True, cwd=Path(__file__).parents[2])
    os.close(theirs)
    read = b""
    with suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 1 << 16):
            read += piece
    shown = read.decode().replace("\r\n", "\n")
    ends = [line.rsplit("\r", 1)[-1] for line in shown.rstrip("\n").split("\n")]
    assert [end.split("|")[0] for end in ends] == ["decode songs 100% ", "push 100% ", "classic 100% "]
    assert "7 of 7" in ends[0] and "3.00MB of 3.00MB" in ends[1] and "step 10, loss 0.10" in ends[2]
    assert "it/s" not in shown and "" not in ends


def test_a_rank_that_is_not_the_first_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = run_bar("studio", shown=False)
    bar.at(1.0, "step 1")
    bar.close()
    assert capsys.readouterr().err == ""


def test_a_clock_has_hours_only_where_there_are_some() -> None:
    assert [clock(7.4), clock(750), clock(10_800)] == ["0:07", "12:30", "3:00:00"]
