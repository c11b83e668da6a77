import itertools
import threading

import pytest

from serving.errors import StorageError, StoreUnavailable
from serving.storage import retries
from serving.storage.retries import patiently, pauses


def test_pauses_double_up_to_the_longest_and_are_drawn_from_their_upper_half() -> None:
    for _ in range(50):
        for pause_s, whole_s in zip(pauses(1, 10), (1, 2, 4, 8, 10, 10), strict=False):
            assert whole_s / 2 <= pause_s <= whole_s
    assert len({next(pauses(1, 10)) for _ in range(20)}) > 10


def test_what_is_unavailable_is_asked_for_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.001)
    count = itertools.count()

    def request() -> int:
        if next(count) < 5:
            raise StoreUnavailable("overloaded")
        return next(count)

    assert patiently(request, threading.Event()) == 6


def test_patience_ends_and_what_will_not_pass_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(retries, "PATIENCE_S", 0.1)
    asked: list[type[StorageError]] = []

    def fail(error: type[StorageError]) -> None:
        asked.append(error)
        raise error("no")

    with pytest.raises(StoreUnavailable):
        patiently(lambda: fail(StoreUnavailable), threading.Event())
    assert 3 <= len(asked) <= 6
    asked.clear()
    with pytest.raises(StorageError):
        patiently(lambda: fail(StorageError), threading.Event())
    assert asked == [StorageError]


def test_a_stop_ends_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 60)
    stopping = threading.Event()
    threading.Timer(0.1, stopping.set).start()

    def request() -> None:
        raise StoreUnavailable("overloaded")

    with pytest.raises(StoreUnavailable):
        patiently(request, stopping)
