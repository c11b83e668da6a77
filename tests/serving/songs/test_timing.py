from collections.abc import Iterator

import pytest

import serving.songs.timing
from serving.songs.timing import Work


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(serving.songs.timing, "time", clock)
    return clock


def test_each_second_counts_for_the_innermost_part_alone(clock: Clock) -> None:
    work = Work()

    def blocks() -> Iterator[int]:
        for k in range(3):
            clock.now_s += 2
            yield k

    def stems() -> Iterator[int]:
        for k in work.over("decode", blocks()):
            clock.now_s += 5
            yield k

    for _ in work.over("separate", stems()):
        clock.now_s += 3  # nobody's
    assert work.seconds == {"decode": 6, "separate": 15, "encode": 0}


def test_items_and_errors_pass_through(clock: Clock) -> None:
    work = Work()
    assert list(work.over("decode", [1, 2, 3])) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(work.over("decode", (1 // k for k in (1, 0))))
    with work.part("separate"):
        clock.now_s += 1
    assert work.seconds == {"decode": 0, "separate": 1, "encode": 0}
