"""The song of a request: sent plain or packed by gzip, or named and slow to come."""

import gzip
import threading
import time
from pathlib import Path

import pytest

from serving.endpoint import by_reference
from serving.endpoint.by_reference import Reach
from serving.endpoint.incoming import Bounds, incoming, unpack_gzip
from serving.errors import AudioTooLong, RequestError, UnsupportedAudio
from serving.settings import Settings
from tests.serving.endpoint.test_by_reference import Answer, web

pytestmark = pytest.mark.slow

SONG = bytes(range(256)) * 1_000


def arrived(headers: dict[str, str], body: bytes, path: Path, bounds: Bounds) -> tuple[list[bytes], str]:
    """The signs of life that came before the song was there, and the name in its fact sheet."""
    signs: list[bytes] = []
    arriving = incoming(headers, {"body": bytearray(body)}, bounds).arrive(path)
    while True:
        try:
            signs.append(next(arriving))
        except StopIteration as end:
            return signs, end.value.name


@pytest.mark.parametrize("coding", [{}, {"content-encoding": "gzip"}, {"content-encoding": " X-GZIP "}])
@pytest.mark.parametrize("packed", [False, True])
def test_a_body_is_unpacked_where_it_is_packed(coding: dict[str, str], packed: bool, tmp_path: Path) -> None:
    headers = {"content-disposition": 'attachment; filename="My Song.wav"', **coding}
    body = gzip.compress(SONG) if packed else SONG
    assert arrived(headers, body, tmp_path / "song", Bounds()) == ([], "My Song.wav")
    assert (tmp_path / "song").read_bytes() == SONG
    assert list(tmp_path.iterdir()) == [tmp_path / "song"]


def test_a_packed_body_is_unpacked_no_further_than_its_bound(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 60_000
    with pytest.raises(AudioTooLong, match="unpacks to more than 1,000,000 bytes"):
        arrived({}, bomb, tmp_path / "song", Bounds(max_body_bytes=10**6))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3_000_000


@pytest.mark.parametrize(("cut", "message"), [(slice(None, -20), "breaks off"), (slice(None, 11), "breaks off")])
def test_half_a_packed_body_is_no_song(cut: slice, message: str, tmp_path: Path) -> None:
    (tmp_path / "song").write_bytes(gzip.compress(SONG)[cut])
    with pytest.raises(UnsupportedAudio, match=message):
        unpack_gzip(tmp_path / "song", 10**9)


def test_a_damaged_packed_body_is_no_song(tmp_path: Path) -> None:
    damaged = bytearray(gzip.compress(SONG))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "song").write_bytes(damaged)
    with pytest.raises(UnsupportedAudio, match="damaged"):
        unpack_gzip(tmp_path / "song", 10**9)


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "gzip, br"])
def test_another_packing_is_named(coding: str) -> None:
    with pytest.raises(UnsupportedAudio, match=f"packed by {coding}: send the file itself, or packed by gzip"):
        incoming({"content-encoding": coding}, {"body": b"x"}, Bounds())


def slowly(seconds: float) -> Answer:
    def answer(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        for _ in range(10):
            time.sleep(seconds / 10)
            handler.wfile.write(SONG)  # type: ignore[attr-defined]

    return answer


def test_a_named_song_gives_signs_of_life_where_the_answer_may_begin_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_reference, "SIGN_OF_LIFE_S", 0.05)
    with web(slowly(0.5)) as (url, _):
        bounds = Bounds(reach=Reach.of(f"{url}, s3://out", 10**7))
        for output, alive in ((', "output": "s3://out/x"', True), ("", False)):
            body = f'{{"uri": "{url}/song.wav"{output}}}'.encode()
            signs, name = arrived({"content-type": "application/json"}, body, tmp_path / "song", bounds)
            assert (bool(signs), set(signs) <= {b" "}, name) == (alive, True, "song.wav")
            assert (tmp_path / "song").read_bytes() == SONG * 10


def test_a_named_song_that_is_slower_than_the_patience_is_refused(tmp_path: Path) -> None:
    with web(slowly(3)) as (url, _):
        bounds = Bounds(reach=Reach.of(url, 10**7), patience_s=0.3)
        start = time.monotonic()
        with pytest.raises(RequestError, match=r"takes more than 0\.3 s to fetch"):
            arrived({"content-type": "application/json"}, f'{{"uri": "{url}/a"}}'.encode(), tmp_path / "a", bounds)
        assert time.monotonic() - start < 2


def test_a_caller_who_leaves_ends_the_fetching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_reference, "SIGN_OF_LIFE_S", 0.05)
    with web(slowly(5)) as (url, _):
        bounds = Bounds(reach=Reach.of(f"{url}, s3://out", 10**7))
        body = f'{{"uri": "{url}/a", "output": "s3://out/x"}}'.encode()
        arriving = incoming({"content-type": "application/json"}, {"body": body}, bounds).arrive(tmp_path / "a")
        assert next(arriving) == b" "
        closing = threading.Thread(target=arriving.close)
        closing.start()
        closing.join(timeout=2)
        assert not closing.is_alive()


def test_fetching_is_over_before_torchserve_takes_the_worker_for_hung() -> None:
    assert Bounds.of(Settings(response_timeout_s=60)).patience_s == 30
    assert Bounds.of(Settings()).patience_s < Settings().response_timeout_s
