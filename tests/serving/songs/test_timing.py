import time
from collections.abc import Iterator

import pytest

from serving.songs.timing import Work


def test_each_second_counts_for_the_innermost_part_alone() -> None:
    work = Work()

    def blocks() -> Iterator[int]:
        for k in range(3):
            time.sleep(0.02)
            yield k

    def stems() -> Iterator[int]:
        for k in work.over("decode", blocks()):
            time.sleep(0.05)
            yield k

    for _ in work.over("separate", stems()):
        time.sleep(0.03)  # nobody's
    assert work.seconds["decode"] == pytest.approx(0.06, abs=0.03)
    assert work.seconds["separate"] == pytest.approx(0.15, abs=0.03)
    assert work.seconds["encode"] == 0


def test_items_and_errors_pass_through() -> None:
    work = Work()
    assert list(work.over("decode", [1, 2, 3])) == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        list(work.over("decode", (1 // k for k in (1, 0))))
    with work.part("separate"):
        time.sleep(0.01)
    assert work.seconds["separate"] >= 0.01
    assert work.seconds["decode"] < 0.01
